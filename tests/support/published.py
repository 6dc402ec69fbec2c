"""Published data sets in the exact form of the hub, a few rows each: columns, features and splits.

The texts are made up; the column names, types, class names and hidden labels are those of the sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

TRAIN, HELD_OUT = 40, 6
"""Rows of train, and of every other split."""


@dataclass(frozen=True)
class Published:
    """One data set."""

    splits: Mapping[str, Rows]
    """Rows by the hub's name of the split, class numbers as the hub has them."""
    class_names: Mapping[str, Sequence[str]]
    """Column -> the names of its class numbers."""

    def load(self) -> Any:
        """The `datasets.DatasetDict` that `load_dataset` returns."""
        import datasets

        return datasets.DatasetDict({split: self._dataset(rows) for split, rows in self.splits.items()})

    def _dataset(self, rows: Rows) -> Any:
        import datasets

        plain = datasets.Dataset.from_list(rows)
        features = plain.features.copy()
        for column, names in self.class_names.items():
            labels = datasets.ClassLabel(names=list(names))
            features[column] = datasets.List(labels) if isinstance(rows[0][column], list) else labels
        return plain.cast(features)

    def write_parquet(self, folder: Path) -> Path:
        """The files of the hub, in `data/` of a repository."""
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text("# A data card\n")
        for split, rows in self.load().items():
            rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    def write_arrow(self, folder: Path) -> Path:
        """`DatasetDict.save_to_disk`."""
        self.load().save_to_disk(folder)
        return folder

    def write_jsonl(self, folder: Path) -> Path:
        """One JSON object per line; class numbers stay numbers, as nothing names them."""
        folder.mkdir(parents=True)
        for split, rows in self.splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder


def made(
    make: Callable[[int], dict[str, Any]],
    names: Mapping[str, Sequence[str]] | None = None,
    splits: Sequence[str] = ("train", "validation", "test"),
    hidden: Mapping[str, Mapping[str, Any]] | None = None,
) -> Published:
    """Rows from their numbers; `hidden`: split -> the values that its rows have in place of their own."""
    rows, start = {}, 0
    for split in splits:
        size = TRAIN if split == "train" else HELD_OUT
        rows[split] = [{**make(i), **(hidden or {}).get(split, {})} for i in range(start, start + size)]
        start += size
    return Published(rows, names or {})


def _glue(columns: Sequence[str], names: Sequence[str], hidden: bool = True, **kinds: Any) -> Published:
    def make(i: int) -> dict[str, Any]:
        return {**{name: f"{name} about thing {i}" for name in columns}, "label": i % len(names), "idx": i}

    return made(make, {"label": names}, hidden={"test": {"label": -1}} if hidden else None, **kinds)


def _stsb(i: int) -> dict[str, Any]:
    return {"sentence1": f"one {i}", "sentence2": f"two {i}", "label": (i * 7 % 26) / 5, "idx": i}


NLI = ("entailment", "neutral", "contradiction")
MNLI_SPLITS = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
UNKNOWN = {"label": -1}

GLUE = {
    "cola": _glue(("sentence",), ("unacceptable", "acceptable")),
    "sst2": _glue(("sentence",), ("negative", "positive")),
    "mrpc": _glue(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), hidden=False),
    "qqp": _glue(("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": made(_stsb, hidden={"test": {"label": -1.0}}),
    "mnli": made(
        lambda i: {"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3, "idx": i}, {"label": NLI}, MNLI_SPLITS,
        {"test_matched": UNKNOWN, "test_mismatched": UNKNOWN},
    ),
    "qnli": _glue(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": _glue(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": _glue(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}  # fmt: skip
"""`nyu-mll/glue`, by configuration."""

YES_NO = {"label": ("False", "True")}
HIDDEN = {"test": UNKNOWN}


def _copa(i: int) -> dict[str, Any]:
    return {
        "premise": f"thing {i} fell", "choice1": f"a {i}", "choice2": f"b {i}", "question": ("cause", "effect")[i % 2],
        "idx": i, "label": i // 2 % 2,
    }  # fmt: skip


def _wic(i: int) -> dict[str, Any]:
    return {
        "word": "place", "sentence1": f"a place {i}", "sentence2": f"place it {i}", "start1": 2, "start2": 0, "end1": 7,
        "end2": 5, "idx": i, "label": i % 2,
    }  # fmt: skip


def _wsc(i: int) -> dict[str, Any]:
    return {
        "text": f"Mark told Pete {i} lies about himself", "span1_index": 0, "span2_index": 6, "span1_text": "Mark",
        "span2_text": "himself", "idx": i, "label": i % 2,
    }  # fmt: skip


def _multirc(i: int) -> dict[str, Any]:
    return {
        "paragraph": f"paragraph {i // 4} tells of it", "question": f"what {i // 2}?", "answer": f"answer {i}",
        "idx": {"paragraph": i // 4, "question": i // 2, "answer": i}, "label": i % 2,
    }  # fmt: skip


def _record(i: int) -> dict[str, Any]:
    passage = f"Ann {i} met Bob in Paris.\n@highlight\nAnn {i} was glad"
    return {
        "passage": passage, "query": f"@placeholder {i} was in Paris", "entities": ["Bob", f"Ann {i}"],
        "entity_spans": {"text": [f"Ann {i}"], "start": [0], "end": [5]}, "answers": ["Bob", f"Ann {i}"],
        "idx": {"passage": i, "query": i},
    }  # fmt: skip


SUPER_GLUE = {
    "boolq": made(
        lambda i: {"question": f"is it {i}", "passage": f"it is {i}", "idx": i, "label": i % 2}, YES_NO, hidden=HIDDEN
    ),
    "cb": made(
        lambda i: {"premise": f"p {i}", "hypothesis": f"h {i}", "idx": i, "label": i % 3},
        {"label": ("entailment", "contradiction", "neutral")}, hidden=HIDDEN,
    ),
    "copa": made(_copa, {"label": ("choice1", "choice2")}, hidden=HIDDEN),
    "multirc": made(_multirc, YES_NO, hidden=HIDDEN),
    "record": made(_record, hidden={"test": {"answers": []}}),
    "rte": made(
        lambda i: {"premise": f"p {i}", "hypothesis": f"h {i}", "idx": i, "label": i % 2},
        {"label": ("entailment", "not_entailment")}, hidden=HIDDEN,
    ),
    "wic": made(_wic, YES_NO, hidden=HIDDEN),
    "wsc": made(_wsc, YES_NO, hidden=HIDDEN),
}  # fmt: skip
"""`aps/super_glue`, by configuration."""


def _squad(i: int, version2: bool = False) -> dict[str, Any]:
    context = f"Thing {i // 2} was made by Ann in 19{10 + i}. Ann was {i}."
    answers = {"text": ["Ann", "Ann"], "answer_start": [context.index("Ann"), context.rindex("Ann")]}
    if version2 and i % 3 == 0:
        answers = {"text": [], "answer_start": []}
    return {"id": str(i), "title": "T", "context": context, "question": f"Who made it {i}?", "answers": answers}


POS = ("NN", "VB", "NNP")
CHUNKS = ("O", "B-NP", "I-NP")
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def _conll(i: int) -> dict[str, Any]:
    return {
        "id": str(i), "tokens": ["Ann", "Lee", "saw", f"Bonn{i}"], "pos_tags": [2, 2, 1, 2], "chunk_tags": [1, 2, 0, 1],
        "ner_tags": [1, 2, 0, 5 if i % 2 else 3],
    }  # fmt: skip


def _webnlg(i: int) -> dict[str, Any]:
    triple = f"Airport_{i} | runwayLength | {i}00"
    return {
        "category": ("Airport", "City", "Artist")[i % 2 if i < TRAIN else i % 3], "size": 2, "eid": f"Id{i}",
        "original_triple_sets": {"otriple_set": [[triple]]},
        "modified_triple_sets": {"mtriple_set": [[triple, f"Airport_{i} | location | Place_{i}"]]},
        "shape": "(X (X))", "shape_type": "NA",
        "lex": {"comment": ["good", "good", "toFix"], "lid": ["Id1", "Id2", "Id3"],
                "text": [f"Airport {i} is long.", f"A long runway has airport {i}.", "bad"], "lang": ["", "", ""]},
        "test_category": "", "dbpedia_links": [], "links": [],
    }  # fmt: skip


def _dart(i: int) -> dict[str, Any]:
    return {
        "tripleset": [[f"Mars Hill {i}", "JOINED", str(1900 + i)], [f"Mars Hill {i}", "LOCATION", "Carolina"]],
        "subtree_was_extended": False,
        "annotations": {"source": ["WikiTableQuestions_mturk"] * 2,
                        "text": [f"Mars Hill {i} joined in {1900 + i}.", f"In {1900 + i} joined Mars Hill {i}."]},
    }  # fmt: skip


HEADER = ["Player", "No.", "Max speed"]


def _wikisql(i: int) -> dict[str, Any]:
    return {
        "phase": 1, "question": f"Who has number {i}?",
        "table": {"header": HEADER, "page_title": "T", "page_id": "", "types": ["text", "real", "real"],
                  "id": f"1-{i}", "section_title": "", "caption": "", "rows": [["Ann", str(i), "9"]], "name": "t"},
        "sql": {"human_readable": f"SELECT COUNT Player FROM table WHERE No. = {i}", "sel": 0, "agg": 3,
                "conds": {"column_index": [1], "operator_index": [0], "condition": [str(i)]}},
    }  # fmt: skip


def _lama(i: int) -> dict[str, Any]:
    return {
        "uuid": str(i), "obj_uri": "Q90", "obj_label": ("Paris", "Rome")[i % 2], "sub_uri": "Q1",
        "sub_label": f"Ann {i}",
        "predicate_id": "P19", "sub_surface": f"Ann {i}", "obj_surface": "Paris",
        "masked_sentence": f"Ann {i} comes from [MASK].", "template": "[X] was born in [Y] .",
        "template_negated": "[X] was not born in [Y] .", "label": "place of birth", "description": "where one was born",
        "type": "N-1",
    }  # fmt: skip


OTHERS = {
    "squad": made(_squad, splits=("train", "validation")),
    "squad_v2": made(lambda i: _squad(i, version2=True), splits=("train", "validation")),
    "conll2003": made(_conll, {"pos_tags": POS, "chunk_tags": CHUNKS, "ner_tags": ENTITIES}),
    "e2e_nlg": made(
        lambda i: {"meaning_representation": f"name[Place {i // 2}], food[Thai]", "human_reference": f"Thai at {i}."}
    ),
    "web_nlg": made(_webnlg, splits=("train", "dev", "test")),
    "dart": made(_dart),
    "wikisql": made(_wikisql),
    "xsum": made(lambda i: {"document": f"Long text {i} goes on.", "summary": f"Short {i}.", "id": str(i)}),
    "samsum": made(lambda i: {"id": str(i), "dialogue": f"A: hi {i}\r\nB: yo", "summary": f"A greets B {i}."}),
    "gsm8k": made(lambda i: {"question": f"What is {i}+1?", "answer": f"It is <<{i}+1={i + 1}>>.\n#### {i + 1}"},
                  splits=("train", "test")),
    "lama": made(_lama, splits=("train",)),
    "trec": made(
        lambda i: {"text": f"Who is number {i} ?", "coarse_label": i % 3, "fine_label": i % 5},
        {"coarse_label": ("ABBR", "ENTY", "DESC"), "fine_label": ("a:x", "b:x", "c:x", "d:x", "e:x")},
        ("train", "test"),
    ),
    "imdb": made(lambda i: {"text": f"A film of {i}.", "label": i % 2}, {"label": ("neg", "pos")},
                 ("train", "test", "unsupervised"), {"unsupervised": UNKNOWN}),
    "ag_news": made(lambda i: {"text": f"News {i}", "label": i % 4},
                    {"label": ("World", "Sports", "Business", "Sci/Tech")}, ("train", "test")),
    "snli": made(lambda i: {"premise": f"p {i}", "hypothesis": f"h {i}", "label": (0, 1, 2, -1)[i % 4]},
                 {"label": NLI}),
}  # fmt: skip
"""Further sets, by their name on the hub."""
