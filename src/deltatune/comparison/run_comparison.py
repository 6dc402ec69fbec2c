"""Comparison run: a learning-rate search on the validation rows for each method, then its test scores, once."""

from __future__ import annotations

import dataclasses
import shutil
import time
from typing import Any

from deltatune.comparison.candidates import Candidate
from deltatune.comparison.cells import CellRunner, OnEvent, Record
from deltatune.comparison.costs import costs_of
from deltatune.comparison.lr_search import Search
from deltatune.comparison.plan import Cell, Plan, Repeat
from deltatune.comparison.prompt_cells import FittedSessions, as_read
from deltatune.comparison.records import write_summary
from deltatune.comparison.report.page import write_report
from deltatune.comparison.summary import summarise
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.metrics.metric_facts import lower_is_better

SEARCH = "search"
"""Folder of the adapters that are kept until the search is over."""
TESTED = "-test"
"""Suffix of a cell's key in the records of its test scores."""


def run(plan: Plan, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Run what is left of a plan and return its summary; writes `summary.json` and `report.html` to its folder.

    Finished cells are read from the folder, so an interrupted comparison resumes where it stopped. A cell that fails
    is recorded and does not end the run.
    """
    with FolderLock(plan.out):
        return _run(plan, on_event)


def _run(plan: Plan, on_event: OnEvent | None) -> dict[str, Any]:
    comparison = Comparison(plan, on_event)
    cells = comparison.cells
    started = time.perf_counter()
    cells.notify("start", plan.name)
    finals = {candidate.text: comparison.run(candidate) for candidate in plan.candidates}
    elapsed = cells.earlier_seconds + time.perf_counter() - started
    summary = summarise(plan, finals, cells.records, comparison.searches, cells.failed, elapsed)
    write_summary(plan.out / "summary.json", summary)
    write_report(summary, plan.out / "report.html")
    cells.notify("done", plan.name, report=str(plan.out / "report.html"))
    return summary


class Comparison:
    """Learning-rate searches and test scores of the candidates of a plan."""

    def __init__(self, plan: Plan, on_event: OnEvent | None = None) -> None:
        self.plan = plan
        self.cells = CellRunner(plan, on_event)
        self.cells.total = plan.total
        self.cells.queue = [cell.describe() for candidate in plan.candidates for cell in _planned(plan, candidate)]
        self.sessions = FittedSessions(plan)
        self.searches: dict[str, Search] = {}
        """Finished searches by the method's text."""

    def run(self, candidate: Candidate) -> list[Record]:
        """Search the learning rate and test the runs of the chosen one; returns a record for each seed."""
        cells, plan = self.cells, self.plan
        end = cells.done + plan.runs_of(candidate)

        def train(rate: float, repeat: Repeat) -> Record | None:
            cell = Cell("search" if repeat == plan.repeats[0] else "seed", candidate, rate, *repeat)
            if cells.done >= end:  # more than was planned
                cells.total += 1
                cells.queue.insert(cells.done, cell.describe())
            record = cells.run(cell, self._stored(cell), self._save)
            return record if record["status"] == "ok" else None

        slack = plan.splits["validation"].examples ** -0.5  # about the standard error of a score of so many rows
        search = Search(candidate.rates, plan.repeats, train, self._score, slack)
        self.searches[candidate.text] = search
        cells.done = max(cells.done, end)
        finals = [self._test(candidate, record) for record in search.chosen]
        for records in search.runs.values():
            for record in records:
                # also of runs whose test scores are of an earlier session, which was killed before it came to this
                shutil.rmtree(plan.out / SEARCH / record["cell"].removesuffix(TESTED), ignore_errors=True)
        return [record for record in finals if record["status"] == "ok"]

    def _score(self, record: Record) -> float:
        """The primary metric on the validation rows, with the sign changed if lower is better."""
        metric = self.plan.session.task.metric
        value = float(record["scores"]["validation"][metric])
        return -value if lower_is_better(metric) else value

    def _stored(self, cell: Cell) -> Record | None:
        """A cell's record of an earlier session, if its adapter was tested or can still be tested."""
        records, key = self.cells.records, self.plan.key(cell)
        tested = records.get(key + TESTED, adapter=True)
        return tested or records.get(key, adapter=not self._is_tested(cell.candidate))

    def _is_tested(self, candidate: Candidate) -> bool:
        """Whether all seeds of some rate were tested: then the adapters of the search are no longer needed."""

        def is_stored(rate: float, repeat: Repeat) -> bool:
            key = self.plan.key(Cell("final", candidate, rate, *repeat)) + TESTED
            return self.cells.records.get(key, adapter=True) is not None

        return any(all(is_stored(rate, each) for each in self.plan.repeats) for rate in candidate.possible_rates)

    def _save(self, record: Record) -> Record:
        """Keep the trained adapter until the search is over."""
        folder, session = f"{SEARCH}/{record['cell']}", self.plan.session
        session.host.save(session.name, self.plan.out / folder)
        return record | {"adapter": folder}

    def _test(self, candidate: Candidate, trained: Record) -> Record:
        """Score a run of the chosen rate on the test rows, or take its record of an earlier session."""
        cell = Cell("final", candidate, trained["learning_rate"], trained["seed"], trained.get("draw"))
        key = self.plan.key(cell) + TESTED
        stored = self.cells.records.get(key, adapter=True)
        return stored or self.cells.attempt(cell, key, lambda: self._tested(cell, key, trained))

    def _tested(self, cell: Cell, key: str, trained: Record) -> Record:
        """Load a trained adapter, score it, keep it, and at the first repeat measure its inference costs."""
        plan, session = self.plan, self.plan.session
        own = self.sessions.opened(trained["adapter"])
        test = self.sessions.rows(own, "test")
        answers = own.predict(test)
        scores = {
            "validation": trained["scores"]["validation"],
            "test": own.task.score(answers, test.references),
            **{name: own.score(self.sessions.rows(own, name)) for name in plan.data.more_tests},
        }
        drawn = "" if cell.draw is None else f"-draw{cell.draw}"
        folder = f"adapters/{slug(cell.candidate.text)}{drawn}-seed{cell.seed}"
        session.host.save(session.name, plan.out / folder)
        size = sum((plan.out / folder / file).stat().st_size for file in ("adapter.json", "adapter.safetensors"))
        record = trained | self.cells.record_of(cell, key)
        record |= {"scores": scores, "adapter": folder, "adapter_bytes": size}
        if Repeat(cell.seed, cell.draw) == plan.repeats[0]:
            record |= dataclasses.asdict(costs_of(own, test, plan.splits["test"]))
            record["example"] = as_read(own, test) if record.get("prompts") else None
        return self.cells.records.add(record, answers)


def slug(text: str) -> str:
    """A method's text as a folder name: `LoRA-r-12`."""
    letters = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in text)
    return "-".join(part for part in letters.split("-") if part)


def _planned(plan: Plan, candidate: Candidate) -> list[Cell]:
    """The planned cells of a candidate, as far as they are known: the best rate is a guess."""
    others = [Cell("seed", candidate, candidate.rates[-1], *repeat) for repeat in plan.repeats[1:]]
    return [Cell("search", candidate, rate, *plan.repeats[0]) for rate in candidate.rates] + others
