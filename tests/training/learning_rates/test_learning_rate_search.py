"""`learning_rate: auto`: the best of several rates goes on from its pause, within a share of the run's cost."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune import Host, parse
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Classify, Generate, Mixture
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.tasks.task import Encoded
from deltatune.training import Settings, train
from deltatune.training.learning_rates.rate_search import (
    FEWEST_SCORED,
    RATES,
    SCORING,
    SHARE,
    plan_search,
    some_rows,
)
from deltatune.training.learning_rates.recommended_rate import recommended_rate
from deltatune.training.reporting import read
from support import models
from support.command_line import ran, review_folder
from support.language_models import generation_tokenizer
from support.runs import ROWS, TASK, assert_same, host_with, make_rows, tensors

TOKENIZER = models.tiny_tokenizer()
AUTO = Settings(epochs=6, batch_size=4, precision="float32", learning_rate="auto", evaluate="epoch", seed=3)
"""108 steps."""
VALIDATION = make_rows(40, seed=5)


class Stopped(Exception):
    pass


def stop_after(count):
    """Stops at the `count`-th step of all runs."""
    seen = 0

    def on_step(step, total, loss, rate):
        nonlocal seen
        seen += 1
        if seen == count:
            raise Stopped

    return on_step


def trained(host, out=None, settings=AUTO, on_step=None, rows=ROWS, validation=VALIDATION, **options):
    return train(host, "a", TASK, rows, validation, TOKENIZER, settings, out, on_step, **options)


def steps_logged(folder):
    return [{name: value for name, value in line.items() if "second" not in name} for line in read(folder)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A host, its outcome and the folder of a run whose rate was searched."""
    host, out = host_with(), tmp_path_factory.mktemp("searched")
    return host, trained(host, out), out


@pytest.mark.slow
def test_the_chosen_run_is_the_one_of_its_rate(searched, tmp_path):
    host, outcome, out = searched
    given = host_with()
    wanted = trained(given, tmp_path, dataclasses.replace(AUTO, learning_rate=outcome.learning_rate))
    assert_same(tensors(host), tensors(given))
    assert (outcome.history, outcome.evaluations) == (wanted.history, wanted.evaluations)
    assert steps_logged(out / "metrics.jsonl") == steps_logged(tmp_path / "metrics.jsonl")
    assert wanted.search is None
    np.testing.assert_equal(vars(host.adapters["a"].trained_rows), vars(given.adapters["a"].trained_rows))


def test_it_tries_rates_around_the_recommended_one_within_its_share(searched):
    _, outcome, _ = searched
    search = outcome.search
    first, second = plan_search(AUTO, TASK, Encoded([{}] * 70), Encoded([{"label": 0}] * 40)).rungs
    rates = sorted({each["rate"] for each in search.tried})
    assert recommended_rate(parse("LoRA(r=4)"), 108) in rates
    assert len(rates) in (3, 4)
    assert all(high / low == pytest.approx(3, rel=0.05) for low, high in itertools.pairwise(rates))
    assert 0 < search.steps <= SHARE * 108
    at = {step: {each["rate"]: each for each in search.tried if each["step"] == step} for step in (first, second)}
    kept = {rate for rate, each in at[first].items() if each["kept"]}
    assert kept == at[second].keys()
    assert len(kept) == 2
    assert min(at[first][rate]["score"] for rate in kept) >= max(
        each["score"] for rate, each in at[first].items() if rate not in kept
    )
    best = max(at[second].values(), key=lambda each: each["score"])
    assert (outcome.learning_rate, best["score"]) == (search.rate, at[second][search.rate]["score"])
    assert json.loads(json.dumps(search.to_json()))["tried"] == [dict(each) for each in search.tried]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("stop", [14, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (34, 60))])
def test_an_interrupted_search_goes_on(stop, searched, tmp_path):
    host, wanted, whole = searched
    with pytest.raises(Stopped):
        trained(host_with(), tmp_path, on_step=stop_after(stop))
    seen = []
    again = host_with(head_seed=0)
    outcome = trained(again, tmp_path, on_step=lambda step, *_: seen.append(step))
    assert_same(tensors(host), tensors(again))
    assert (outcome.history, outcome.evaluations) == (wanted.history, wanted.evaluations)
    assert [dict(each) for each in outcome.search.tried] == [dict(each) for each in wanted.search.tried]
    assert steps_logged(tmp_path / "metrics.jsonl") == steps_logged(whole / "metrics.jsonl")
    assert len(seen) < 108 + wanted.search.steps
    assert trained(host_with(), tmp_path, on_step=stop_after(1)).search == outcome.search, "finished: nothing is run"


def test_another_run_in_the_folder_is_refused(searched, tmp_path):
    _, _, out = searched
    with pytest.raises(DeltatuneError, match=r"another run:(?s:.*)settings.seed"):
        trained(host_with(), out, dataclasses.replace(AUTO, seed=4))
    fixed = dataclasses.replace(AUTO, learning_rate=1e-3, epochs=1)
    trained(host_with(), tmp_path, fixed)
    with pytest.raises(DeltatuneError, match=r"settings.learning_rate: the checkpoint has 0.001, this run has 'auto'"):
        trained(host_with(), tmp_path, dataclasses.replace(fixed, learning_rate="auto", epochs=20))


@pytest.mark.slow
def test_without_a_folder_it_searches_too(searched):
    host, wanted, _ = searched
    again = host_with()
    assert trained(again).search.rate == wanted.search.rate
    assert_same(tensors(host), tensors(again))


def test_rates_that_diverge_are_left(tmp_path, monkeypatch):
    """A rate whose loss is not finite fails; the others are compared."""
    from deltatune.training.training_loop.loop import TrainingLoop

    middle, train_ = recommended_rate(parse("LoRA(r=4)"), 108), TrainingLoop.run
    limit = middle

    def fails_above(self, *args):
        if self.settings.learning_rate >= limit:
            raise DeltatuneError("the loss became nan")
        train_(self, *args)

    monkeypatch.setattr(TrainingLoop, "run", fails_above)
    outcome = trained(host_with(), tmp_path / "some")
    assert outcome.learning_rate < middle
    assert {each["rate"] for each in outcome.search.tried if each["score"] is None} >= {middle}
    limit = 0.0
    with pytest.raises(DeltatuneError, match=r"(?s)no learning rate of .* can be trained with: the loss became nan"):
        trained(host_with(), tmp_path / "none")


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 5000), st.sampled_from([0, 32]))
def test_a_search_costs_no_more_than_its_share(steps, batch, rows, new_tokens):
    task = dataclasses.make_dataclass("Task", [("new_tokens", int)])(new_tokens)
    settings = Settings(max_steps=steps, batch_size=batch, learning_rate="auto")
    train_rows, validation = Encoded([{}] * 10), Encoded([{"label": 0}] * rows)
    try:
        plan = plan_search(settings, task, train_rows, validation)
    except DeltatuneError as error:
        needed = int(str(error).partition("a run of about ")[2].split()[0])
        assert needed > steps
        plan_search(dataclasses.replace(settings, max_steps=2 * needed), task, train_rows, validation)
        return
    arms = RATES + plan.extensions
    extra_steps = (arms - 1) * plan.rungs[0] + (plan.rungs[1] - plan.rungs[0] if len(plan.rungs) > 1 else 0)
    scorings = arms + 2 * (len(plan.rungs) - 1)
    cost = extra_steps * batch + scorings * plan.scored * SCORING * (1 + new_tokens / 8)
    assert cost <= SHARE * steps * batch
    assert min(rows, FEWEST_SCORED) <= plan.scored <= rows
    assert plan.rungs[-1] < steps


def test_what_cannot_be_searched_is_refused(monkeypatch):
    few = dataclasses.replace(AUTO, epochs=1)
    with pytest.raises(DeltatuneError, match=r"takes a run of about \d+ steps, and this one has 18; give a rate"):
        trained(host_with(), settings=few)
    for validation in (None, []):
        with pytest.raises(DeltatuneError, match="there are none: add some, or give a rate"):
            trained(host_with(), validation=validation)
    with pytest.raises(DeltatuneError, match="until=5: a run whose learning_rate is auto does not pause"):
        trained(host_with(), until=5)
    with pytest.raises(DeltatuneError, match="learning_rate='auto': a number is needed here"):
        AUTO.peak_rate  # noqa: B018
    with pytest.raises(DeltatuneError, match=r"learning_rate must be a number or one of 'auto' or None"):
        Settings(learning_rate="high")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DeltatuneError, match="searches in one process, and this run has 2"):
        plan_search(AUTO, TASK, Encoded([{}] * 70), Encoded([{"label": 0}] * 40))


def test_rows_that_score_are_spread_over_all():
    rows = [{"input_ids": [i], "label": i} for i in range(100)]
    assert [row["label"] for row in some_rows(Encoded(rows), 5)] == [0, 20, 40, 60, 80]
    assert some_rows(Encoded(rows), 100).rows == rows
    pieces = Encoded(rows, owners=[i // 2 for i in range(100)], facts=list(range(50)), row_references=list("ab" * 25))
    some = some_rows(pieces, 10)
    assert [row["label"] for row in some] == [i for i in range(100) if i // 2 % 5 == 0]
    assert some.owners == [i // 2 for i in range(20)]
    assert (some.examples, some.facts, some.references) == (10, list(range(0, 50, 5)), list("ab" * 5))


WORDS = ("film", "plot")
PARTS = {
    "classes": Classify(labels=("bad", "good"), max_length=16),
    "number": Classify(labels=(), max_length=16),
    "text": Generate(text=("input",), label="output", prompt="plain", new_tokens=2, max_length=16),
}
PART_ROWS = {
    "classes": [{"text": f"the film is {word}", "label": word} for word in ("good", "bad")] * 12,
    "number": [{"text": f"{word} film", "label": value} for word, value in (("good", 1.0), ("bad", -1.0))] * 12,
    "text": [{"input": f"the {word}", "output": word, "references": [word]} for word in WORDS] * 12,
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ("classes", "number")),
        pytest.param("llama", ("text",), marks=pytest.mark.slow),
        pytest.param("bert", ("number",), marks=pytest.mark.slow),
    ],
)
def test_mixtures_texts_and_numbers_are_searched_too(kind, names):
    task = PARTS[names[0]] if len(names) == 1 else Mixture({name: PARTS[name] for name in names})
    rows = (
        PART_ROWS[names[0]] if isinstance(task, Classify | Generate) else task.marked({n: PART_ROWS[n] for n in names})
    )
    host = Host(models.tiny(kind, "lm") if "text" in names else models.tiny(kind))
    host.attach("a", parse("LoRA(r=2)"), head=task.make_head(host.model.config, 0) or False)
    tokenizer = generation_tokenizer() if "text" in names else TOKENIZER
    settings = Settings(max_steps=160, batch_size=4, precision="float32", learning_rate="auto")
    outcome = train(host, "a", task, rows, rows, tokenizer, settings)
    assert outcome.search.metric == task.metric
    assert outcome.search.steps <= SHARE * 160
    assert outcome.history[-1][0] == 160
    scores = [
        each["score"] for each in outcome.search.tried if each["step"] == max(e["step"] for e in outcome.search.tried)
    ]
    kept = next(each["score"] for each in outcome.search.tried if each["kept"] and each["rate"] == outcome.learning_rate
                and each["score"] in scores)  # fmt: skip
    assert kept == (min if lower_is_better(task.metric) else max)(scores)


@pytest.mark.slow
def test_an_adapter_is_trained_further_at_a_searched_rate(tmp_path):
    data, model = review_folder(tmp_path / "data"), tmp_path / "model"
    models.tiny("bert").save_pretrained(model)
    TOKENIZER.save_pretrained(model)
    quick = ["--data", data, "--epochs", 12, "--batch-size", 4, "--precision", "float32"]
    assert (
        ran("train", "--model", model, *quick, "--lr", "1e-2", "--max-length", 16, "--out", tmp_path / "one").code == 0
    )
    done = ran("train", "--from", tmp_path / "one", *quick, "--lr", "auto", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    assert "The search added" in " ".join(done.out.split())


@pytest.mark.slow
def test_the_command_says_what_it_tried(tmp_path):
    data, model = review_folder(tmp_path / "data"), tmp_path / "model"
    models.tiny("bert").save_pretrained(model)
    TOKENIZER.save_pretrained(model)
    command = ["train", "--model", model, "--data", data, "--lr", "auto", "--epochs", 12, "--batch-size", 4]
    command += ["--max-length", 16, "--precision", "float32", "--out", tmp_path / "run"]
    done = ran(*command)
    assert done.code == 0, done.err
    assert "learning rate searched: 3" in " ".join(done.out.split())
    found = json.loads((tmp_path / "run/metrics.json").read_text())["training"]
    assert found["learning_rate"] == found["search"]["rate"]
    assert math.isfinite(found["search"]["seconds"])
    assert "chosen by validation accuracy: " in " ".join(done.out.split())
    assert f"The search added {found['search']['steps']} steps and" in " ".join(done.out.split())
    assert not (tmp_path / "run/checkpoints").exists()
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["learning_rate"] == "auto"
    finished = ran(*command)
    assert "This run was finished before" in finished.out
    assert "The search added" in finished.out
    assert "give a number such as 2e-3, or auto, did you mean 'auto'?" in ran(*command[:5], "--lr", "outo").err
    prompting = ran(*command[:5], "--lr", "auto", "--method", "Cloze(LoRA())")
    assert "with a head of their own, not for" in prompting.err
