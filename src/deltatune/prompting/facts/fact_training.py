"""Training of prompts for one relation: virtual tokens in a wording, on a model that stays as it is.

OptiPrompt, Zhong et al. 2021, https://arxiv.org/abs/2104.05240; P-tuning, Liu et al. 2021,
https://arxiv.org/abs/2103.10385
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.prompting.facts.wordings import as_template, softened
from deltatune.prompting.prompt_cost import counted
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.fact_completion import FactCompletion
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Encoded, Row
from deltatune.tasks.tokenization import longest_input
from deltatune.training.inference.prediction import positions_taken
from deltatune.training.session import Session
from deltatune.training.settings import Settings
from deltatune.training.training_loop.checkpoint import digest_of

NAME = "fact-prompt"
"""Name of the adapter on the host."""
SETTINGS = Settings(epochs=10, batch_size=16, learning_rate=3e-3, warmup=0.1, schedule="linear")
"""Those of OptiPrompt's code."""


def prompt_method(text: str | Method, wording: str | None, from_wording: bool = False) -> tuple[Method, str]:
    """The method with its template, and the template: its own, else the relation's wording.

    from_wording: virtual tokens in place of the wording's words, from whose vectors they start; the method must take a
    template. Raises DeltatuneError where there is neither a template nor a wording.
    """
    method = parse(text)
    own = method.input_template
    if from_wording:
        if not hasattr(method, "template"):
            raise DeltatuneError(
                f"{method!r} takes no template that words could start; use Prompt() to train from them"
            )
        if own:
            raise DeltatuneError(f"{method!r} has a template; leave it out to start from the words of a wording")
        if wording is None:
            raise DeltatuneError("there is no wording to start from; name one with --template")
        template = softened(wording)
        return dataclasses.replace(method, template=template), template  # type: ignore[call-arg]
    if own:
        template = as_template(own)
        if all(part.kind != "virtual" for part in Template(template).parts):
            raise DeltatuneError(f"the template of {method!r} has no virtual tokens to train: {{5}}, or {{soft:words}}")
        return dataclasses.replace(method, template=template), template  # type: ignore[call-arg]
    if wording is None:
        raise DeltatuneError(f"{method!r} has no template, and there is no wording; name one with --template")
    return method, as_template(wording)


def train_prompt(
    host: Host,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    task: FactCompletion,
    method: Method,
    rows: Sequence[Row],
    validation: Sequence[Row] = (),
    settings: Settings = SETTINGS,
    folder: Path | None = None,
    force: bool = False,
    quantize: str | None = None,
) -> tuple[Session, dict[str, Any]]:
    """Train a method on the facts of one relation, in the task's wording; the adapter `NAME` is then on the host.

    Returns the session and the facts of the training: parameters, steps, cost, scores of the validation rows. Rows
    whose object is not one token are left out. With a folder, the adapter is saved there with its scores, and the same
    call loads it again instead of training. `quantize` says how the host's base is stored. Raises DeltatuneError where
    no row is left to train on.
    """
    if NAME in host.adapters:
        host.detach(NAME)
    session = Session(model, host, tokenizer, task, precision=settings.precision, name=NAME, quantize=quantize)
    fitted = session.fit(method)
    session.attach(fitted, settings.seed, False)
    encoded, problems = {}, Counter[str]()
    for split, part in (("train", rows), ("validation", validation)):
        encoded[split], why = _scorable(session, part)
        problems += Counter(why.values()) if split == "train" else Counter()
    if not len(encoded["train"]):
        listed = ", ".join(f"{count} {reason}" for reason, count in problems.items())
        raise DeltatuneError(f"none of the {len(rows)} rows to train on can be used: {listed or 'there are none'}")
    if folder is None:
        return session, _train(session, encoded, settings)["training"]
    record = _record(session, encoded, settings)
    with FolderLock(folder, option="--prompts "):
        finished = run_folder.open_run(folder, record, force, option="--prompts ")
        if finished is not None:
            session.detach()
            host.load(folder / run_folder.ADAPTER, name=NAME)
            return session, finished["training"]
        metrics = _train(session, encoded, settings)
        host.save(NAME, folder / run_folder.ADAPTER, extra={**record, **session.to_json(), "scores": metrics})
        run_folder.finish(folder, metrics)
    return session, metrics["training"]


def _train(session: Session, encoded: Mapping[str, Encoded], settings: Settings) -> dict[str, Any]:
    """Train the session's adapter; the content of metrics.json."""
    parameters = sum(parameter.numel() for _, parameter in session.host.trainable(session.name))
    with counted(session.host) as cost:
        outcome = session.train(encoded["train"], encoded["validation"], settings)
    scores = outcome.evaluations[-1][1] if outcome.evaluations else {}
    facts = {
        "rows": len(encoded["train"]),
        "validation_rows": len(encoded["validation"]),
        "parameters": parameters,
        "steps": outcome.history[-1][0],
        "final_loss": outcome.history[-1][1],
        "validation": scores,
        "cost": cost.to_json(),
    }
    return {"validation": scores, "training": facts}


def _scorable(session: Session, rows: Sequence[Row]) -> tuple[Encoded, dict[int, str]]:
    """The rows whose objects are one token, encoded for the session's adapter, and why the others are left out."""
    host, task = session.host, session.task
    assert isinstance(task, FactCompletion)
    taken = positions_taken(host, session.name)
    _, problems = task.encode_scorable(rows, session.tokenizer, longest_input(host.model), taken)
    return session.encode([row for i, row in enumerate(rows) if i not in problems]), problems


def _record(session: Session, encoded: Mapping[str, Encoded], settings: Settings) -> Mapping[str, Any]:
    """What decides the result: two runs with equal records are the same run."""
    return {
        "model": session.model,
        "base": session.base_record(),
        "task": session.task.to_json(),
        "method": repr(session.adapter.method),
        "settings": settings.record(),
        "rows": {split: digest_of(part.rows) for split, part in encoded.items()},
    }
