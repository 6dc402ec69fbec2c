"""Training on mixtures: every kind of task on every family, each part's own loss, and mixtures of earlier versions."""

import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.tasks import Classify, ExtractiveQA, Generate, Head, HeadConfig, LanguageModel, Mixture, MultiLabel, Tag
from deltatune.training import Settings, predict, train
from deltatune.training.inference.prediction import encode_for
from deltatune.training.model_and_loader import mixture_and_loader
from deltatune.training.scaling.distributed import Processes
from deltatune.training.task_model import TaskModel
from deltatune.training.training_loop.sampler import BatchLoader, MixtureSampler
from support import models
from support.language_models import generation_tokenizer

PARTS = {
    "classes": Classify(labels=("bad", "good"), max_length=32),
    "number": Classify(labels=(), max_length=32),
    "many": MultiLabel(labels=("film", "plot"), max_length=32),
    "tags": Tag(tags=("O", "B-X"), text=("tokens",), label="tags", max_length=32),
    "span": ExtractiveQA(max_length=48, stride=8),
    "text": Generate(text=("input",), label="output", prompt="plain", new_tokens=4, max_length=48),
    "raw": LanguageModel(max_length=32),
}
ROWS = {
    "classes": [{"text": f"the film is {word}", "label": word} for word in ("good", "bad")],
    "number": [{"text": f"{word} film", "label": value} for word, value in (("good", 1.0), ("bad", -1.0))],
    "many": [{"text": f"the {word}", "label": [word]} for word in ("film", "plot")],
    "tags": [{"tokens": ["the", word, "is"], "tags": ["O", "B-X", "O"]} for word in ("film", "plot")],
    "span": [
        {"question": "what is good", "context": f"the {word} is good", "answers": [{"text": word, "start": 4}]}
        for word in ("film", "plot")
    ],
    "text": [{"input": f"the {word}", "output": word, "references": [word]} for word in ("film", "plot")],
    "raw": [{"text": f"the {word} is very good"} for word in ("film", "plot")],
}
ROW_PARTS = ("classes", "number", "many", "tags", "span")
QUIET = Settings(epochs=2, batch_size=6, learning_rate=1e-2, precision="float32")


def made(kind, names, method="LoRA(r=2)", times=6, temperature=1.0, **sizes):
    """A host with the adapter "a" for a mixture of these parts, the mixture, and its rows."""
    mixture = Mixture({name: PARTS[name] for name in names}, temperature)
    model = models.tiny(kind, "lm", dropout=False) if mixture.loads == "text" else models.tiny(kind, dropout=False)
    host = Host(model)
    head = mixture.make_head(model.config, dropout=0.0) if any(name in ROW_PARTS for name in names) else None
    host.attach("a", parse(method), head=False if head is None else head)
    return host, mixture, mixture.marked({name: ROWS[name] * sizes.get(name, times) for name in names})


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ROW_PARTS),
        ("llama", (*ROW_PARTS, "text", "raw")),
        ("gpt2", ("classes", "text")),
        ("t5", (*ROW_PARTS, "text")),
    ],
)
def test_every_kind_of_task_is_learned_by_one_adapter(kind, names, tmp_path):
    host, mixture, rows = made(kind, names)
    tokenizer = generation_tokenizer()
    done = train(host, "a", mixture, rows, rows, tokenizer, QUIET)
    scores = done.evaluations[-1][1]
    assert {name.partition(".")[0] for name in scores} == {"mean", *names}
    answers = predict(host, "a", mixture, rows, tokenizer, precision="float32")
    one = names[0]
    alone = predict(host, "a", mixture, ROWS[one], tokenizer, precision="float32", part=one)
    torch.testing.assert_close(torch.tensor(answers[0][1]), torch.tensor(alone[0]), rtol=1e-4, atol=1e-5)
    host.save("a", tmp_path / "a", extra={"task": mixture.to_json()})
    other = Host(models.tiny(kind, "lm" if mixture.loads == "text" else None, dropout=False))
    other.load(tmp_path / "a", name="a")
    encoded = encode_for(other, "a", mixture, rows, tokenizer)
    again = predict(other, "a", mixture, encoded, tokenizer, precision="float32")
    assert mixture.score(again, encoded.references) == pytest.approx(scores, abs=1e-5)


def test_a_step_is_the_mean_over_its_rows_of_each_parts_own_loss():
    host, mixture, rows = made("llama", ("classes", "text"), classes=4, text=8)
    tokenizer = generation_tokenizer()
    encoded = encode_for(host, "a", mixture, rows, tokenizer)
    settings = Settings(batch_size=24, accumulation=1, precision="float32")
    losses = {}
    with host.using("a"):
        for accumulation in (1, 3):
            settings = Settings(batch_size=24, accumulation=accumulation, precision="float32")
            model, loader = mixture_and_loader(host, "a", mixture, encoded, tokenizer, settings, Processes())
            [(_, batches)] = list(loader.steps(1, 1))
            losses[accumulation] = step_loss(model, mixture, batches)
            assert len(batches) == 2 if accumulation == 1 else len(batches) > 2
        alone = {}
        for name, part in encoded.parts.items():
            task_model = TaskModel(host, "a", mixture)
            batch = loader.make_batch(list(encoded.pieces()[name]), 0)
            alone[name] = float(task_model(**batch, part=name)["loss"].detach())  # divided by the part's own items
            assert part.examples == {"classes": 8, "text": 16}[name]
    assert losses[1] == pytest.approx(alone["classes"] / 3 + alone["text"] * 2 / 3, rel=1e-5)
    assert losses[3] == pytest.approx(losses[1], rel=1e-5)


def step_loss(model, mixture, batches):
    """The loss of one step, as the loop computes it."""
    from types import SimpleNamespace

    from deltatune.training.training_loop.loop import TrainingLoop

    loop = SimpleNamespace(task=mixture, processes=Processes())
    rows, items = TrainingLoop.step_items(loop, batches)
    assert rows == sum(batch.rows for batch in batches)
    with torch.no_grad():
        return sum(float(model(**batch.tensors, part=batch.part, items=items[batch.part])["loss"]) for batch in batches)


def test_heads_on_a_language_model_read_what_they_read_on_its_body():
    """One model for all parts: a classification through the language model is that of the bare transformer."""
    for kind in ("llama", "gpt2", "t5"):
        whole = models.tiny(kind, "lm", dropout=False)
        names = ("classes", "tags")
        over_lm, mixture, _ = made(kind, (*names, "text"))
        bare = models.tiny(kind, dropout=False)
        prefix = f"{whole.base_model_prefix}."
        weights = {name.removeprefix(prefix): value for name, value in over_lm.model.state_dict().items()}
        bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
        two = Mixture({name: PARTS[name] for name in names})
        host = Host(bare)
        host.attach("a", parse("LoRA(r=2)"), head=two.make_head(bare.config, dropout=0.0))
        tokenizer = generation_tokenizer()
        for name in names:
            one = predict(over_lm, "a", mixture, ROWS[name], tokenizer, precision="float32", part=name)
            other = predict(host, "a", two, ROWS[name], tokenizer, precision="float32", part=name)
            if name == "classes":
                torch.testing.assert_close(torch.tensor(one), torch.tensor(other))
            else:
                assert one == other


def test_every_row_has_its_turn_whatever_the_shares():
    parts = {"large": list(range(90)), "small": list(range(90, 100))}
    mixture = Mixture({"large": PARTS["classes"], "small": PARTS["tags"]}, 1e9)
    sampler = MixtureSampler(parts, mixture.shares({"large": 90, "small": 10}), [5] * 100, 10)
    assert sampler.quotas == {"large": 50, "small": 50}
    epochs = [[row for batch in sampler.batches(epoch) for row in batch] for epoch in range(9)]
    assert all(len(epoch) == 100 for epoch in epochs)
    assert {row for row in epochs[0] if row < 90} != {row for row in epochs[1] if row < 90}
    counts = [sum(epoch.count(row) for epoch in epochs) for row in range(90)]
    assert set(counts) == {5}  # 9 epochs of 50 rows are 5 shuffles of 90
    assert epochs[0] == [row for batch in sampler.batches(0) for row in batch]
    for batch in sampler.batches(0):
        passes = sampler.forward_passes(batch)
        assert sorted(row for rows in passes for row in rows) == sorted(batch)
        assert all(len({row < 90 for row in rows}) == 1 for rows in passes)


def test_every_process_makes_the_same_number_of_passes():
    parts = {"a": list(range(7)), "b": list(range(7, 12))}
    shares = {"a": 7 / 12, "b": 5 / 12}
    samplers = [MixtureSampler(parts, shares, [5] * 12, 5, 2, 0, True, Processes(rank, 3)) for rank in range(3)]
    for batch in samplers[0].batches(0):
        passes = [sampler.forward_passes(batch) for sampler in samplers]
        assert len({len(each) for each in passes}) == 1
        assert sorted(row for each in passes for rows in each for row in rows) == sorted(batch)
    loader = BatchLoader(samplers[2], lambda numbers, epoch: {"labels": torch.tensor(list(numbers))})
    for _, batches in loader.steps(1, 2):
        assert all(batch.part in ("a", "b") for batch in batches)


def test_a_mixture_of_an_earlier_version_still_answers(tmp_path):
    """Its classifications shared one head, whose columns are the classes of all parts."""
    two = {"a": PARTS["classes"], "b": Classify(labels=("film", "actor", "plot"), max_length=32)}
    stored = {"task": "mixture", "temperature": 1.0, "parts": {name: part.to_json() for name, part in two.items()}}
    mixture = Mixture.from_json(stored)
    host = Host(models.tiny("bert", dropout=False))
    head = Head(HeadConfig(outputs=5, width=host.model.config.hidden_size))
    host.attach("a", parse("LoRA(r=2)"), head=head, extra={"task": stored})
    host.save("a", tmp_path / "old", extra={"task": stored})
    other = Host(models.tiny("bert", dropout=False))
    other.load(tmp_path / "old", name="a")
    tokenizer, rows = models.tiny_tokenizer(), ROWS["classes"]
    whole = predict(other, "a", Classify(labels=tuple("vwxyz"), max_length=32), rows, tokenizer, precision="float32")
    for name, columns in (("a", slice(0, 2)), ("b", slice(2, 5))):
        logits = predict(other, "a", mixture, rows, tokenizer, precision="float32", part=name)
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(whole[:, columns]))
    marked = mixture.marked({"a": rows * 8, "b": [{"text": "the film", "label": "film"}] * 8})
    done = train(other, "a", mixture, marked, marked, tokenizer, QUIET)  # and it can be trained further
    assert set(done.evaluations[-1][1]) >= {"mean", "a.accuracy", "b.accuracy"}


def test_what_a_mixture_cannot_do_is_said():
    tokenizer = generation_tokenizer()
    host, mixture, rows = made("bert", ("classes", "tags"))
    text = Mixture({"classes": PARTS["classes"], "text": PARTS["text"]})
    with pytest.raises(DeltatuneError, match="encoder models cannot generate text"):
        train(host, "a", text, text.marked({n: ROWS[n] for n in text.parts}), None, tokenizer, QUIET)
    with pytest.raises(DeltatuneError, match="packing is for a single task"):
        train(host, "a", mixture, rows, None, tokenizer, Settings(packing=True))
    with pytest.raises(DeltatuneError, match="part tags of the mixture has no rows"):
        train(host, "a", mixture, mixture.marked({"classes": ROWS["classes"]}), None, tokenizer, QUIET)
    with pytest.raises(DeltatuneError, match="name a part"):
        predict(host, "a", PARTS["classes"], ROWS["classes"], tokenizer)
    probe, mixture, rows = made("llama", ("classes", "text"), "Probe()")
    with pytest.raises(DeltatuneError, match="part text uses the language-model head"):
        train(probe, "a", mixture, rows, None, tokenizer, QUIET)


@pytest.mark.parametrize("method", ["Full()", "Prefix(length=2)", "BitFit(missing='add')", "Prompt(length=3)"])
def test_other_methods_learn_mixtures_too(method):
    host, mixture, rows = made("llama", ("classes", "tags", "text"), method)
    rate = 1e-3 if method == "Full()" else 1e-2
    done = train(
        host,
        "a",
        mixture,
        rows,
        None,
        generation_tokenizer(),
        Settings(epochs=1, batch_size=4, learning_rate=rate, precision="float32"),
    )
    assert done.history


def test_a_probe_of_heads_alone_learns():
    host, mixture, rows = made("bert", ("classes", "tags"), "Probe()")
    done = train(host, "a", mixture, rows, None, models.tiny_tokenizer(), QUIET)
    assert min(loss for _, loss in done.history[3:]) < done.history[0][1]
