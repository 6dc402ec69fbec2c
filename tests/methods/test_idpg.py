"""IDPG: prompts made from the row's own text, against the equation written out with the bare model's embeddings."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForTokenClassification

from deltatune import IDPG, DeltatuneError, Embeddings, Host, Prompt, Template, parse
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.testing.conformance import LAWS
from deltatune.testing.fixtures import attach, make_host
from deltatune.training.inference.prediction import encode_for
from deltatune.training.task_model import labelled_outputs
from support import models
from support.language_models import generation_tokenizer

METHOD = IDPG(length=3, hidden=5)
V = models.VOCABULARY


def delta_of(host):
    return next(delta for _, site, delta in host.adapters["a"].entries() if site.kind == "embed")


@torch.no_grad()
def by_hand(host, ids):
    """P(x) (P, D) of one text (T,)."""
    delta, table = delta_of(host), host.model.get_input_embeddings().weight
    mean = torch.stack([table[i] for i in ids]).mean(0) / table.std()
    low = F.gelu(delta.W1 @ mean + delta.b1)
    return (delta.W2 @ low).view(3, -1) + delta.b2


def tokens(rows=1, length=6, seed=0):
    return torch.randint(5, V, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "distilbert"])
@torch.no_grad()
def test_it_is_the_equation_in_front_of_the_embedded_text(kind):
    host = make_host(kind)
    attach(host, "a", METHOD)
    for seed in (0, 1):
        ids = tokens(seed=seed)
        found = host.model(ids)[0]
        prompt = by_hand(host, ids[0])
        host.use(None)
        vectors = torch.cat([prompt, host.model.get_input_embeddings()(ids[0])])[None]
        wanted = host.model(inputs_embeds=vectors)[0]
        host.use("a")
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(by_hand(host, tokens(seed=0)[0]), by_hand(host, tokens(seed=1)[0]), atol=1e-3)


@torch.no_grad()
def test_an_encoder_decoder_makes_them_of_the_encoders_text():
    host = make_host("t5", "lm")
    attach(host, "a", METHOD)
    ids, answer = tokens(2), tokens(2, 4, 1)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    found = host.model(input_ids=ids, attention_mask=mask, decoder_input_ids=answer).logits
    prompts = torch.stack([by_hand(host, row[real.bool()]) for row, real in zip(ids, mask, strict=True)])
    host.use(None)
    vectors = torch.cat([prompts, host.model.get_input_embeddings()(ids)], 1)
    longer = torch.cat([torch.ones(2, 3, dtype=torch.long), mask], 1)
    wanted = host.model(inputs_embeds=vectors, attention_mask=longer, decoder_input_ids=answer).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_one_is_a_prompt_that_is_the_same_for_all_texts():
    host = make_host("llama", "lm")
    host.attach("a", METHOD)
    host.attach("b", Prompt(length=3))
    prompt = next(delta for _, _, delta in host.adapters["b"].entries())
    prompt.prompt.copy_(delta_of(host).b2)
    rows = host.model.get_input_embeddings().weight
    assert all((rows == vector).all(1).any() for vector in prompt.prompt), "vectors of the vocabulary"
    ids = tokens(2)
    host.use("a")
    found = host.model(ids).logits
    host.use("b")
    torch.testing.assert_close(found, host.model(ids).logits)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_training_and_generation_read_the_same_prompt(kind):
    """Left-padded, with a cache or without, each step's logits are those of prompt and answer with labels."""
    host = make_host(kind, "lm")
    attach(host, "a", METHOD)
    ids = tokens(2)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    for cache in (True, False):
        found = host.generate(input_ids=ids, attention_mask=mask, use_cache=cache, output_logits=True, **options)
        steps = torch.stack(found.logits, 1)[..., :V]
        for row, prompt in ((0, 6), (1, 3)):
            whole = found.sequences[row : row + 1, 6 - prompt :]
            labels = torch.cat([torch.full((1, prompt), -100), whole[:, prompt:]], 1)
            with torch.no_grad():
                logits = host.model(whole, labels=labels).logits[0, 3 + prompt - 1 : -1]
            torch.testing.assert_close(steps[row], logits, rtol=1e-4, atol=1e-4)


def test_the_answer_is_not_looked_at():
    host = make_host("llama", "lm")
    attach(host, "a", METHOD)
    ids = tokens(1, 8)
    labels = torch.cat([torch.full((1, 5), -100), ids[:, 5:]], 1)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 11 - 5) % (V - 5) + 5
    outputs = []
    for text in (ids, other):
        batch = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        labelled_outputs(host, batch, torch.where(labels == -100, labels, text))
        outputs.append(delta_of(host).prompt_ids.clone())
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].tolist() == [[-1, -1, -1, *ids[0, :5].tolist(), -1, -1, -1]]


def test_texts_without_a_prompt_are_refused_before_training():
    host = make_host("llama", "lm")
    attach(host, "a", METHOD)
    with pytest.raises(DeltatuneError, match=r"IDPG\(length=3, hidden=5\) treats a prompt and its answer differently"):
        encode_for(host, "a", LanguageModel(max_length=16), [{"text": "the film is good"}], generation_tokenizer())
    encoder = make_host("bert", "lm")
    attach(encoder, "a", METHOD)
    ids = tokens()
    assert torch.isfinite(encoder.model(ids, labels=ids).loss), "a masked text is its own prompt"


@torch.no_grad()
def test_places_in_a_template_do_not_matter_to_what_is_read():
    host, tokenizer = Host(models.tiny("bert", "lm")), models.tiny_tokenizer()
    attach(host, "a", METHOD)
    rendered = Template("{2} {text} {1} {mask}").render({"text": "the film is good"}, tokenizer, V)
    host.model(torch.tensor([rendered.input_ids]))
    assert [i for i in delta_of(host).prompt_ids[0].tolist() if i >= 0] == [i for i in rendered.input_ids if i < V]


@pytest.mark.parametrize("law", ["gradients_are_exact", "merging_equals_live", "files_keep_it"])
def test_embeddings_that_are_trained_too_are_read_with_their_gradient(law):
    """In bfloat16 as well, where they stand beside the module's parameter."""
    LAWS[law](METHOD + Embeddings(), "llama")


def test_counts_and_texts():
    assert parse(repr(METHOD)) == METHOD
    host = make_host("bert")
    adapter = host.attach("a", METHOD)
    assert METHOD.count(host.sites) == adapter.count == 33 * 5 + 6 * 3 * 32
    with pytest.raises(DeltatuneError, match="hidden must be at least 1"):
        IDPG(hidden=0)


@pytest.mark.parametrize("method", [METHOD, Prompt(length=3, init="normal")])
def test_a_model_without_weights_can_be_asked_for_counts(method):
    with torch.device("meta"):
        model = models.tiny("bert")
    assert Host(model).attach("a", method).count == method.count(make_host("bert").sites)


def test_labels_of_tags_are_no_answers():
    host = Host(LlamaForTokenClassification(models.tiny("llama").config))
    attach(host, "a", METHOD)
    ids = tokens()
    assert torch.isfinite(host.model(ids, labels=ids % 3).loss)
    assert delta_of(host).prompt_ids.tolist() == [[-1, -1, -1, *ids[0].tolist()]]
