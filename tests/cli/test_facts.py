"""`deltatune facts`: the table of wordings, means over relations, CSV and JSON, and errors that name the fix."""

import csv
import json

import pytest

from support import models
from support.command_line import ran

ROWS = [
    {"relation": relation, "subject": subject, "object": answer}
    for relation, facts in {
        "P1": {"the film": "good", "plot": "bad", "it": "canada", "actor": "great", "this": "日本"},
        "P2": {"the film": "actor", "the plot": "film"},
        "P9": {"a": "good"},
    }.items()
    for subject, answer in facts.items()
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    for kind in ("bert", "gpt2"):
        models.tiny(kind, "lm", dropout=False).save_pretrained(folder / kind)
        models.tiny_tokenizer().save_pretrained(folder / kind)
    data = folder / "lama"
    data.mkdir()
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, ROWS[0]])))
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, [{**row, "subject": "not it"} for row in ROWS])))
    wordings = [
        {"relation": "P1", "template": "[X] is [Y] .", "templates": ["[X] is [Y] .", "[Y] is [X]", "it was [X] , [Y]"]},
        {"relation": "P2", "template": "[X] and [Y]"},
    ]
    (data / "relations.jsonl").write_text("\n".join(map(json.dumps, wordings)))
    return folder


def run(place, *options, model="bert", data="lama/test.jsonl"):
    return ran("facts", "--model", place / model, "--data", place / data, *options)


def test_the_table_of_wordings(place):
    done = run(
        place,
        "--relation",
        "P1",
        "--template",
        "[X] is [Y] .",
        "-t",
        "{subject} was {mask}",
        "--top",
        "1",
        "--top",
        "5",
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["wording", "of", "P1", "P@1", "P@5", "95", "%", "of", "P@1", "p", "rows", "left", "out"]
    assert lines[1].startswith("[X] is [Y] .")
    assert lines[1].split()[-2:] == ["3", "2"]
    assert lines[2].startswith("{subject} was {mask}")
    assert "1 row left out: the object is several tokens" in done.out
    assert "1 row left out: the object is unknown to the tokenizer" in done.out
    assert "1 row with a subject and object seen before: counted once" in done.out
    assert "(always" in done.out
    assert "6 rows read" in done.out


def test_all_relations_and_their_means(place, tmp_path):
    out = tmp_path / "scores.csv"
    done = run(place, "--out", out)
    assert done.code == 0, done.err
    assert "no wording in relations.jsonl, left out: P9" in done.out
    assert "first wordings  micro P@1" in done.out
    assert "best wordings" in done.out
    assert "spread" in done.out
    assert "same answer" in done.out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["relation"] for row in rows] == ["P1", "P1", "P1", "P2"]
    assert rows[0]["p_against_first"] == ""
    assert 0 <= float(rows[1]["p_against_first"]) <= 1
    report = json.loads(run(place, "--json").out)
    assert [float(row["p@10"]) for row in rows] == [
        wording["p@10"] for relation in report["relations"] for wording in relation["wordings"]
    ]
    assert report["means"]["first"]["rows"] == 5
    assert [relation["rows"] for relation in report["relations"]] == [5, 2]


def test_candidates_are_a_file_or_the_objects(place, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("good\nbad\n\ngood\ncanada\n")
    report = json.loads(run(place, "--relation", "P1", "--candidates", words, "--json").out)
    assert report["candidates"] == {"source": str(words), "words": 3, "one_token": 2}
    assert report["relations"][0]["wordings"][0]["left_out"] == {
        "no candidate": 1, "several tokens": 1, "unknown to the tokenizer": 1,
    }  # fmt: skip
    assert report["relations"][0]["wordings"][0]["p@10"] == 1.0  # of two words
    done = run(place, "--relation", "P1", "--candidates", "objects")
    assert "the objects of the relation in these data, 3 of one token" in done.out
    words.write_text("\n")
    assert "has no words" in run(place, "--relation", "P1", "--candidates", words).err


def test_left_to_right_models_leave_out_what_they_cannot_read(place):
    done = run(place, "--relation", "P1", model="gpt2")
    assert done.code == 0, done.err
    note = "1 wording that this model cannot read was left out: the blank of '{mask} is {subject}'"
    assert note in " ".join(done.out.split())
    done = run(place, "--relation", "P1", "-t", "[Y] is [X]", model="gpt2")
    assert done.code == 2
    assert "is not at its end" in done.err


def test_a_trained_prompt_beside_the_wordings(place, tmp_path):
    options = (
        "--optimise", "PTuning(template='{subject} {2} {mask} .', encoder='none')", "--prompts", tmp_path / "p",
        "--epochs", "2", "--lr", "0.1", "--relation", "P1",
    )  # fmt: skip
    done = run(place, *options, data="lama")
    assert done.code == 0, done.err
    assert "trained: PTuning" in done.out
    assert "64 parameters a relation" in done.out
    own = ran("facts", "--adapter", tmp_path / "p" / "P1", "--data", place / "lama", "--relation", "P1")
    assert own.code == 0, own.err
    assert "adapter: {subject} {2} {mask} ." in own.out
    scored = ran("evaluate", "--adapter", tmp_path / "p" / "P1", "--data", place / "lama" / "train.jsonl")
    assert scored.code == 2
    assert "'good' or 'bad' or 'canada' or 'great' or '日本' or 'actor' or 'film' of 'not it': unknown" in scored.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--relation", "P7", "-t", "[X] [Y]"), "no relation 'P7'"),
        (("-t", "[X] [Y]"), "name one with --relation, such as P1"),
        (("--relation", "P1", "-t", "[X] is"), "one [Y]"),
        (("--relation", "P9"), "has no wording for 'P9'"),
        (("--subject", "sbject"), "did you mean 'subject'"),
        (("--optimise", "LoRA(r=2)", "--from-wording"), "takes no template"),
        (("--over", "all"), "over must be one of 'vocabulary', 'candidates'"),
        (("--out", "/nowhere/x.csv"), "there is no folder"),
        (("--templates", "nowhere.jsonl"), "no file nowhere.jsonl"),
        (("--epochs", "0", "--optimise", "LoRA()"), "epochs must be above 0"),
    ],
)
def test_errors_name_the_fix(place, options, message):
    done = run(place, *options)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "should not happen" not in done.err


def test_facts_without_relations(place, tmp_path):
    path = tmp_path / "capitals.csv"
    path.write_text("city,country\nthe film,good\nplot,bad\n")
    done = ran("facts", "--model", place / "bert", "--data", path, "-t", "[X] is [Y]")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].startswith("wording ")
    assert "there are no wordings" in ran("facts", "--model", place / "bert", "--data", path).err
    assert "these data have no relations" in ran("facts", "-m", place / "bert", "-d", path, "--relation", "P1").err
    lama = ran("facts", "-m", place / "bert", "-d", path, "--templates", place / "lama" / "relations.jsonl")
    assert "has no column of relations" in lama.err
    assert "there is no train file beside it" in ran(
        "facts", "-m", place / "bert", "-d", path, "-t", "[X] is [Y]", "--optimise", "LoRA(r=2)"
    ).err  # fmt: skip


def test_an_interruption_keeps_the_trained_prompts(place, tmp_path, monkeypatch):
    from deltatune.prompting.facts import fact_study

    done = []

    def rank(*args, **more):
        done.append(more)
        if len(done) > 1:
            raise KeyboardInterrupt
        return actual(*args, **more)

    actual = fact_study.rank_objects
    monkeypatch.setattr(fact_study, "rank_objects", rank)
    options = ("--optimise", "Prompt(template='{subject} {1} {mask} .')", "--epochs", "1", "--prompts", tmp_path / "p")
    stopped = run(place, "--relation", "P1", "-t", "[X] is [Y] .", *options, data="lama")
    assert stopped.code == 130
    assert "trained prompts are kept, the same command goes on" in stopped.err
    monkeypatch.undo()
    again = run(place, "--relation", "P1", "-t", "[X] is [Y] .", *options, data="lama")
    assert again.code == 0, again.err
    other = run(place, "--relation", "P1", "-t", "[X] is [Y] .", *options, "--seed", "3", data="lama")
    assert other.code == 2
    assert "--prompts NAME keeps both, --force replaces it" in other.err
    forced = run(place, "--relation", "P1", "-t", "[X] is [Y] .", *options, "--seed", "3", "--force", data="lama")
    assert forced.code == 0, forced.err
