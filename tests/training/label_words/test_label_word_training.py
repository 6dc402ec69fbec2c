"""Training through label words: every kind of model and method learns, and what was trained can be stored and mixed."""

import math

import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.store import adapter_folder
from deltatune.tasks import task_from_json
from deltatune.tasks.classification import Classify
from deltatune.tasks.mixture import Mixture
from deltatune.training.inference.prediction import adapter_collator, encode_for, ensemble, predict
from deltatune.training.label_word_logits import label_word_logits
from deltatune.training.settings import Settings
from deltatune.training.task_model import TaskModel
from deltatune.training.train_adapter import train
from support.label_words import KINDS, LEFT_TO_RIGHT, reader, rows, task
from support.language_models import randomize_

METHODS = ["LoRA(r=2)", "BitFit(missing='add')", "Prompt(length=3)", "PTuning(length=3)", "Prefix(length=3)"]
ALL = [(kind, method) for kind in KINDS for method in METHODS]
FAST = [*zip(KINDS, [*METHODS, METHODS[0]], strict=True), *((kind, "Full()") for kind in KINDS)]
LEARN = [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ALL if pair not in FAST)]
TEMPLATE = "{text} It was {mask}"


def hosted(kind, method="LoRA(r=2)", random=False, **config):
    model, tokenizer = reader(kind, **config)
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse(method), head=False)
    if random:
        randomize_(host)
    return host, tokenizer


def batch_of(host, tokenizer, label_task, given=None):
    encoded = encode_for(host, "a", label_task, given or rows(), tokenizer)
    return adapter_collator(host, "a", tokenizer, encoded)(list(encoded))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("kind", "method"), LEARN)
def test_a_step_moves_every_tensor_and_training_lowers_the_loss(kind, method):
    host, tokenizer = hosted(kind, method)
    settings = Settings(max_steps=6, learning_rate=None if method == "Full()" else 0.02, batch_size=3, warmup=0)
    outcome = train(host, "a", task(TEMPLATE), rows(), None, tokenizer, settings)  # an unmoved tensor is an error
    losses = [loss for _, loss in outcome.history]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_under_checkpointing_are_the_plain_ones(kind):
    gradients = []
    for checkpointing in (False, True):
        host, tokenizer = hosted(kind, random=True)
        if checkpointing:
            host.model.activation_checkpointing_enable()
        model = TaskModel(host, "a", task(TEMPLATE)).train()
        model(**batch_of(host, tokenizer, task(TEMPLATE)))["loss"].backward()
        gradients.append([p.grad for _, p in host.trainable("a")])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_bfloat16_stays_near_float32(kind):
    host, tokenizer = hosted(kind, random=True)
    batch = batch_of(host, tokenizer, task(TEMPLATE))
    with torch.no_grad():
        exact, rounded = (label_word_logits(host, task(TEMPLATE), batch, bfloat16) for bfloat16 in (False, True))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_may_have_adapters_of_their_own(kind):
    host, tokenizer = hosted(kind, random=True)
    host.attach("b", deltatune.parse("Prefix(length=2)"), head=False, seed=1)
    randomize_(host, "b", 0.3)
    batch = batch_of(host, tokenizer, task(TEMPLATE))
    with torch.no_grad():
        alone = {}
        for name in ("a", "b"):
            host.use(name)
            alone[name] = label_word_logits(host, task(TEMPLATE), batch)
        host.use(["a", "b", "a"])
        mixed = label_word_logits(host, task(TEMPLATE), batch)
    expected = torch.stack([alone[name][i] for i, name in enumerate("aba")])
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    both = ensemble(host, ["a", "b"], task(TEMPLATE), rows(), tokenizer, "mean", precision="float32")
    torch.testing.assert_close(torch.tensor(both), (alone["a"] + alone["b"]) / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_scale_an_adapter(kind):
    host, tokenizer = hosted(kind, random=True)
    of = {
        weight: predict(host, "a", task(TEMPLATE), rows(), tokenizer, precision="float32", weight=weight)
        for weight in (0.0, 0.5, 1.0)
    }
    plain, other = hosted(kind)
    bare = predict(plain, "a", task(TEMPLATE), rows(), other, precision="float32")
    torch.testing.assert_close(torch.tensor(of[0.0]), torch.tensor(bare), atol=1e-5, rtol=1e-5)
    assert abs(of[0.5] - of[1.0]).max() > 1e-4


def test_virtual_tokens_stand_where_the_template_places_them():
    placed = task("{2} {text} {soft:It was} {mask}")
    tokenizer = reader("bert")[1]
    count = len(placed.templates[0].initial_ids(tokenizer))
    assert count > 3
    host, tokenizer = hosted("bert", f"Prompt(length={count})", random=True)
    batch = batch_of(host, tokenizer, placed)
    virtual = batch["input_ids"] >= host.sites.facts.vocabulary
    assert virtual.sum(1).tolist() == [count] * len(virtual)
    with pytest.raises(DeltatuneError, match=f"has {count} virtual tokens, and LoRA.* trains 0: write the template"):
        predict(hosted("bert")[0], "a", placed, rows(), tokenizer)


def test_a_model_without_segments_gets_no_token_types():
    """RoBERTa has one token type, whatever its tokenizer says."""
    host, tokenizer = hosted("roberta")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    batch = batch_of(host, tokenizer, task("{text} {sep} It was {mask}"))
    assert "token_type_ids" not in batch
    assert torch.isfinite(torch.tensor(predict(host, "a", task("{text} {sep} {mask}"), rows(), tokenizer))).all()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_a_stored_adapter_answers_as_before(kind, tmp_path):
    label_task = task(TEMPLATE, demonstrations=(("A film. It was old film",),), calibration=((0.5, 0.0),))
    host, tokenizer = hosted(kind, random=True)
    before = predict(host, "a", label_task, rows(), tokenizer, precision="float32")
    host.save("a", tmp_path / "a", extra={"task": label_task.to_json()})
    stored = task_from_json(adapter_folder.read_config(tmp_path / "a")["extra"]["task"])
    assert stored == label_task
    other, tokenizer = reader(kind)
    host = deltatune.Host(other)
    host.load(tmp_path / "a", name="a")
    assert (predict(host, "a", stored, rows(), tokenizer, precision="float32") == before).all()


def test_a_merged_model_answers_without_the_adapter():
    host, tokenizer = hosted("gpt2", random=True)
    before = predict(host, "a", task(TEMPLATE), rows(), tokenizer, precision="float32")
    host.merge_("a")
    merged = predict(host, "a", task(TEMPLATE), rows(), tokenizer, precision="float32")
    torch.testing.assert_close(torch.tensor(merged), torch.tensor(before), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_label_words_and_a_head_in_one_mixture(kind):
    mixture = Mixture({"words": task(TEMPLATE), "head": Classify(labels=("pos", "neg"), max_length=100)})
    model, tokenizer = reader(kind)
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse("LoRA(r=2)"), head=mixture.make_head(model.config))
    given = mixture.marked({"words": rows(), "head": rows()})
    outcome = train(host, "a", mixture, given, None, tokenizer, Settings(max_steps=3, batch_size=6))
    assert all(math.isfinite(loss) for _, loss in outcome.history)
    answers = predict(host, "a", mixture, given, tokenizer)
    assert [part for part, _ in answers] == ["words"] * 3 + ["head"] * 3
    assert set(mixture.score(answers, encode_for(host, "a", mixture, given, tokenizer).references)) >= {"mean"}


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_rows_of_label_words_are_not_packed(kind):
    host, tokenizer = hosted(kind)
    with pytest.raises(DeltatuneError, match="label words cannot be packed: set packing=False"):
        train(host, "a", task(TEMPLATE), rows(), None, tokenizer, Settings(max_steps=1, packing=True))
