"""File formats and the rows that they give: CoNLL, SQuAD, plain texts, chats, tables, a format made of one module."""

import csv
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.core.errors import DeltatuneError
from deltatune.data import formats, inputs, read, read_rows
from deltatune.data.layouts.generation_rows import as_line
from deltatune.data.sources.hub import hub_rows
from deltatune.data.splits import complete_documents


def write(path: Path, rows) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def complaint(function, *args, **kwargs) -> str:
    with pytest.raises(DeltatuneError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# --- one module a format ---

KEY_VALUE = '''"""Records of "key: value" lines, a blank line after each record."""

from deltatune.data.formats.file_format import FileFormat, raise_malformed, read_text


def read_records(path):
    lines = read_text(path).split("\\n")
    problems = [f"line {i} has no colon" for i, line in enumerate(lines, start=1) if line and ": " not in line]
    raise_malformed(path, problems, "A line is a key and its value.")
    records = "\\n".join(lines).strip().split("\\n\\n")
    return [dict(line.split(": ", 1) for line in record.split("\\n")) for record in records]


def read_reviews(path):
    return [{**row, "source": "reviews"} for row in read_records(path)] if "stars: " in path.read_text() else None


FORMATS = (
    FileFormat(read_records, (".kv", ".rec")),
    FileFormat(read_reviews, (".kv",), by_content=True),
)
'''


@pytest.fixture
def key_value_format(tmp_path, monkeypatch):
    """A made-up format, registered by one module that lies in the folder of formats."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "key_value.py").write_text(KEY_VALUE)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "package")])
    formats.all_formats.cache_clear()
    yield
    monkeypatch.undo()
    formats.all_formats.cache_clear()
    sys.modules.pop("deltatune.data.formats.key_value")


def test_a_format_is_one_module(tmp_path, key_value_format):
    folder = tmp_path / "data"
    folder.mkdir()
    records = [f"text: words number {i}\nlabel: {'ab'[i % 2]}" for i in range(60)]
    (folder / "train.kv").write_text("\n\n".join(records))
    (folder / "test.rec").write_text("\n\n".join(records[:10]) + "\n")
    data = read(folder)
    assert (data.task, data.labels, len(data.test)) == ("classify", ("a", "b"), 10)
    assert {".kv", ".rec", ".csv"} <= set(formats.suffixes())
    (folder / "films.kv").write_text("text: a film\nstars: 3")
    assert read_rows(folder / "films.kv") == [{"text": "a film", "stars": "3", "source": "reviews"}]
    (folder / "films.kv").write_text("text: a film\nthree")
    assert "films.kv is malformed:\n  line 2 has no colon\nA line is a key" in complaint(read_rows, folder / "films.kv")
    assert "did you mean 'films.kv'?" in complaint(read_rows, folder / "film.kv")


def test_a_format_is_gone_with_its_module(tmp_path):
    (tmp_path / "a.kv").write_text("text: a")
    assert "unknown format '.kv'. Known formats: " in complaint(read_rows, tmp_path / "a.kv")


# --- CoNLL ---


@pytest.mark.parametrize("ending", ["conll", "bio", "iob", "iob2"])
def test_conll(tmp_path, ending):
    path = tmp_path / f"train.{ending}"
    path.write_text("-DOCSTART- -X- O O\r\n\r\nAnn NNP I-NP B-per\r\nslept VBD I-VP O\r\n\r\n\r\n# # # O\r\nx y z O")
    assert read_rows(path) == [
        {"tokens": ["Ann", "slept"], "tags": ["B-per", "O"]},
        {"tokens": ["#", "x"], "tags": ["O", "O"]},
    ]


def test_conll_with_tabs_and_comments(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("# sent_id = 3\n# newdoc\nNew York\tB-loc\n\tO\n#\tO\n\nx\tO\n")
    assert [row["tokens"] for row in read_rows(path)] == [["New York", "", "#"], ["x"]]


def test_bad_conll(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Ann B-per\nslept\n\nx y O\n")
    message = complaint(read_rows, path)
    assert "line 2 has 1 column, others have 2" in message
    assert "line 4 has 3 columns, others have 2" in message
    path.write_text("Ann\nslept\n")
    assert "line 1 has 1 column" in complaint(read_rows, path)


def test_conll_named_txt_is_not_read_as_prose(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("Ann NNP B-per\nslept VBD O\n\n" * 20)
    assert "name it .conll" in complaint(read, path)
    path.write_text("BLOOD TYPE\nis O\n\n" * 20)
    assert read_rows(path)[0]["text"].startswith("BLOOD")


def test_a_folder_of_conll(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.conll").write_text("".join(f"{split}{i} B-x\nis O\n\n" for i in range(5)))
    data = read(tmp_path)
    assert (data.task, data.labels, len(data.train)) == ("tag", ("O", "B-x"), 5)


UD = """# sent_id = 1
# text = Let's go.
1-2\tLet's\t_\t_\t_\t_\t_\t_\t_\t_
1\tLet\tlet\tVERB\tVB\tMood=Imp\t0\troot\t_\t_
2\t's\twe\tPRON\tPRP\t_\t3\tnsubj\t_\t_
2.1\tto\tto\tPART\tTO\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t1\txcomp\t_\tSpaceAfter=No

# sent_id = 2
1\t#\t#\tSYM\tNN\t_\t0\troot\t_\t_
"""


def test_conllu(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text(UD)
    assert read_rows(path) == [
        {"tokens": ["Let", "'s", "go"], "tags": ["VERB", "PRON", "VERB"], "xpos": ["VB", "PRP", "VB"]},
        {"tokens": ["#"], "tags": ["SYM"], "xpos": ["NN"]},
    ]
    path.write_text(UD.replace("\tVB\t", "\t_\t").replace("\tPRP\t", "\t_\t").replace("\tNN\t", "\t_\t"))
    assert "xpos" not in read_rows(path)[0]
    path.write_text(UD.replace("3\tgo\tgo", "3\tgo"))
    assert "line 7 has 9 columns, not ten" in complaint(read_rows, path)


def test_a_treebank_is_a_folder_of_splits(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"en_ewt-ud-{split}.conllu").write_text(
            "\n".join(UD.replace("go", f"{split}{i}") for i in range(9))
        )
    data = read(tmp_path)
    assert (data.task, data.label, data.labels) == ("tag", "tags", ("PRON", "SYM", "VERB"))
    assert [len(rows) for rows in data.splits().values()] == [18, 18, 18]
    assert read(tmp_path, label="xpos").labels == ("NN", "PRP", "VB")


def test_names_may_end_in_a_split(tmp_path):
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i}", "label": "ab"[i % 2]} for i in range(40)]
        write(tmp_path / f"reviews_{split}.jsonl", rows)
    assert len(read(tmp_path).test) == 40
    write(tmp_path / "films_train.jsonl", rows)
    assert "which one is train?" in complaint(read, tmp_path)


# --- folders of texts ---


def classes(folder, names, count=30):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.txt").write_text(f"{folder.name} says {name} {i}", encoding="utf-8")


def test_a_folder_a_class(tmp_path):
    classes(tmp_path / "reviews", ("neg", "pos"))
    data = read(tmp_path / "reviews")
    assert (data.kind, data.labels, data.text, data.label) == ("classes", ("neg", "pos"), ("text",), "label")
    assert sum(map(len, data.splits().values())) == 60
    assert all(f"says {row['label']} " in row["text"] for row in data.train)


def test_splits_of_folders_of_classes(tmp_path):
    classes(tmp_path / "train", ("neg", "pos", "unsup"))
    classes(tmp_path / "test", ("neg", "pos"), count=5)
    (tmp_path / "train/urls_pos.txt").write_text("http://example.com")
    data = read(tmp_path)
    assert data.labels == ("neg", "pos")
    assert len(data.train) + len(data.validation) == 60
    assert len(data.test) == 10
    assert all(row["text"].startswith("train says") for row in data.train)


def test_one_folder_of_texts_is_no_class(tmp_path):
    classes(tmp_path, ("notes",))
    assert "no train file" in complaint(read, tmp_path)


# --- SQuAD ---


def nested(count=40):
    qas = [
        {"id": "a", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": f"Ann met {i}.", "qas": qas} for i in range(count)]
    return {"version": "v2.0", "data": [{"title": "Ann", "paragraphs": paragraphs}]}


def test_squad(tmp_path):
    (tmp_path / "train-v2.0.json").write_text(json.dumps(nested()))
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(nested(5)))
    assert read_rows(tmp_path / "dev-v2.0.json")[:2] == [
        {
            "id": "a",
            "title": "Ann",
            "question": "Who?",
            "context": "Ann met 0.",
            "answers": [{"text": "Ann", "start": 0}],
        },
        {"id": "b", "title": "Ann", "question": "Why?", "context": "Ann met 0.", "answers": []},
    ]
    data = read(tmp_path)
    assert (data.task, len(data.test), len(data.train) + len(data.validation)) == ("span", 10, 80)


def test_bad_squad(tmp_path):
    value = nested(1)
    del value["data"][0]["paragraphs"][0]["context"]
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert "article 1 has a paragraph without context or qas" in complaint(read_rows, tmp_path / "a.json")


# --- plain texts ---

PLAY = "".join(f"Line {i} of the play.\n" + ("\n" if i % 5 == 0 else "") for i in range(200))


def test_one_text_is_one_document_and_its_end_is_held_out(tmp_path):
    (tmp_path / "play.txt").write_text(PLAY)
    data = read(tmp_path / "play.txt")
    assert (data.task, data.text, data.label) == ("lm", ("text",), "")
    assert [len(rows) for rows in data.splits().values()] == [1, 1, 1]
    assert data.train[0]["text"] + data.validation[0]["text"] + data.test[0]["text"] == PLAY
    assert data.train[0]["text"].endswith("\n")
    assert any("the last 10% of the document became test" in note for note in data.notes)


def test_a_folder_of_texts(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"Text {i}.")
    data = read(tmp_path)
    assert sum(map(len, data.splits().values())) == 60
    assert {"name": "7.txt", "text": "Text 7."} in [row for rows in data.splits().values() for row in rows]
    assert data.origin.endswith("(60 text files)")


def test_texts_named_by_split(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.txt").write_text(split + " " + PLAY)
    (tmp_path / "README.txt").write_text("About")
    assert [rows[0]["text"].split()[0] for rows in read(tmp_path).splits().values()] == ["train", "dev", "test"]


@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=8), given_test=st.booleans())
def test_ends_of_few_documents_lose_nothing(texts, given_test):
    parts = {"train": [{"text": text} for text in texts]}
    if given_test:
        parts["test"] = [{"text": "own"}]
    found, notes = complete_documents(parts, "text")
    assert set(found) == {"train", "validation", "test"}
    made = [found[split] for split in ("train", "validation", "test") if split not in parts or split == "train"]
    whole = sorted("".join(texts))
    assert [c for c in sorted("".join(row["text"] for rows in made for row in rows)) if c.strip()] == [
        c for c in whole if c.strip()
    ]
    assert notes


def test_a_folder_without_train_says_how_to_name_a_file(tmp_path):
    write(tmp_path / "dev.jsonl", [{"text": f"a {i}"} for i in range(60)])
    message = complaint(read, tmp_path)
    assert f"To train on one of them, name it: source={tmp_path / 'dev.jsonl'}" in message
    assert read(tmp_path / "dev.jsonl").task == "lm"


# --- chats ---

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]
SHAREGPT = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
]
PARTS = [*CHAT[:1], {"role": "user", "content": [{"type": "text", "text": "Hi"}]}, *CHAT[2:]]


def chats(*odd, column="messages"):
    turns = [[{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}!"}] for i in range(60)]
    return [*({column: chat} for chat in turns), *odd]


@pytest.mark.parametrize(
    ("column", "chat"), [("messages", CHAT), ("conversations", SHAREGPT), ("conversation", CHAT), ("messages", PARTS)]
)
def test_chats(tmp_path, column, chat):
    data = read(write(tmp_path / "a.jsonl", [*chats(column=column), {"id": 3, column: chat}]))
    assert (data.task, data.text, data.label) == ("generate", ("messages",), "messages")
    (row,) = [row for rows in data.splits().values() for row in rows if row.get("id") == 3]
    assert (row["messages"], row["references"]) == (CHAT, ["Hello"])
    assert column == "messages" or column not in row


def test_what_follows_the_last_answer_is_left_out(tmp_path):
    odd = {"messages": [*CHAT, {"role": "user", "content": "Bye"}]}
    data = read(write(tmp_path / "a.jsonl", chats(odd)))
    assert CHAT in [row["messages"] for rows in data.splits().values() for row in rows]
    assert any("1 chats go on after the last answer" in note for note in data.notes)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([CHAT[1], CHAT[1], CHAT[2]], "two user turns follow one another in 1 row (61): user user assistant"),
        ([CHAT[0], CHAT[1]], "there is no assistant turn in 1 row (61): system user"),
        ([CHAT[2]], "there is no user turn in 1 row (61): assistant"),
        ([{"role": "narrator", "content": "x"}], "column 'messages' holds no messages in 1 row (61)"),
        ([{"role": "user", "content": [{"type": "image"}]}], "column 'messages' holds no messages"),
        ("Hi", "column 'messages' holds no messages in 1 row (61): 'Hi'"),
    ],
)
def test_bad_chats(tmp_path, messages, part):
    assert f"train: {part}" in complaint(read, write(tmp_path / "a.jsonl", chats({"messages": messages})))


def test_chats_to_be_answered_end_with_the_user():
    assert inputs([{"messages": CHAT[:2]}], "generate", ["messages"])[0]["messages"] == CHAT[:2]
    assert "the last turn is not the user's" in complaint(inputs, [{"messages": CHAT}], "generate", ["messages"])


def test_equal_chats_with_other_answers_are_one_input(tmp_path):
    rows = [{"messages": [*CHAT[:2], {"role": "assistant", "content": f"x {i}"}]} for i in range(4)]
    rows += chats()
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.jsonl", rows)
    assert [len(rows) for rows in read(tmp_path).splits().values()] == [64, 61, 61]
    assert read(tmp_path).test[0]["references"] == ["x 0", "x 1", "x 2", "x 3"]


# --- tables ---


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("as it is", "as it is"),
        (
            {"name": "Ann", "age": 3, "likes": ["tea", "cake"], "note": None},
            "name: Ann | age: 3 | likes: tea, cake | note: ",
        ),
        ([["name", "Ann"], ["age", "3"]], "name: Ann | age: 3"),
        ([["Ann", "likes", "tea"], ["tea", "is", "hot"]], "Ann | likes | tea && tea | is | hot"),
        ([["a"]], None),
        ([["a", "b"], ["a", "b", "c"]], None),
        ([], None),
        ({"a": {"b": 1}}, None),
        (3, None),
    ],
)
def test_tables_in_one_line(value, line):
    assert as_line(value) == line


def test_tables_in_a_csv(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "text"])
        writer.writerows([json.dumps({"name": f"x{i}"}), f"There is x{i}."] for i in range(60))
    data = read(tmp_path / "a.csv")
    assert (data.text, data.label) == (("table",), "text")
    assert {"table": "name: x7", "text": "There is x7.", "references": ["There is x7."]} in data.train


# --- the hub ---


def test_lists_of_class_numbers_become_names():
    datasets = pytest.importorskip("datasets")
    names = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-x"])),
        }
    )
    split = datasets.Dataset.from_list([{"tokens": ["a", "b"], "ner_tags": [0, 1]}], features=names)
    assert hub_rows(split) == [{"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}]
