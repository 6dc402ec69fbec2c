"""Every kind of task through the command line: train, evaluate, predict, merge."""

import json
import random
import re

import pytest

from support import models
from support.chats import CHATML
from support.command_line import QUICK, ran
from support.language_models import generation_tokenizer, make_rows

FILMS = ["great", "awful", "good", "bad"]


def tag_rows(count=60):
    draw, rows = random.Random(0), []
    for _ in range(count):
        words = [draw.choice(models.WORDS) for _ in range(draw.randint(2, 8))]
        rows.append({"tokens": words, "tags": ["B-film" if word in FILMS else "O" for word in words]})
    return rows


def span_rows(count=60, empty=False):
    draw, rows = random.Random(0), []
    for i in range(count):
        words = [draw.choice(models.WORDS[4:]) for _ in range(draw.randint(2, 8))]
        words.insert(draw.randrange(len(words)), str(i))
        text = " ".join(words)
        answers = [] if empty and i % 5 == 0 else [{"text": str(i), "start": text.index(str(i))}]
        rows.append({"question": f"what number {i}", "context": text, "answers": answers})
    return rows


def chat_rows(count=60):
    def turns(row):
        return [
            {"role": "user", "content": row["input"]},
            {"role": "assistant", "content": row["output"]},
            {"role": "user", "content": row["output"]},
            {"role": "assistant", "content": row["input"]},
        ]

    return [{"messages": turns(row)} for row in make_rows(count)]


def alpaca_rows(count=60):
    rows = make_rows(count, longest=6)
    return [
        {"instruction": row["input"], "output": row["output"], **({"input": "it"} if i % 2 else {})}
        for i, row in enumerate(rows)
    ]


def text_rows(count=60):
    return [{"text": row["input"]} for row in make_rows(count, longest=12)]


def set_rows(count=60):
    draw = random.Random(1)
    words = [[draw.choice(models.WORDS) for _ in range(6)] for _ in range(count)]
    return [{"text": " ".join(own), "label": sorted({word for word in own if word in FILMS})} for own in words]


def flag_rows(count=60):
    return [
        {"text": row["text"], **{word: int(word in row["label"]) for word in ("good", "bad")}}
        for row in set_rows(count)
    ]


def price_rows(count=60):
    draw = random.Random(2)
    return [{"text": row["text"], "price": 250_000 + draw.randrange(50_000)} for row in set_rows(count)]


ROWS = {
    "tag": tag_rows,
    "span": span_rows,
    "none": lambda: span_rows(empty=True),
    "generate": lambda: make_rows(60),
    "chat": chat_rows,
    "alpaca": alpaca_rows,
    "lm": text_rows,
    "many": set_rows,
    "flags": flag_rows,
    "prices": price_rows,
}
OUTPUT = {
    "tag": {"tags"},
    "span": {"answer", "start", "end", "score"},
    "none": {"answer", "start", "end", "score"},
    "generate": {"output"},
    "chat": {"output"},
    "alpaca": {"output"},
    "lm": {"perplexity", "loss", "tokens"},
    "many": {"labels", "scores"},
    "flags": {"labels", "scores"},
    "prices": {"score"},
}
METRIC = {
    "tag": "f1", "span": "f1", "none": "f1", "generate": "rougeL", "chat": "rougeL", "alpaca": "rougeL",
    "lm": "perplexity", "many": "f1_micro", "flags": "f1_micro", "prices": "pearson",
}  # fmt: skip
KIND = {"tag": "bert", "span": "gpt2", "none": "bert", "generate": "t5", "chat": "llama", "alpaca": "llama",
        "lm": "gpt2", "many": "t5", "flags": "bert", "prices": "gpt2"}  # fmt: skip
TASK = {
    "none": "span",
    "chat": "generate",
    "alpaca": "generate",
    "many": "classify",
    "flags": "classify",
    "prices": "regression",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder for each kind of model, the decoders' with a chat template."""
    found = {}
    for kind in ("bert", "gpt2", "llama", "t5"):
        found[kind] = tmp_path_factory.mktemp(kind)
        tokenizer = generation_tokenizer()
        if kind in ("gpt2", "llama"):
            tokenizer.bos_token = "[CLS]"
            tokenizer.add_special_tokens({"additional_special_tokens": ["(", ")"]})
        models.tiny(kind, "lm").save_pretrained(found[kind])
        if kind == "llama":
            tokenizer.chat_template = CHATML.replace("<|im_start|>", "(").replace("<|im_end|>", ")")
        tokenizer.save_pretrained(found[kind])
    return found


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """Trains once for each kind of data: (folder of the run, file of data)."""
    done = {}

    def run(name):
        if name not in done:
            place = tmp_path_factory.mktemp(name)
            data = write(place / "data.jsonl", ROWS[name]())
            task = TASK.get(name, name)
            result = ran(
                "train", "--model", folders[KIND[name]], "--data", data, "--task", task, "--lr", "1e-2", *QUICK[:2],
                *QUICK[4:], "--max-length", "96" if "chat" in name or name == "alpaca" else "32",
                *(("--prompt", "Q: {instruction} {input} A:") if name == "alpaca" else ()),
                *(("--new-tokens", "8") if task == "generate" else ()),
                *(("--label", "good,bad") if name == "flags" else ()), "--out", place / "run",
            )  # fmt: skip
            assert result.code == 0, result.err
            done[name] = place / "run", data, result.out
        return done[name]

    return run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


FORMS = [pytest.param(name, marks=pytest.mark.slow) if name in ("alpaca", "flags") else name for name in ROWS]
"""Alpaca's rows are read as chats are once they are read, and flags as other labels."""


@pytest.mark.parametrize("name", ROWS)
def test_it_is_trained_and_scored(name, trained):
    folder, data, out = trained(name)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert next(iter(metrics["test"])) == METRIC[name] or METRIC[name] in metrics["test"]
    assert METRIC[name] in out
    again = ran("evaluate", "--adapter", folder, "--data", data, "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert found["split"] == "test"
    assert found["metric"] == METRIC[name]
    assert found["scores"] == pytest.approx(metrics["test"], rel=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_a_new_file_is_scored_whole(name, trained, tmp_path):
    folder, _, _ = trained(name)
    new = write(tmp_path / "new.jsonl", ROWS[name]()[:7])
    done = ran("evaluate", "--adapter", folder, "--data", new, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"] == 7


@pytest.mark.parametrize("name", ["tag", "none", "generate", "lm", "many", "prices"])
def test_groups_are_scored_as_their_rows_alone(name, trained, tmp_path):
    folder, _, _ = trained(name)
    rows = [{**row, "group": i % 2} for i, row in enumerate(ROWS[name]()[:12])]
    done = ran(
        "evaluate", "--adapter", folder, "--data", write(tmp_path / "all.jsonl", rows), "--by", "group", "--json"
    )
    assert done.code == 0, done.err
    groups = json.loads(done.out)["by"]["group"]
    assert {value: group["rows"] for value, group in groups.items()} == {"0": 6, "1": 6}
    part = write(tmp_path / "part.jsonl", [row for row in rows if row["group"] == 1])
    alone = json.loads(ran("evaluate", "--adapter", folder, "--data", part, "--json").out)
    assert groups["1"]["scores"] == pytest.approx(alone["scores"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_answered_in_order(name, trained, tmp_path):
    folder, _, _ = trained(name)
    rows = ROWS[name]()[:7]
    asked = [
        {key: value for key, value in row.items() if key not in ("tags", "answers", "output", "label")} for row in rows
    ]
    if name == "chat":
        asked = [{"messages": row["messages"][:3]} for row in rows]
    one, all_ = (
        ran("predict", write(tmp_path / "rows.jsonl", asked), "--adapter", folder, "--batch-size", size)
        for size in "17"
    )
    assert one.code == 0, one.err
    answers = [json.loads(line) for line in one.out.splitlines()]
    assert len(answers) == 7
    for answer, row in zip(answers, asked, strict=True):
        assert OUTPUT[name] <= set(answer)
        assert all(answer[key] == value for key, value in row.items())
    together = [json.loads(line) for line in all_.out.splitlines()]
    for alone, other in zip(answers, together, strict=True):
        for key in OUTPUT[name] - {"score", "scores", "perplexity", "loss"}:
            assert alone[key] == other[key]
    if name == "tag":
        assert all(len(answer["tags"]) == len(row["tokens"]) for answer, row in zip(answers, asked, strict=True))
    if name == "prices":
        assert all(200_000 < answer["score"] < 350_000 for answer in answers), "in the data's units"
    if name in ("span", "none"):
        for answer in answers:
            assert answer["answer"] == (answer["context"][answer["start"] : answer["end"]] if answer["answer"] else "")


def test_lines_of_text_are_tagged_and_continued(trained):
    done = ran("predict", "--adapter", trained("tag")[0], stdin="the film\nis good .\n")
    assert [len(json.loads(line)["tags"]) for line in done.out.splitlines()] == [2, 3], done.err
    done = ran("predict", "--adapter", trained("generate")[0], stdin="the film\n")
    assert set(json.loads(done.out)) == {"input", "output"}, done.err


def test_passages_in_windows_are_not_truncated(trained, tmp_path):
    adapter, place = trained("span")[0], tmp_path / "long.jsonl"
    context = " ".join(["the film is good ."] * 200)
    place.write_text(json.dumps({"question": "is it good", "context": context, "answers": [{"text": "film"}]}) + "\n")
    for done in (ran("predict", "--adapter", adapter, place), ran("evaluate", "--adapter", adapter, "--data", place)):
        assert done.code == 0, done.err
        said = " ".join((done.err or done.out).split())
        assert re.search(r"1( of 1)? passage split into windows of \d+ tokens", said)
        assert "truncated" not in said


@pytest.mark.parametrize(("number", "fault"), [("nan", "has no finite number"), ("1e39", "has numbers beyond 1e+38")])
def test_numbers_that_cannot_be_scored_are_named(trained, tmp_path, number, fault):
    adapter = trained("prices")[0]
    task = json.loads((adapter / "adapter" / "adapter.json").read_text())["extra"]["task"]
    text, label = task["text"], task["label"]
    place = tmp_path / "rows.csv"
    place.write_text(f"{text[0]},{label}\ngood film,250000\nthe film,{number}\nbad film,260000\n")
    done = ran("evaluate", "--adapter", adapter, "--data", place)
    assert done.code == 2
    assert f"{place}: column {label!r} {fault}" in done.err
    assert f"1 row (2): {number!r}" in done.err


def test_predict_reads_every_format_that_evaluate_reads(trained, tmp_path):
    folder = trained("tag")[0]
    sentences = [row["tokens"] for row in tag_rows()[:3]]
    file = tmp_path / "new.conll"
    file.write_text("\n\n".join("\n".join(f"{word} O" for word in words) for words in sentences), encoding="utf-8")
    done = ran("predict", "--adapter", folder, file)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["tokens"] for answer in found] == sentences, done.err
    assert all(len(answer["tags"]) == len(answer["given_tags"]) == len(answer["tokens"]) for answer in found)


def test_a_trained_adapter_may_answer_in_another_way(trained):
    folder = trained("generate")[0]
    long, short = (
        json.loads(ran("predict", "--adapter", folder, *more, stdin="the film is good\n").out)["output"].split()
        for more in ((), ("--set", "new_tokens=1"))
    )
    assert long[:1] == short
    drawn = [
        ran("predict", "--adapter", folder, "--set", "temperature=5.0", "--set", f"seed={seed}", stdin="the film\n").out
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    folder, data, _ = trained("none")
    found = json.loads(ran("evaluate", "--adapter", folder, "--data", data, "--set", "threshold=-1e9", "--json").out)
    assert found["scores"]["no_answer_em"] == 1
    refused = ran("predict", "--adapter", folder, "--set", "max_length=9", stdin="the film\n")
    assert refused.code == 2
    assert "cannot be changed after training; can be set: longest, threshold, metric" in refused.err


@pytest.mark.parametrize(
    "name", ["chat", "generate", "lm", "tag", "span", pytest.param("many", marks=pytest.mark.slow)]
)
def test_the_merged_model_answers_as_its_adapter_did(name, trained, tmp_path):
    folder, data, _ = trained(name)
    done = ran("merge", "--adapter", folder, "--out", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert 0 <= found["difference"] < 1e-3
    assert (tmp_path / "merged" / "config.json").is_file()
    assert (found["head"] is None) == (name in ("chat", "generate", "lm"))
    if found["head"]:
        before, after = (
            json.loads(ran("evaluate", "--adapter", place, "--data", data, "--split", "test", "--json").out)["scores"]
            for place in (folder, found["head"])
        )
        assert after == pytest.approx(before, rel=1e-4)


def test_merging_what_has_no_weight_form_says_so(folders, tmp_path):
    data = write(tmp_path / "data.jsonl", tag_rows())
    done = ran(
        "train", "--model", folders["bert"], "--data", data, "--task", "tag", "--method", "Prefix(length=3)", *QUICK,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = ran("merge", "--adapter", tmp_path / "run", "--out", tmp_path / "merged")
    assert done.code == 2
    assert "no exact weight form" in done.err
    assert not (tmp_path / "merged").exists()
    done = ran("merge", "--adapter", tmp_path / "run", "--out", tmp_path / "merged", "--dtype", "bf16")
    assert "did you mean 'bfloat16'" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "lm"), "needs a decoder"),
        (("--task", "generate", "--pooling", "mean"), "the language-model head; head options do not apply"),
        (("--task", "generate", "--prompt", "{inpt}"), "did you mean 'input'"),
        (("--task", "tag"), ""),
    ],
)
def test_what_cannot_be_is_told_before_training(options, message, folders, tmp_path):
    data = write(tmp_path / "data.jsonl", [{"text": row["input"], **row} for row in make_rows(60)])
    more = ("--text", "text") if "lm" in options else ("--text", "input")
    done = ran("train", "--model", folders["t5"], "--data", data, *options, *more, *QUICK, "--out", tmp_path / "run")
    assert done.code == 2, done.out
    assert message in done.err
    assert not (tmp_path / "run").exists()
