"""Published data sets are read in the form of the hub with no options: by name, as its files, from an Arrow folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import examples, inputs, read
from deltatune.data.published.wikisql import parse_query
from support import published
from support.published import GLUE, HEADER, HELD_OUT, OTHERS, SUPER_GLUE, TRAIN, Published

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

PAIR = ("sentence1", "sentence2")
Case = tuple[Published, str, str, tuple[str, ...], str, tuple[str, ...], str]
"""Data set, name of the source, task, text, label, classes, metric."""

CASES: list[Case] = [
    (GLUE["cola"], "glue-cola", "classify", ("sentence",), "label", ("acceptable", "unacceptable"), "matthews"),
    (GLUE["sst2"], "SST-2", "classify", ("sentence",), "label", ("negative", "positive"), "accuracy"),
    (GLUE["mrpc"], "mrpc", "classify", PAIR, "label", ("equivalent", "not_equivalent"), "f1"),
    (GLUE["qqp"], "QQP", "classify", ("question1", "question2"), "label", ("duplicate", "not_duplicate"), "f1"),
    (GLUE["stsb"], "STS-B", "regression", PAIR, "label", (), "pearson"),
    (GLUE["mnli"], "MNLI", "classify", ("premise", "hypothesis"), "label", tuple(sorted(published.NLI)), "accuracy"),
    (GLUE["qnli"], "qnli", "classify", ("question", "sentence"), "label", ("entailment", "not_entailment"), "accuracy"),
    (GLUE["rte"], "glue_rte", "classify", PAIR, "label", ("entailment", "not_entailment"), "accuracy"),
    (GLUE["wnli"], "wnli", "classify", PAIR, "label", ("entailment", "not_entailment"), "accuracy"),
    (SUPER_GLUE["boolq"], "boolq", "classify", ("question", "passage"), "label", ("False", "True"), "accuracy"),
    (
        SUPER_GLUE["cb"], "cb", "classify", ("premise", "hypothesis"), "label", tuple(sorted(published.NLI)), "accuracy"
    ),
    (
        SUPER_GLUE["copa"], "copa", "classify", ("premise", "question", "choice1", "choice2"), "label",
        ("choice1", "choice2"), "accuracy",
    ),
    (
        SUPER_GLUE["multirc"], "multirc", "classify", ("paragraph", "question", "answer"), "label",
        ("False", "True"), "f1",
    ),
    (SUPER_GLUE["record"], "record", "span", ("query", "passage"), "answers", (), ""),
    (SUPER_GLUE["wic"], "wic", "classify", ("word", *PAIR), "label", ("False", "True"), "accuracy"),
    (
        SUPER_GLUE["wsc"], "wsc", "classify", ("text", "span1_text", "span2_text"), "label",
        ("False", "True"), "accuracy",
    ),
    (OTHERS["squad"], "squad", "span", ("question", "context"), "answers", (), ""),
    (OTHERS["squad_v2"], "squad_v2", "span", ("question", "context"), "answers", (), ""),
    (
        OTHERS["conll2003"], "conll2003", "tag", ("tokens",), "ner_tags", ("O", "B-LOC", "B-ORG", "B-PER", "I-PER"), ""
    ),
    (OTHERS["e2e_nlg"], "e2e_nlg", "generate", ("meaning_representation",), "human_reference", (), ""),
    (OTHERS["web_nlg"], "web_nlg", "generate", ("triples",), "output", (), ""),
    (OTHERS["dart"], "dart", "generate", ("triples",), "output", (), ""),
    (OTHERS["wikisql"], "wikisql", "generate", ("question", "columns"), "query", (), "logical_form"),
    (OTHERS["xsum"], "xsum", "generate", ("document",), "summary", (), ""),
    (OTHERS["samsum"], "samsum", "generate", ("dialogue",), "summary", (), ""),
    (OTHERS["gsm8k"], "gsm8k", "generate", ("question",), "answer", (), "final_answer"),
    (OTHERS["lama"], "lama", "generate", ("text",), "obj_label", (), "em"),
    (OTHERS["trec"], "trec", "classify", ("text",), "coarse_label", ("ABBR", "DESC", "ENTY"), ""),
    (OTHERS["imdb"], "imdb", "classify", ("text",), "label", ("neg", "pos"), ""),
    (OTHERS["ag_news"], "ag_news", "classify", ("text",), "label", ("Business", "Sci/Tech", "Sports", "World"), ""),
]  # fmt: skip
SAVED = ("MNLI", "conll2003", "web_nlg")
"""Those that are also read from `save_to_disk`, which differs in its files alone."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_read_with_no_options_from_its_files_and_by_its_name(case: Case, tmp_path: Path, monkeypatch: Any) -> None:
    data_set, name, task, text, label, labels, metric = case
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: data_set.load())
    sources: list[Path | str] = [data_set.write_parquet(tmp_path / "repository" / name), f"owner/{name}"]
    if name in SAVED:
        sources.append(data_set.write_arrow(tmp_path / "saved" / name))
    sizes = set()
    for source in sources:
        data = read(source)
        assert (data.task, data.text, data.label, data.labels, data.metric) == (task, text, label, labels, metric)
        assert all(row.get(label) not in (None, -1, -1.0) for rows in data.splits().values() for row in rows)
        sizes.add(tuple(map(len, data.splits().values())))
    assert len(sizes) == 1


# --- splits ---


def test_both_parts_of_mnli_are_scored(tmp_path: Path) -> None:
    data = read(GLUE["mnli"].write_parquet(tmp_path / "mnli"))
    matched, mismatched = (GLUE["mnli"].splits[f"validation_{part}"] for part in ("matched", "mismatched"))
    assert [row["premise"] for row in data.test] == [row["premise"] for row in matched]
    assert {name: len(rows) for name, rows in data.more_tests.items()} == {"test_mismatched": len(mismatched)}
    assert [row["premise"] for row in data.splits()["test_mismatched"]] == [row["premise"] for row in mismatched]
    assert len(data.train) + len(data.validation) == TRAIN
    notes = "\n".join(data.notes)
    assert "test is validation_matched, test_mismatched is validation_mismatched" in notes
    assert f"the {HELD_OUT} test_matched rows have no label" in notes
    assert f"the {HELD_OUT} test_mismatched rows have no label" in notes


def test_labelled_parts_of_test_leave_validation_as_it_is(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"premise": f"p {i}", "hypothesis": f"h {i}", "label": ["yes", "no"][i % 2]}

    names = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    data = read(published.made(row, splits=names).write_jsonl(tmp_path / "nli"))
    assert {split: rows[0]["premise"] for split, rows in data.splits().items()} == {
        "train": "p 0", "validation": "p 40", "test": "p 52", "validation_mismatched": "p 46", "test_mismatched": "p 58"
    }  # fmt: skip
    assert any("validation is dev_matched, test is test_matched" in note for note in data.notes)


def test_a_hidden_test_split_gives_way_to_the_published_validation_rows(tmp_path: Path) -> None:
    for name in ("cola", "stsb"):
        data = read(GLUE[name].write_jsonl(tmp_path / name))
        assert [row["idx"] for row in data.test] == [row["idx"] for row in GLUE[name].splits["validation"]]
        assert len(data.train) + len(data.validation) == TRAIN
        assert f"the {HELD_OUT} test rows have no label, so they are not used" in data.notes


def test_a_hidden_split_that_was_named_is_an_error(tmp_path: Path) -> None:
    folder = GLUE["stsb"].write_jsonl(tmp_path / "stsb")
    problem = "none of its 6 rows has a label in column 'label' .the first is -1.0"
    for option in ("validation", "test"):
        with pytest.raises(DeltatuneError, match=f"{option}: {problem}"):
            read(folder / "train.jsonl", **{option: folder / "test.jsonl"})  # type: ignore[arg-type]


def test_splits_and_files_that_are_not_used_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: OTHERS["imdb"].load())
    assert "splits that are not used: unsupervised (6 rows)" in read("stanfordnlp/imdb").notes
    folder = OTHERS["imdb"].write_parquet(tmp_path / "imdb")
    assert any("unsupervised-00000-of-00001.parquet" in note for note in read(folder).notes)


def test_rows_without_a_gold_label_are_counted_and_left_out(tmp_path: Path) -> None:
    data = read(OTHERS["snli"].write_parquet(tmp_path / "snli"))
    assert data.labels == tuple(sorted(published.NLI))
    assert "train: 10 of 40 rows have no gold label, so they are not used" in data.notes
    numbers = read(OTHERS["snli"].write_jsonl(tmp_path / "numbers"))
    assert any("is -1 in" in note and "remove these rows" in note for note in numbers.notes)


def test_a_gold_label_of_a_dash_is_none(tmp_path: Path) -> None:
    rows = [
        {"gold_label": ("-", *published.NLI)[i % 4], "sentence1": f"a {i}", "sentence2": f"b {i}"} for i in range(80)
    ]
    (tmp_path / "snli_1.0_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read(tmp_path)
    assert data.labels == tuple(sorted(published.NLI))
    assert "train: 20 of 80 rows have no gold label, so they are not used" in data.notes


# --- columns ---


def test_class_numbers_without_names_are_said_to_be_so(tmp_path: Path) -> None:
    data = read(OTHERS["conll2003"].write_jsonl(tmp_path / "conll"))
    assert any("numbers without names" in note for note in data.notes)
    features = OTHERS["conll2003"].load()["train"].features.to_dict()
    (tmp_path / "conll" / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert read(tmp_path / "conll").labels == ("O", "B-LOC", "B-ORG", "B-PER", "I-PER")


def test_class_names_of_a_data_card(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    folder = GLUE["sst2"].write_jsonl(tmp_path / "sst2")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': negative\n          '1': positive\n---\n# SST-2\n"
    )
    data = read(folder)
    assert data.labels == ("negative", "positive")
    assert data.train[0]["label"] == "negative"
    (folder / "train.jsonl").write_text('{"sentence": "a", "label": 2}\n')
    with pytest.raises(DeltatuneError, match="label is 2, but the data set names the classes 0 to 1 only"):
        read(folder)


@pytest.mark.parametrize("names", [("no", "yes"), ("1", "2"), ("off", "null"), ("1.0", "2026-01-31")])
def test_class_names_of_a_data_card_are_texts(tmp_path: Path, names: tuple[str, str]) -> None:
    pytest.importorskip("yaml")
    folder = GLUE["sst2"].write_jsonl(tmp_path / "sst2")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        f"          '0': {names[0]}\n          1: {names[1]}\n---\n"
    )
    assert read(folder).labels == tuple(sorted(names))


def test_other_tags_and_classes_on_request(tmp_path: Path) -> None:
    folder = OTHERS["conll2003"].write_parquet(tmp_path / "conll")
    assert any("--label pos_tags" in note for note in read(folder).notes)
    assert read(folder, label="pos_tags").labels == ("NNP", "VB")
    folder = OTHERS["trec"].write_parquet(tmp_path / "trec")
    assert any("--label fine_label" in note for note in read(folder).notes)
    assert read(folder, label="fine_label").labels == ("a:x", "b:x", "c:x", "d:x", "e:x")


def test_webnlg_has_triples_references_and_seen_categories(tmp_path: Path) -> None:
    data = read(OTHERS["web_nlg"].write_parquet(tmp_path / "web_nlg"))
    first = data.train[0]
    assert first["triples"] == "Airport_0 | runwayLength | 000 && Airport_0 | location | Place_0"
    assert [row["output"] for row in data.train[:2]] == ["Airport 0 is long.", "A long runway has airport 0."]
    assert first["references"] == ["Airport 0 is long."]
    assert data.test[0]["references"] == ["Airport 46 is long.", "A long runway has airport 46."]
    assert {row["category"]: row["seen"] for row in data.test} == {
        "Airport": "seen", "City": "seen", "Artist": "unseen"
    }  # fmt: skip
    assert "52 texts whose comment is not 'good' are not used" in data.notes


def test_webnlg_in_several_languages_says_so(tmp_path: Path) -> None:
    rows = [
        {"modified_triple_sets": {"mtriple_set": [[f"A{i} | in | B"]]},
         "lex": {"text": [f"A{i} is in B.", f"A{i} w B."], "lang": ["en", "ru"], "comment": ["good", ""]}}
        for i in range(40)
    ]  # fmt: skip
    notes = read(_jsonl(tmp_path / "webnlg.jsonl", rows)).notes
    assert any("in several languages (en 40, ru 40)" in note for note in notes)


def test_dart_has_every_annotation_as_a_reference(tmp_path: Path) -> None:
    data = read(OTHERS["dart"].write_parquet(tmp_path / "dart"))
    assert len(data.train) == 2 * TRAIN
    assert data.test[0]["references"] == ["Mars Hill 46 joined in 1946.", "In 1946 joined Mars Hill 46."]
    assert data.train[0]["triples"] == "Mars Hill 0 | JOINED | 1900 && Mars Hill 0 | LOCATION | Carolina"


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("input", ["A{i} | size | 3", "A{i} | in | B"], "A{i} | size | 3 && A{i} | in | B"),
        ("tripleset", [["A{i}", "size", "3"]], "A{i} | size | 3"),
        ("meaning_representation", "name[A{i}]", "name[A{i}]"),
        ("document", "A{i} is 3.", "A{i} is 3."),
    ],
)
def test_the_sets_of_gem(column: str, value: Any, line: str, tmp_path: Path) -> None:
    def filled(value: Any, i: int) -> Any:
        return value.replace("{i}", str(i)) if isinstance(value, str) else [filled(item, i) for item in value]

    def row(i: int) -> dict[str, Any]:
        references = [] if i < TRAIN else [f"Out {i}.", f"Other {i}."]
        return {"gem_id": str(i), column: filled(value, i), "target": f"Out {i}.", "references": references}

    data = read(published.made(row).write_jsonl(tmp_path / "gem"))
    assert (data.task, data.text, data.label, len(data.train)) == ("generate", (column,), "target", TRAIN)
    assert data.test[0][column] == filled(line, 46)
    assert data.test[0]["references"] == ["Out 46.", "Other 46."]


def test_wikisql_becomes_text_that_can_be_parsed(tmp_path: Path) -> None:
    data = read(OTHERS["wikisql"].write_parquet(tmp_path / "wikisql"))
    row = data.train[3]
    assert row["query"] == row["sql"]["human_readable"] == "SELECT COUNT Player FROM table WHERE No. = 3"
    assert row["columns"] == "Player | No. | Max speed"
    query = parse_query(row["query"], HEADER)
    assert query is not None
    assert (query.aggregation, query.column, query.conditions) == ("COUNT", "Player", (("No.", "=", "3"),))


def test_wikisql_as_its_own_files_have_it(tmp_path: Path) -> None:
    for split, start, size in (("train", 0, 40), ("dev", 40, 6), ("test", 46, 6)):
        numbers = range(start, start + size)
        rows = [
            {"phase": 1, "table_id": f"1-{i // 2}", "question": f"Who has number {i}?",
             "sql": {"sel": 0, "conds": [[1, 0, i]], "agg": 3}} for i in numbers
        ]  # fmt: skip
        _jsonl(tmp_path / f"{split}.jsonl", rows)
        tables = [{"id": f"1-{i // 2}", "header": HEADER, "rows": [["Ann", i, 9]]} for i in numbers]
        _jsonl(tmp_path / f"{split}.tables.jsonl", tables)
    (tmp_path / "train.db").write_text("x")
    data = read(tmp_path)
    assert {split: len(rows) for split, rows in data.splits().items()} == {"train": 40, "validation": 6, "test": 6}
    assert (data.text, data.label, data.metric) == (("question", "columns"), "query", "logical_form")
    assert data.test[0]["query"] == "SELECT COUNT Player FROM table WHERE No. = 46"
    assert "not used, as no split has their name: train.db" in data.notes
    _jsonl(tmp_path / "dev.tables.jsonl", [{"id": "x", "header": HEADER}])
    with pytest.raises(DeltatuneError, match="3 values of 'table_id' are the id of no table"):
        read(tmp_path)


def test_lama_has_a_cloze(tmp_path: Path) -> None:
    data = read(OTHERS["lama"].write_parquet(tmp_path / "lama"))
    assert data.train[0]["text"] == "Ann 0 was born in {mask} ."
    rows = [{"obj_label": "Paris", "evidences": [{"masked_sentence": f"Ann {i} left [MASK]."}]} for i in range(30)]
    (tmp_path / "P19.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DeltatuneError, match="every row has the output 'Paris'"):
        read(tmp_path / "P19.jsonl")


def test_several_answers_of_a_training_row_are_alternatives_and_said_to_be(tmp_path: Path) -> None:
    data = read(SUPER_GLUE["record"].write_parquet(tmp_path / "record"))
    assert len(data.test[0]["answers"]) == 2
    assert any("rows have several different answers: any of them counts as correct" in note for note in data.notes)
    assert not any("several different" in note for note in read(OTHERS["squad"].write_parquet(tmp_path / "s")).notes)


def test_record_answers_are_found_as_whole_words(tmp_path: Path) -> None:
    rows = [
        {
            "passage": f"Ann 1{i} met Ann 1.",
            "query": f"@placeholder met {i}",
            "entities": ["Ann 1"],
            "answers": ["Ann 1"],
        }
        for i in range(30)
    ]
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in read(tmp_path / "record.jsonl").train:
        assert row["answers"] == [{"text": "Ann 1", "start": row["passage"].rindex("Ann 1")}]


def test_the_questions_of_a_paragraph_stay_together(tmp_path: Path) -> None:
    data = read(SUPER_GLUE["multirc"].write_parquet(tmp_path / "multirc"))
    paragraphs = [{row["idx"]["paragraph"] for row in rows} for rows in (data.train, data.validation)]
    assert not paragraphs[0] & paragraphs[1]


GLUE_FILES = {
    "MNLI": (
        ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"),
        {"index": "{i}", "promptID": "{i}p", "genre": "fiction", "sentence1": "a {i}", "sentence2": "b {i}",
         "label1": "neutral", "gold_label": "{nli}"},
        ("sentence1", "sentence2"), "gold_label", "accuracy",
    ),
    "QQP": (
        ("train", "dev", "test"),
        {"id": "{i}", "qid1": "{i}1", "qid2": "{i}2", "question1": "a {i}?", "question2": "b {i}?",
         "is_duplicate": "{two}"},
        ("question1", "question2"), "is_duplicate", "f1",
    ),
    "MRPC": (
        ("train", "dev"),
        {"Quality": "{two}", "#1 ID": "{i}1", "#2 ID": "{i}2", "#1 String": "a {i}", "#2 String": "b {i}"},
        ("#1 String", "#2 String"), "Quality", "f1",
    ),
    "STS-B": (
        ("train", "dev", "test"),
        {"index": "{i}", "genre": "main-news", "filename": "headlines", "year": "2015", "old_index": "{i}",
         "source1": "none", "source2": "none", "sentence1": "a {i}", "sentence2": "b {i}", "score": "{two}.{i}"},
        ("sentence1", "sentence2"), "score", "pearson",
    ),
    "RTE": (
        ("train", "dev", "test"),
        {"index": "{i}", "sentence1": "a {i}", "sentence2": "b {i}", "label": "{rte}"},
        ("sentence1", "sentence2"), "label", "accuracy",
    ),
}  # fmt: skip
"""Files of the GLUE download: split names, columns with their values, text, label, metric. Test files have no label."""


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glue_as_its_own_files_have_it(name: str, tmp_path: Path) -> None:
    splits, columns, text, label, metric = GLUE_FILES[name]
    (tmp_path / name).mkdir()
    for split in splits:
        shown = {column: value for column, value in columns.items() if column != label or not split.startswith("test")}
        lines = ["\t".join(shown)]
        for i in range(60 if split == "train" else 10):
            rte = ("entailment", "not_entailment")[i % 2]
            values = {"i": i, "two": i % 2, "nli": published.NLI[i % 3], "rte": rte}
            lines.append("\t".join(f"{value}" for value in shown.values()).format(**values))
        (tmp_path / name / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    data = read(tmp_path / name)
    assert (data.text, data.label, data.metric) == (text, label, metric)
    assert len(data.test) == 10
    assert list(data.more_tests) == (["test_mismatched"] if name == "MNLI" else [])


def test_superglue_as_its_own_files_have_it(tmp_path: Path) -> None:
    answers = [{"text": "yes", "idx": 0, "label": 1}, {"text": "no", "idx": 1, "label": 0}]
    passages = [
        {"idx": i, "passage": {"text": f"t {i}", "questions": [{"idx": 7, "question": f"q {i}", "answers": answers}]}}
        for i in range(30)
    ]
    data = read(_jsonl(tmp_path / "multirc.jsonl", passages))
    assert (data.text, data.label, data.labels) == (("paragraph", "question", "answer"), "label", ("0", "1"))
    assert data.train[0]["idx"] == {"paragraph": data.train[1]["idx"]["paragraph"], "question": 7, "answer": 0}
    assert sum(map(len, data.splits().values())) == 60
    passages = [
        {
            "source": "x", "idx": i, "passage": {"text": f"Ann met Bob {i}.", "entities": [{"start": 0, "end": 2}]},
            "qas": [{"idx": i, "query": f"@placeholder {i}", "answers": [{"start": 0, "end": 2, "text": "Ann"}]}],
        }
        for i in range(30)
    ]  # fmt: skip
    data = read(_jsonl(tmp_path / "record.jsonl", passages))
    assert (data.task, data.text) == ("span", ("query", "passage"))
    assert data.train[0]["answers"] == [{"text": "Ann", "start": 0}]
    assert data.train[0]["entities"] == ["Ann"]
    target = {"span1_index": 0, "span1_text": "Mark", "span2_index": 3, "span2_text": "himself"}
    sentences = [{"idx": i, "text": f"Mark {i} saw himself", "target": target, "label": i % 3 > 0} for i in range(30)]
    assert read(_jsonl(tmp_path / "wsc.jsonl", sentences)).text == ("text", "span1_text", "span2_text")


def test_answers_with_a_label_beside_them_are_no_outputs(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}", "answer": f"a {i}", "label": i % 2} for i in range(40)]
    with pytest.raises(DeltatuneError, match="task is not clear") as caught:
        read(_jsonl(tmp_path / "wikiqa.jsonl", rows))
    assert "task=classify text=question text=answer label=label" in str(caught.value)
    assert "task=generate text=question label=answer" in str(caught.value)


def test_choices_in_a_list_are_refused_with_the_forms_that_can_be_read(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "question": "why?", "choices": ["a", "b"], "label": i % 2} for i in range(40)]
    path = _jsonl(tmp_path / "copa.jsonl", rows)
    with pytest.raises(DeltatuneError, match="multiple choice is not one of the tasks"):
        read(path)
    data = read(path, text=["text", "question"], label="label")
    assert data.text == ("text", "question")


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    rows = [{"id": i, "text_a": f"a {i}", "text_b": f"b {i}", "word": "w", "label": i % 2} for i in range(40)]
    assert "neither text nor label: word" in read(_jsonl(tmp_path / "wic.jsonl", rows)).notes


def test_a_row_in_another_form_is_named(tmp_path: Path) -> None:
    rows = [dict(row) for row in OTHERS["wikisql"].splits["train"]]
    rows[4] = {**rows[4], "sql": {"sel": 9, "agg": 0, "conds": []}}
    rows[7] = {**rows[7], "table": {}}
    with pytest.raises(DeltatuneError) as caught:
        read(_jsonl(tmp_path / "wikisql.jsonl", rows))
    assert "train: 1 rows (5) are not in the form of WikiSQL" in str(caught.value)
    assert "there is no 'header'" in str(caught.value)


def test_a_training_row_for_each_different_reference_with_text(tmp_path: Path) -> None:
    rows = [{"input": f"a {i}", "references": [f"x {i}", f"y {i}", f"x {i}", " "]} for i in range(60)]
    data = read(_jsonl(tmp_path / "rows.jsonl", rows))
    assert [row["output"] for row in data.train[:2]] == [
        data.train[0]["output"],
        data.train[0]["output"].replace("x", "y"),
    ]
    assert all(row["references"] == [row["output"]] and row["output"].strip() for row in data.train)
    assert all(len(row["references"]) == 4 for row in data.test), "references to score with stay as they are"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("dataset_info.json", b"{bad", "dataset_info.json as JSON"),
        ("dataset_info.json", b"\xff\xfe", "UTF-8"),
        ("README.md", b"---\ndataset_info: [class_label\n---\n", "its header is not YAML"),
        ("README.md", b"---\nclass_label: " + b"[" * 5000 + b"\n---\n", "its header is not YAML"),
    ],
)
def test_damaged_declarations_of_class_names_are_plain_errors(
    tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    folder = GLUE["sst2"].write_jsonl(tmp_path / "sst2")
    (folder / name).write_bytes(content)
    with pytest.raises(DeltatuneError, match=part):
        read(folder)


def test_rows_for_an_adapter_are_read_as_training_rows_are(tmp_path: Path) -> None:
    for name in ("web_nlg", "dart", "wikisql", "lama"):
        data = read(OTHERS[name].write_jsonl(tmp_path / name))
        row = next(iter(OTHERS[name].splits.values()))[3]
        for converted in (examples([row], data.kind, data.text, data.label), inputs([row], data.task, data.text)):
            trained = next(known for known in data.train if known[data.text[0]] == converted[0][data.text[0]])
            assert [converted[0][column] for column in data.text] == [trained[column] for column in data.text]
        assert data.label in examples([row], data.kind, data.text, data.label)[0]


def test_the_metric_needs_the_shape_of_the_set(tmp_path: Path) -> None:
    rows = [{"text": f"a drink {i}", "other": f"x {i}", "label": i / 7} for i in range(60)]
    (tmp_path / "cola").mkdir()
    _jsonl(tmp_path / "cola" / "train.jsonl", rows)
    assert read(tmp_path / "cola", text=["text"]).metric == ""


def test_several_train_splits_of_a_hub_set_ask_for_files(monkeypatch: Any) -> None:
    splits = ("train_r1", "train_r2", "dev_r1", "test_r1")
    data_set = published.made(lambda i: {"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 2}, splits=splits)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: data_set.load())
    with pytest.raises(DeltatuneError) as caught:
        read("facebook/anli")
    assert "which one is train: train_r1, train_r2?" in str(caught.value)
    assert "to_parquet('FOLDER/train.parquet')" in str(caught.value)


def test_the_configurations_of_a_set_are_listed(monkeypatch: Any) -> None:
    def load_dataset(*_: Any) -> Any:
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['ax', 'cola']\nExample"
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DeltatuneError) as caught:
        read("nyu-mll/glue")
    assert "available configs: ['ax', 'cola'] Name one: source=nyu-mll/glue:CONFIGURATION" in str(caught.value)


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found dart.py")


@pytest.mark.parametrize(("source", "folder"), [("owner/dart", "default"), ("owner/web_nlg:en", "en")])
def test_a_script_of_the_hub_is_read_from_its_conversion(
    source: str, folder: str, tmp_path: Path, monkeypatch: Any
) -> None:
    name = source.partition("/")[2].partition(":")[0]
    for split, rows in OTHERS[name].load().items():
        (tmp_path / folder / split).mkdir(parents=True)
        rows.to_parquet(tmp_path / folder / split / "0000.parquet")
    load, asked = datasets.load_dataset, []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        if "revision" not in options:
            raise SCRIPT
        return load(str(tmp_path), data_dir=options["data_dir"], cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = read(source)
    assert (data.task, data.text) == ("generate", ("triples",))
    assert len(data.train) == 80, "40 rows with two references each"
    assert asked[-1] == ((f"owner/{name}",), {"data_dir": folder, "revision": "refs/convert/parquet"})


def test_a_script_without_a_conversion_is_an_error_that_says_so(monkeypatch: Any) -> None:
    def load_dataset(*args: Any, **options: Any) -> Any:
        raise SCRIPT if "revision" not in options else FileNotFoundError("no such revision")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DeltatuneError, match="scripts are no longer supported"):
        read("owner/dart")
