"""What a study of facts asks: its settings, the rows, and the wordings of each relation, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.registry import parse
from deltatune.data import read_rows
from deltatune.data.sources.open_source import open_source
from deltatune.data.sources.split_names import match_splits
from deltatune.prompting.facts.fact_rows import FactRows, fact_columns, facts_of
from deltatune.prompting.facts.fact_training import SETTINGS
from deltatune.prompting.facts.wordings import BESIDE, as_template, read_wordings
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.tasks.task import Row
from deltatune.training.settings import Settings


@dataclass(frozen=True)
class FactStudy:
    """Which facts are asked for, how, and of which model."""

    model: str | None = None
    """The pretrained model: a folder or a name on the hub."""
    data: str = ""
    """Facts: rows with a subject, an object and maybe a relation, in a file, or a folder whose test rows are scored."""
    relations: tuple[str, ...] = ()
    """Only these relations."""
    subject: str | None = None
    """The column of subjects. Default: inferred."""
    object: str | None = None
    """The column of objects. Default: inferred."""
    limit: int | None = None
    """Score the first rows of each relation only."""
    adapter: str | None = None
    """An adapter that acts on the model."""
    other_base: bool = False
    """Load the adapter onto a base whose weights differ from those at training."""
    quantize: str | None = None
    """How the model's linear maps are stored, such as nf4. Default: as they were published, or when the adapter was
    trained."""
    wordings: tuple[str, ...] = ()
    """Wordings of one relation."""
    templates: str | None = None
    """Rows with relation, template and templates (a list). Default: relations.jsonl beside the data."""
    candidates: str | None = None
    """Rank only these words, a file with one a line; or objects, those of the relation in the data."""
    top: tuple[int, ...] = (1, 10)
    """k of P@k."""
    methods: tuple[str, ...] = ()
    """Methods that are trained for each relation on the training rows, and scored beside the wordings."""
    from_wording: bool = False
    """Start from the relation's first wording: a trained vector for each token of its words."""
    train: str | None = None
    """Rows to train on. Default: the training rows of the data's folder."""
    settings: Settings = SETTINGS
    """Settings of the training."""
    over: Literal["vocabulary", "candidates"] = "vocabulary"
    """What the probability in the loss is shared by: vocabulary or candidates."""
    prompts: str | None = None
    """Folder of trained prompts, an adapter for each relation. Default: runs/facts-<data>."""
    force: bool = False
    """Delete the trained prompts in that folder and train again."""

    @property
    def needs_wordings(self) -> bool:
        """Whether a relation without a wording has nothing to be asked with."""
        return self.adapter is None and not (self.methods and all(parse(text).input_template for text in self.methods))

    def __post_init__(self) -> None:
        check_fields(self)
        problems = []
        if not self.data:
            problems.append("name the facts: --data FILE, rows with a subject and an object")
        if self.model is None and self.adapter is None:
            problems.append("name a model: --model MODEL, or --adapter FOLDER with the model that it was trained on")
        if self.wordings and self.templates:
            problems.append("--template and --templates both give wordings: give one of them")
        if self.adapter and self.methods:
            problems.append("--optimise trains prompts on the model as it is: leave --adapter out")
        training = {"--train": self.train, "--from-wording": self.from_wording, "--prompts": self.prompts}
        if not self.methods:
            problems += [
                f"{name} is for --optimise, which names what is trained" for name, on in training.items() if on
            ]
        if self.over == "candidates" and not self.candidates:
            problems.append("--over candidates needs --candidates")
        problems += [f"--top {k}: at least 1" for k in self.top if k < 1]
        problems += [] if self.top else ["--top: at least one k is needed"]
        raise_all(problems)
        raise_all([
            f"--optimise {text}: it prompts for classes or answers; facts take a method that trains, such as Prompt() "
            "or PTuning()"
            for text in self.methods
            if isinstance(parse(text), PromptMethod)
        ])  # fmt: skip


@dataclass(frozen=True)
class OpenedFacts:
    """Rows and wordings of a study, read and checked."""

    scored: FactRows
    training: FactRows | None
    validation: FactRows | None
    everything: FactRows
    """The facts of all splits, whose objects may be the candidates."""
    wordings: dict[str, tuple[str, ...]]
    """Wordings of each relation that has any."""
    notes: list[str]


def open_facts(study: FactStudy) -> OpenedFacts:
    """Read and check the rows and the wordings of a study."""
    opened = open_source(study.data)
    splits = dict(opened.splits)
    single = list(splits) == ["train"]
    rows = splits["train"] if single else splits.get("test")
    if rows is None:
        raise DeltatuneError(f"{study.data} has no test rows, only {', '.join(splits)}; name the file to score")
    columns = fact_columns(rows, study.data, study.subject, study.object)
    whole = facts_of(rows, study.data, columns)
    scored = whole.of(study.relations)
    if study.limit is not None:
        scored = replace(scored, relations={r: listed[: study.limit] for r, listed in scored.relations.items()})
    notes: list[str] = []
    training = validation = None
    if study.methods:
        source, train_rows, validation_rows = _training_rows(study, splits, single)
        training, dropped = facts_of(train_rows, source, columns).shared(scored).without(whole)
        if dropped:
            notes.append(f"not trained on, because they are scored: {dropped} of the facts in {source}")
        if validation_rows:
            validation, _ = facts_of(validation_rows, source, columns).shared(scored).without(whole)
    every_row = [row for split in splits.values() for row in split]
    everything = whole if single else facts_of(every_row, study.data, columns)
    wordings = _wordings(study, scored, notes)
    return OpenedFacts(scored, training, validation, everything, wordings, notes)


def _training_rows(
    study: FactStudy, splits: Mapping[str, Sequence[Row]], single: bool
) -> tuple[str, Sequence[Row], Sequence[Row]]:
    """The source of the rows to train on, those rows, and rows to validate."""
    if study.train is not None:
        given = open_source(study.train).splits
        if "train" not in given:
            raise DeltatuneError(f"--train {study.train} has no training rows, only {', '.join(given)}")
        return study.train, given["train"], given.get("validation", ())
    if not single and "train" in splits:
        return study.data, splits["train"], splits.get("validation", ())
    path = expanded(study.data)
    files = {file.name.partition(".")[0]: file for file in path.parent.iterdir() if file.is_file() and file != path}
    beside = {split: files[name] for split, name in match_splits(files, in_parts=False).splits.items() if name in files}
    if not path.is_file() or "train" not in beside:
        raise DeltatuneError(
            f"--optimise needs rows to train on: {study.data} is scored, and there is no train file beside it; name "
            "one with --train"
        )
    validation = read_rows(beside["validation"]) if "validation" in beside else ()
    return str(beside["train"]), read_rows(beside["train"]), validation


def _wordings(study: FactStudy, facts: FactRows, notes: list[str]) -> dict[str, tuple[str, ...]]:
    """The wordings of each relation. Raises DeltatuneError where there are none, and for wordings of no relation."""
    relations = list(facts.relations)
    if study.wordings:
        problems = []
        for wording in study.wordings:
            try:
                as_template(wording)
            except DeltatuneError as error:
                problems.append(str(error))
        raise_all(problems)
        if len(relations) > 1:
            raise DeltatuneError(
                f"--template is for one relation, and {study.data} has {len(relations)}: name one with --relation, "
                f"such as {relations[0]}"
            )
        return {relations[0]: tuple(dict.fromkeys(study.wordings))}
    path = None if study.templates is None else expanded(study.templates)
    if path is None:
        place = expanded(study.data)
        beside = (place if place.is_dir() else place.parent) / BESIDE
        path = beside if beside.is_file() else None
    listed = {} if path is None else read_wordings(path)
    without = [relation for relation in relations if not listed.get(relation)]
    if study.needs_wordings and len(without) == len(relations):
        if path is None:
            raise DeltatuneError(
                'there are no wordings: give one with --template "[X] is located in [Y].", or a file with --templates '
                f"({BESIDE} beside the data is found by itself)"
            )
        if not relations[0]:
            raise DeltatuneError(
                f"{study.data} has no column of relations, so no wording of {path} is known to be for it: give one "
                "with --template"
            )
        near = nearest(relations[0], listed)
        raise DeltatuneError(f"{path} has no wording for {', '.join(map(repr, relations[:5]))}{near}")
    if without and study.needs_wordings and path is not None:
        notes.append(f"no wording in {path.name}, left out: {', '.join(without)}")
    return {r: listed.get(r, ()) for r in relations if listed.get(r) or not study.needs_wordings}
