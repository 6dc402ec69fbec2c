"""Scorers of tested runs: what is stored is read once, however often the methods are looked at."""

from types import SimpleNamespace

import numpy as np

from deltatune.comparison.results.decision import Decision, RunScorers, decide_pairs, runs_by_method
from deltatune.comparison.results.records import Records
from deltatune.tasks import Classify

ROWS = 60
DICE = np.random.default_rng(0)
TRUTH = np.arange(ROWS) % 2


def answers(share: float) -> np.ndarray:
    """Logits (N, 2) of which a share is right."""
    right = DICE.random(ROWS) < share
    return np.eye(2)[np.where(right, TRUTH, 1 - TRUTH)]


def stored(folder, shares, runs):
    """A plan, its records and the tested runs of methods with these shares of right answers."""
    task = Classify(labels=("a", "b"), metric="accuracy")
    test = SimpleNamespace(references=TRUTH, examples=ROWS)
    session = SimpleNamespace(task=task)
    plan = SimpleNamespace(session=session, splits={"test": test}, draws=None, margin=0.01, candidates=())
    records, finals = Records(folder), {}
    for name, share in shares.items():
        finals[name] = [{"method": f"{name}()", "cell": f"{name}-{seed}"} for seed in range(runs)]
        for run in finals[name]:
            records.keep(run["cell"], answers(share))
    return plan, records, finals


def test_answers_are_read_once_for_all_looks(tmp_path, monkeypatch):
    plan, records, finals = stored(tmp_path, {"good": 0.95, "poor": 0.4, "none": 0.5}, runs=3)
    finals["none"] = []
    asked, read = [], records.answers
    monkeypatch.setattr(records, "answers", lambda key: asked.append(key) or read(key))
    scorers, decision = RunScorers(plan, records), Decision()
    for runs in (2, 3, 3):
        some = {name: each[:runs] for name, each in finals.items()}
        decision = decide_pairs(plan, some, scorers, decision)
        fresh = RunScorers(plan, Records(tmp_path)).of(runs_by_method(some))
        weights = np.ones((1, ROWS))
        for method, known in scorers.of(runs_by_method(some)).items():
            assert [scorer(weights).item() for scorer in known] == [scorer(weights).item() for scorer in fresh[method]]
    assert sorted(asked) == sorted(f"{name}-{seed}" for name in ("good", "poor") for seed in range(3))
    assert [len(look) for look in decision.looks] == [1, 1, 1]
    assert {decision.pairs[0].first, decision.pairs[0].second} == {"good()", "poor()"}
    assert not decision.open_methods(), "0.95 and 0.4 are told apart"


def test_a_single_method_is_no_pair_and_nothing_is_read(tmp_path, monkeypatch):
    plan, records, finals = stored(tmp_path, {"good": 0.9}, runs=2)
    monkeypatch.setattr(records, "answers", lambda key: 1 / 0)
    decision = decide_pairs(plan, finals, RunScorers(plan, records), Decision())
    assert decision.looks == ((),)


def test_draws_belong_to_runs_only_where_rows_are_drawn(tmp_path):
    plan, records, finals = stored(tmp_path, {"good": 0.9}, runs=2)
    assert RunScorers(plan, records).draws(runs_by_method(finals)) is None
    plan.draws = 2
    for i, run in enumerate(finals["good"]):
        run["draw"] = i
    assert RunScorers(plan, records).draws(runs_by_method(finals)) == {"good()": [0, 1]}
