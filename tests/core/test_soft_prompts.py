"""Soft prompts: where they start from, templates they stand in, and several of them in one batch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import deltatune
from deltatune import DeltatuneError, Host, Prompt, PTuning, Template, with_token_ids
from deltatune.tasks import Head
from deltatune.testing.fixtures import attach
from deltatune.training import predict
from deltatune.training.inference.prediction import vote
from support import models
from support.runs import ROWS, TASK

V = models.VOCABULARY


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


def vectors(host, name="a"):
    return next(delta for _, _, delta in host.adapters[name].entries() if delta.needs.virtual_tokens).vectors().detach()


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- where a prompt starts from ---


def test_labels_start_as_the_mean_of_their_tokens(tokenizer):
    method = with_token_ids(Prompt(length=5, init="labels"), tokenizer, TASK)
    host = Host(models.tiny("bert"))
    host.attach("a", method)
    table = host.model.get_input_embeddings().weight
    wanted = [table[ids_of(tokenizer, label)].mean(0) for label in TASK.labels]
    torch.testing.assert_close(vectors(host)[:2], torch.stack(wanted))
    rest = vectors(host)[2:]
    assert all(any(torch.equal(row, other) for other in table) for row in rest)
    assert deltatune.parse(repr(method)) == method


def test_a_text_starts_as_its_tokens(tokenizer):
    host = Host(models.tiny("bert"))
    host.attach("a", with_token_ids(Prompt(length=4, init="text", text="the film is"), tokenizer))
    table = host.model.get_input_embeddings().weight
    torch.testing.assert_close(vectors(host)[:3], table[ids_of(tokenizer, "the film is")])


def test_words_that_are_no_ids_yet_are_refused(tokenizer):
    host = Host(models.tiny("bert"))
    with pytest.raises(DeltatuneError, match="its initial text has no token ids yet on this BertModel"):
        host.attach("a", Prompt(init="labels"))
    with pytest.raises(DeltatuneError, match="needs a task with classes"):
        with_token_ids(Prompt(init="labels"), tokenizer)
    with pytest.raises(DeltatuneError, match="too short for 2 labels"):
        with_token_ids(Prompt(length=1, init="labels"), tokenizer, TASK)
    with pytest.raises(DeltatuneError, match="go together"):
        Prompt(init="text")
    with pytest.raises(DeltatuneError, match="too short for 3 tokens"):
        Prompt(length=1, init="ids", ids=(1, 2, 3))
    with pytest.raises(DeltatuneError, match="makes no tokens"):
        with_token_ids(Prompt(init="text", text=" "), tokenizer)
    with pytest.raises(DeltatuneError, match="no token 5000"):
        host.attach("a", Prompt(init="ids", ids=(5000,)))
    with pytest.raises(DeltatuneError, match="takes no ids"):
        Prompt(ids=(3,))


# --- P-tuning ---


@torch.no_grad()
def test_a_finished_encoder_is_its_vectors(tmp_path):
    host = Host(models.tiny("bert"))
    attach(host, "a", PTuning(length=5))
    batch, before = models.inputs("bert"), vectors(host)
    wanted = host.model(**batch)[0]
    host.remove_reparametrisation_("a")
    assert repr(host.adapters["a"].method) == "PTuning(length=5, encoder='none')" or "none" in repr(
        host.adapters["a"].method
    )
    assert [name for name, _ in host.trainable("a")] == ["deltas.ptuning/embed.prompt"]
    torch.testing.assert_close(vectors(host), before)
    torch.testing.assert_close(host.model(**batch)[0], wanted)


# --- templates ---


def test_a_template_of_a_masked_model(tokenizer):
    template = Template("{2} {text} ? {1} it was {mask} . {3}")
    assert (template.tokens, template.columns) == (6, ("text",))
    ids, answer = template.render({"text": "good film"}, tokenizer, V)[:2]
    words = ids_of(tokenizer, "good film ?")
    middle = ids_of(tokenizer, "it was")
    stop = ids_of(tokenizer, ".")
    wanted = [models.BOS, V, V + 1, *words, V + 2, *middle, models.MASK, *stop, V + 3, V + 4, V + 5, models.EOS]
    assert ids == wanted
    assert ids[answer] == models.MASK


def test_columns_are_cut_and_the_template_is_not(tokenizer):
    template = Template("{a} {1} {b} is {mask}")
    row = {"a": "good " * 9, "b": "bad " * 3}
    ids, answer = template.render(row, tokenizer, V, max_length=12)[:2]
    good, bad = ids_of(tokenizer, "good")[0], ids_of(tokenizer, "bad")[0]
    assert len(ids) == 12
    assert (ids.count(good), ids.count(bad)) == (4, 3)
    assert ids[answer] == models.MASK
    with pytest.raises(DeltatuneError, match="raise max_length"):
        template.render(row, tokenizer, V, max_length=6)


def left_to_right(tokenizer):
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", eos_token="[SEP]")
    assert made.mask_token is None
    return made


def test_left_to_right_the_answer_comes_next(tokenizer):
    plain = left_to_right(tokenizer)
    ids, answer = Template("{2} {text} {1} {mask}").render({"text": "good film"}, plain, V)[:2]
    assert ids == [models.BOS, V, V + 1, *ids_of(tokenizer, "good film"), V + 2]
    assert answer == len(ids) - 1
    with pytest.raises(DeltatuneError, match="predicts the answer at the end"):
        Template("{text} {mask} {3}").render({"text": "good"}, plain, V)


def test_what_is_no_template_is_refused(tokenizer):
    with pytest.raises(DeltatuneError, match=r"one \{mask\}"):
        Template("{3} {text}")
    with pytest.raises(DeltatuneError, match="at least one column"):
        Template("it was {mask}")
    with pytest.raises(DeltatuneError, match="did you mean 'text'"):
        Template("{txt} {mask}").render({"text": "a"}, tokenizer, V)


TEMPLATES = {"bert": "{2} {text} {1} it was {mask} {2}", "gpt2": "{2} {text} {1} it was {mask}"}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_p_tuning_moves_the_answer(kind, tokenizer):
    """One of two words at the answer's place, learned by virtual tokens alone while model and anchors stay."""
    template = Template(TEMPLATES[kind])
    reader = left_to_right(tokenizer) if kind == "gpt2" else tokenizer
    host = Host(models.tiny(kind, "lm", dropout=False))
    host.attach("a", PTuning(length=template.tokens, encoder="mlp"))
    table = host.model.get_input_embeddings().weight.clone()
    rows = [template.render({"text": text}, reader, V) for text in ("plot plot film", "actor actor film")]
    words = torch.tensor(ids_of(tokenizer, "good bad"))
    ids = torch.tensor([row.input_ids for row in rows])

    def loss():
        logits = host.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        at_answer = logits[torch.arange(2), [row.answer for row in rows]]
        return F.cross_entropy(at_answer[:, words], torch.tensor([wanted, wanted]))

    with torch.no_grad():
        wanted = 0
        wanted = int(loss() < F.softplus(torch.zeros(())))  # the less likely of the two
        start = loss().item()
    optimizer = torch.optim.AdamW([p for _, p in host.trainable("a")], lr=2e-2)
    for _ in range(120):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert start > 0.69  # as good as chance at most
    assert value.item() < 0.8 * start
    assert torch.equal(host.model.get_input_embeddings().weight, table)


def test_a_template_with_more_virtual_tokens_than_the_adapter_is_refused(tokenizer):
    host = Host(models.tiny("bert"))
    host.attach("a", PTuning(length=2))
    ids, _ = Template("{3} {text} {mask}").render({"text": "good"}, tokenizer, V)[:2]
    with pytest.raises(DeltatuneError, match="up to number 3, but the acting prompt has 2"):
        host.model(input_ids=torch.tensor([ids]))


# --- several prompts at once ---


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_prompts_of_different_lengths_generate_in_one_batch_as_alone(kind):
    host = Host(models.tiny(kind, "lm"))
    for i, length in enumerate((2, 5, 9)):
        attach(host, f"p{i}", Prompt(length=length, init="uniform"), seed=i)
        with torch.no_grad():
            next(iter(host.adapters[f"p{i}"].parameters())).mul_(4)
    ids = torch.tensor([[7, 8, 9, 10]]).repeat(3, 1)
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "output_logits": True}

    def logits(ids, route):
        host.use(route)
        out = host.generate(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **options)
        return torch.stack(out.logits, 1)[..., :V]

    together = logits(ids, ["p0", "p1", "p2"])
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert not torch.allclose(together[1], together[2], atol=1e-2)
    for row in range(3):
        alone = logits(ids[:1], f"p{row}")
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def hosted(lengths):
    host = Host(models.tiny("bert"))
    for i, length in enumerate(lengths):
        attach(host, f"p{i}", Prompt(length=length), seed=i)
        host.adapters[f"p{i}"].head = Head(TASK.head_config(host.model.config), seed=i)
    return host


def test_an_ensemble_votes_as_its_members_do_alone(tokenizer):
    host = hosted([3, 1, 5])
    names = ["p0", "p1", "p2"]
    alone = [predict(host, name, TASK, ROWS[:12], tokenizer) for name in names]
    together = deltatune.ensemble(host, names, TASK, ROWS[:12], tokenizer, how="mean")
    np.testing.assert_allclose(together, np.mean(alone, 0), rtol=1e-4, atol=1e-5)
    voted = deltatune.ensemble(host, names, TASK, ROWS[:12], tokenizer)
    with pytest.raises(DeltatuneError, match=r"how='median': an ensemble takes 'vote' or 'mean'"):
        deltatune.ensemble(host, names, TASK, ROWS[:12], tokenizer, how="median")
    majority = (np.stack(alone).argmax(-1).sum(0) >= 2).astype(int)
    assert voted.argmax(-1).tolist() == majority.tolist()


def test_equal_votes_go_by_probability():
    sure, unsure = np.array([[4.0, 0.0]], np.float32), np.array([[0.0, 0.5]], np.float32)
    assert vote([sure, unsure]).argmax(-1).tolist() == [0]
    assert vote([unsure, unsure, sure]).argmax(-1).tolist() == [1]
    with pytest.raises(DeltatuneError, match="must have logits of one shape"):
        vote([sure, np.zeros((1, 3), np.float32)])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_call_past_the_hooks_is_refused(kind):
    """The body would see the text without its prompt, as if there were no adapter."""
    host = deltatune.Host(models.tiny(kind))
    host.attach("a", deltatune.Prompt(length=3))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert host.model(input_ids=ids).last_hidden_state.shape[1] == 7
    with pytest.raises(deltatune.DeltatuneError, match=r"call model\(\.\.\.\).*sentence-transformers"):
        host.model.forward(input_ids=ids)
    with host.disabled():
        assert host.model.forward(input_ids=ids).last_hidden_state.shape[1] == 4
