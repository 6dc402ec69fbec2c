"""Checks before a comparison: every method is attached, and reads a row, before the first training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltatune.comparison.plans.candidates import Candidate
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data import Data, Row
from deltatune.methods.base_weights.unfreeze import Probe
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_method import PromptMethod, PromptRows
from deltatune.prompting.prompt_run import free_positions
from deltatune.tasks.task import Encoded
from deltatune.training.session import Session


def check_candidates(
    session: Session, data: Data, candidates: Sequence[Candidate], limited: bool, prompts: PromptOptions
) -> tuple[dict[str, int], dict[str, str]]:
    """Attach each method and encode a row for it, so that what cannot run is known before the first training.

    Returns the positions that each usable method leaves to texts (empty for a model without a limit), and why the other
    methods cannot be used. `limited`: texts may be shortened to those positions.
    """
    free: dict[str, int] = {}
    problems: dict[str, str] = {}
    for candidate in candidates:
        try:
            if isinstance(candidate.method, PromptMethod):
                rows, positions = PromptRows(data.train, data.validation), free_positions(session, candidate.method)
                candidate.method.check_session(session.limited(positions) if limited else session, rows, prompts)
                if positions is not None:
                    free[candidate.text] = positions
                continue
            session.attach(candidate.method, 0, head=False)
            if session.task.answers in ("text", "likelihood") and not session.host.trainable(session.name):
                raise DeltatuneError("it trains only a head, and this task uses the language-model head")
            positions = session.free_positions()
            (session.limited(positions) if limited else session).encode(data.train[:1])
            if positions is not None:
                free[candidate.text] = positions
        except DeltatuneError as error:
            problems[candidate.text] = str(error)
        finally:
            session.detach()
    if len(problems) == len(candidates) > 1 and len(set(problems.values())) == 1:
        raise DeltatuneError(next(iter(problems.values())))  # the data are at fault then, not the methods
    return free, problems


def length_note(session: Session, limited: Session, method: str) -> list[str]:
    """A note if one method limits the texts of all: with different texts the comparison would not be fair."""
    default, common = session.task.max_length, limited.task.max_length  # type: ignore[attr-defined]
    positions = session.positions
    if positions is None or common in (default, positions):
        return []
    return [
        f"all methods read at most {common} tokens of a text, not {default}: {method} takes {positions - common} of "
        f"the model's {positions} positions"
    ]


def encode_splits(session: Session, splits: Mapping[str, Sequence[Row]]) -> dict[str, Encoded]:
    """Tokens of each split, the same for all methods."""
    session.attach(Probe(), 0, head=False)  # it adds no tokens
    try:
        return {name: session.encode(rows) for name, rows in splits.items()}
    finally:
        session.detach()


def check_methods(problems: Mapping[str, str], defaults: bool, usable: int) -> list[str]:
    """Raise DeltatuneError for methods that cannot be compared; returns notes on default methods left out.

    defaults: whether nobody has named the methods. usable: the number of those that can be compared.
    """
    lines = [f"{method}: {reason}" for method, reason in problems.items()]
    if defaults and usable:
        return [f"left out: {line}" for line in lines]
    raise_all(lines, "these methods cannot be compared here:" if lines else "")
    if not usable:
        raise DeltatuneError("name at least one method, for example --method 'LoRA()' --method 'BitFit()'")
    return []
