"""Prompts on the command line: train, evaluate and predict with prompting methods, here and on a server."""

import json
import re
from pathlib import Path

import pytest

from support import models
from support.command_line import Ran, ran, review_folder, reviews, write_csv
from support.endpoint_server import prompt_of, running, text_of
from support.language_models import generation_tokenizer

WORDS = ("--words", "bad=awful", "--words", "good=great|good")
TEMPLATE = ("--template", "{text} it was {mask}")
QUICK = ("--epochs", "1", "--precision", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-masked"
    models.tiny("bert", "lm").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


def refused(done: Ran, *parts: str) -> None:
    assert done.code == 2, done.err or done.out
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err, done.err


def worked(done: Ran) -> Ran:
    assert done.code == 0, done.err
    return done


# --- train ---


def test_train_finds_a_prompt(model, data, tmp_path):
    command = (
        "train",
        "--model",
        model,
        "--data",
        data,
        "--method",
        "ZeroShot()",
        *TEMPLATE,
        *WORDS,
        "--out",
        tmp_path,
    )
    done = worked(ran(*command))
    assert "{text} it was {mask}" in done.out
    assert "nothing: the prompt is found" in done.out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"validation", "test", "cost", "prompts", "trials"} <= metrics.keys()
    assert "finished before" in worked(ran(*command)).out
    refused(ran(*command, "--seed", "1"), "seed", "--force")
    worked(ran(*command, "--force"))
    labels = [
        json.loads(line)
        for line in worked(ran("predict", "--adapter", tmp_path, stdin="great film\n")).out.splitlines()
    ]
    assert labels[0]["label"] in ("bad", "good")
    scored = json.loads(worked(ran("evaluate", "--adapter", tmp_path, "--data", data, "--json")).out)
    assert scored["scores"] == metrics["test"]


def test_options_of_prompts_train_through_label_words(model, data, tmp_path):
    done = worked(
        ran("train", "--model", model, "--data", data, "--describe", "bad=awful, good=great", *QUICK, "--out", tmp_path)
    )
    assert "through label words" in done.out
    config = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert config["head"] is None
    assert config["extra"]["task"]["words"] == [["awful"], ["great"]]


def test_rows_that_are_left_are_unlabelled(model, data, tmp_path):
    texts = tmp_path / "more.txt"
    texts.write_text("the film is great\nit was awful\n")
    options = ("--model", model, "--data", data, "--shots", "4", *WORDS, *QUICK, "--unlabelled", texts)
    refused(ran("train", *options, "--method", "LoRA(r=2)"), "labelled rows only", "PET()")
    refused(ran("train", *options, "--method", "ZeroShot()"), "labelled rows only")
    method = "PET(LoRA(r=2), patterns=1, repetitions=1)"
    done = worked(ran("train", *options, "--method", method, "--out", tmp_path / "run"))
    assert f"{64 - 8 + 2} unlabelled" in done.out
    assert "norm of all changes" in worked(ran("inspect", tmp_path / "run")).out


def test_what_a_prompt_does_not_take_is_refused(model, data, tmp_path):
    command = ("train", "--model", model, "--data", data, "--method", "ZeroShot()", *WORDS)
    refused(ran(*command, "--pooling", "cls"), "--pooling cls")
    refused(ran(*command, "--lr", "1e-3"), "--lr")
    refused(ran(*command, "--export-for", "peft"), "--export-for peft")
    refused(ran("train", "--from", tmp_path, "--template", "{text} {mask}"), "--template", "--from")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--words", "bda=awful", "--words", "good=great"), ("'bda'", "did you mean 'bad'", "'bad' has no word")),
        (("--words", "bad=awful"), ("'good' has no word",)),
        (("--words", "bad"), ("CLASS=WORD",)),
        ((*WORDS, "--describe", "bad=awful, good=great"), ("--words, --describe",)),
        (("--template", "{text} it was"), ("one {mask}",)),
        (("--template", "{mask} {text} {mask}"), ("one {mask}",)),
        (("--template", "{txt} {mask}"), ("'txt'", "columns: text")),
        (("--template", ""), ("--template is empty",)),
    ],
)
def test_mistakes_in_prompts(model, data, options, parts):
    refused(ran("train", "--model", model, "--data", data, *options), *parts)
    refused(ran("evaluate", "--model", model, "--data", data, "--method", "ZeroShot()", *options), *parts)


def test_data_without_one_class_a_row(model, tmp_path):
    numbers = write_csv(
        tmp_path / "n.csv", [{"text": row["text"], "label": str(i / 7)} for i, row in enumerate(reviews(40))]
    )
    refused(
        ran("train", "--model", model, "--data", numbers, *TEMPLATE), "--template is for one class a row", "regression"
    )
    refused(ran("train", "--model", model, "--data", numbers, "--method", "ZeroShot()"), "one class a row")
    tags = tmp_path / "t.conll"
    tags.write_text("".join(f"film{i}\tB-X\nis\tO\n\n" for i in range(40)))
    refused(ran("evaluate", "--model", model, "--data", tags, "--method", "ZeroShot()"), "one class a row")
    many = tmp_path / "m.jsonl"
    many.write_text(
        "".join(json.dumps({"text": f"film {i}", "label": [["a"], ["a", "b"]][i % 2]}) + "\n" for i in range(40))
    )
    refused(ran("train", "--model", model, "--data", many, *TEMPLATE), "several labels a row")


def test_classes_that_say_nothing_and_models_without_a_head(model, tiny_folder, tmp_path):
    rows = [{**row, "label": str(int(row["label"] == "good"))} for row in reviews(40)]
    numbers = write_csv(tmp_path / "n.csv", rows)
    command = ("train", "--data", numbers, "--method", "ZeroShot()")
    refused(ran(*command, "--model", model), "say nothing in words", "--describe")
    refused(ran(*command, "--model", tiny_folder), "no language-model head", "roberta-base")
    worked(ran(*command, "--model", model, "--describe", "0=bad, 1=good", "--out", tmp_path / "run"))


# --- evaluate and predict without an adapter ---


def test_evaluate_a_prompt(model, data, tmp_path):
    command = ("evaluate", "--model", model, "--data", data, *TEMPLATE, *WORDS)
    assert "{text} it was {mask}" in worked(ran(*command)).out
    scored = json.loads(worked(ran(*command, "--json", "--save", tmp_path / "saved")).out)
    assert scored["rows"] == 20
    assert scored["method"] == "ZeroShot()"
    again = json.loads(worked(ran("evaluate", "--adapter", tmp_path / "saved", "--data", data, "--json")).out)
    assert again["scores"] == scored["scores"]
    assert again["trained_on"]["rows"] == 0
    # a file is scored whole, even where it lacks a class
    one = write_csv(tmp_path / "one.csv", [row for row in reviews(12) if row["label"] == "bad"])
    assert json.loads(worked(ran("evaluate", "--model", model, "--data", one, *WORDS, "--json")).out)["rows"] == 6


def test_demonstrations_come_from_the_training_rows(model, data, tmp_path):
    command = ("evaluate", "--model", model, "--method", "ICL(shots=2)", *WORDS, "--json")
    scored = json.loads(worked(ran(*command, "--data", data)).out)
    assert scored["split"] == "test"
    file = write_csv(tmp_path / "all.csv", reviews(80))
    part = json.loads(worked(ran(*command, "--data", file)).out)
    assert part["split"] == "test"
    assert part["rows"] < 80
    predict = ("predict", "--model", model, "--method", "ICL(shots=2)", *WORDS)
    refused(ran(*predict, stdin="great\n"), "training rows", "--data")
    assert worked(ran(*predict, "--data", data, stdin="great\n")).out


def test_predict_with_a_prompt(model, tmp_path):
    method = "ZeroShot(template='{text} it was {mask}', words='bad=awful, good=great')"
    answer = json.loads(worked(ran("predict", "--model", model, "--method", method, stdin="great film\n")).out)
    assert answer["scores"].keys() == {"bad", "good"}
    other = json.loads(
        worked(
            ran("predict", "--model", model, *TEMPLATE, "--words", "bad=awful, good=great", stdin="great film\n")
        ).out
    )
    assert other == answer
    pair = ("predict", "--model", model, "--template", "{a}? {mask}, {b}", "--describe", "yes=good, no=bad|not")
    assert json.loads(worked(ran(*pair, stdin="it is\tthe film\n")).out)["b"] == "the film"
    refused(
        ran("predict", "--model", model, *TEMPLATE, stdin="x\n"), "which classes", "--words", "--describe", "--data"
    )
    refused(ran("predict", *TEMPLATE, *WORDS, stdin="x\n"), "--model is needed", "--url")


def test_exactly_one_of_adapter_and_prompt(model, data, tmp_path):
    refused(ran("predict", "--model", model, stdin="x\n"), "--adapter", "--method")
    refused(ran("evaluate", "--data", data, "--model", model), "--adapter", "--method")
    refused(ran("evaluate", "--adapter", tmp_path, "--data", data, *TEMPLATE), "--template", "leave --adapter")
    refused(ran("predict", "--adapter", tmp_path, "--data", data, stdin="x\n"), "--data", "leave --adapter")
    refused(
        ran("predict", "--model", model, "--method", "LoRA(r=2)", *WORDS, stdin="x\n"), "is trained", "deltatune train"
    )
    refused(
        ran("evaluate", "--model", model, "--method", "Cloze(LoRA(r=2))", "--data", data),
        "is trained",
        "deltatune train",
    )
    refused(ran("evaluate", "--model", model, "--data", data, *TEMPLATE, "--weight", "2"), "--weight 2")
    refused(ran("evaluate", "--adapter", tmp_path, "--data", data, "--name", "m"), "--name requires --url")


# --- servers ---


def says(word: str, **usage: int):
    return lambda body, number: (200, text_of(word, usage=usage or {"prompt_tokens": 10, "completion_tokens": 2}))


def test_a_prompt_on_a_server(data, tmp_path):
    cache = tmp_path / "answers.jsonl"
    with running(
        lambda body, number: (
            200,
            text_of(
                "great!" if "great" in prompt_of(body).partition(" it was")[0] else "awful",
                usage={"prompt_tokens": 9, "completion_tokens": 2},
            ),
        )
    ) as server:
        command = (
            "evaluate", "--url", server.url, "--name", "some-model", "--form", "plain", "--data", data, *TEMPLATE,
            "--words", "bad=awful", "--words", "good=great", "--cache", cache,
        )  # fmt: skip
        first = json.loads(worked(ran(*command, "--json")).out)
        asked = len(server.requests)
        assert asked == first["server"]["calls"] <= 20
        assert first["server"]["prompt_tokens"] == 9 * asked
        assert first["unmatched"] == 0
        assert first["scores"]["accuracy"] > 0.5
        assert server.requests[0]["model"] == "some-model"
        again = worked(ran(*command))
        assert len(server.requests) == asked
        assert "0 calls" in again.out
        assert str(cache) in re.sub(r"\s", "", again.out) or cache.name in again.out
        predict = ("predict", *command[1:7], *TEMPLATE, "--words", "bad=awful, good=great", "--cache", cache)
        answer = json.loads(worked(ran(*predict, stdin="a great film\n")).out)
        assert answer["label"] == "good"


def test_answers_without_a_label_word_are_counted(data, tmp_path):
    kept = tmp_path / "answers.jsonl"
    with running(says("no idea")) as server:
        on_server = ("--url", server.url, "--name", "m", *TEMPLATE, *WORDS, "--cache", kept)
        done = worked(ran("evaluate", *on_server, "--data", data))
        assert "20 of 20 rows have no answer" in " ".join(done.out.split())
        with kept.open("a") as file:
            file.write('{"name": "m", "ur')  # a process was killed here
        again = json.loads(worked(ran("evaluate", *on_server, "--data", data, "--json")).out)
        assert again["scores"]["accuracy"] == 0.0
        assert any("the last line was not finished" in note for note in again["notes"])
        answer = json.loads(worked(ran("predict", *on_server, stdin="a great film\n")).out)
        many = ran("predict", *on_server, "--batch-size", "2", stdin="great\nfine\nbad\n").err
        assert "3 of 3 rows have no answer" in many
        server.answer = says("awful")
        some = ran("predict", *on_server, "--batch-size", "2", stdin="great\nnew\nnewer\nnewest\n").err
        assert "1 of 4 rows have no answer" in some
        assert many.count("label words") == 1
        assert answer == {"text": "a great film", "label": None, "score": 0.0, "scores": {"bad": 0.0, "good": 0.0}}


def test_demonstrations_and_chains_on_a_server(data, tmp_path):
    with running(says("awful")) as server:
        common = ("--url", server.url, "--name", "m", "--form", "plain", "--cache", tmp_path / "a.jsonl")
        method = ("--method", "ICL(shots=2)", *TEMPLATE, *WORDS)
        done = worked(ran("evaluate", *common, "--data", data, *method))
        assert server.requests[0]["prompt"].count("it was") == 3
        assert "not calibrated" in done.out
        refused(
            ran("evaluate", *common, "--data", data, "--method", "ICL(shots=2, select='nearest')", *WORDS),
            "select='nearest'",
        )
        refused(
            ran("evaluate", *common, "--data", data, "--method", "AutoPrompt()", *WORDS),
            "ZeroShot(), ICL(), ChainOfThought()",
        )
    questions = tmp_path / "sums.jsonl"
    questions.write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(12)))
    with running(
        lambda body, number: (200, text_of(f"The answer is {int(prompt_of(body).split()[1]) + 1}."))
    ) as server:
        common = ("--url", server.url, "--name", "m", "--form", "plain", "--cache", tmp_path / "c.jsonl")
        command = ("--method", "ChainOfThought(answer='number')", "--text", "question")
        done = worked(ran("evaluate", *common, "--data", questions, "--label", "answer", "--json", *command))
        assert json.loads(done.out)["scores"]["final_answer"] == 1.0
        answer = json.loads(worked(ran("predict", *common, *command, stdin="7 + 1?\n")).out)
        assert answer["answer"] == "8"


def test_texts_as_answers(tmp_path):
    folder, rows = tmp_path / "writer", tmp_path / "rows.jsonl"
    models.tiny("llama", "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    lines = [{"en": f"film {i}", "fr": f"old film {i}"} for i in range(40)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    named = ("--model", folder, "--data", rows, "--text", "en", "--label", "fr", "--task", "generate")
    method = ("--method", "ICL(shots=2)", "--template", "en: {en} fr:")
    done = worked(ran("evaluate", *named, *method, "--set", "new_tokens=4", "--save", tmp_path / "icl", "--json"))
    assert json.loads(done.out)["scores"]["rougeL"] >= 0
    done = worked(ran("predict", "--adapter", tmp_path / "icl", "--set", "new_tokens=4", stdin="film 7\n"))
    assert set(json.loads(done.out)) == {"en", "output"}
    done = worked(ran("train", *named, *method, "--new-tokens", "4", "--out", tmp_path / "run", "--json"))
    metrics = json.loads(done.out)["metrics"]
    assert "en: {en} fr:" in metrics["prompts"][0]
    assert {"rougeL", "bleu"} <= set(metrics["test"])
    alone = ("--model", folder, "--task", "generate", "--template", "en: {text} fr:", "--set", "new_tokens=4")
    assert "output" in json.loads(worked(ran("predict", *alone, stdin="film\n")).out)
    refused(ran("evaluate", *named, "--template", "en: {en} fr: {mask}"), "leave {mask} out")
    refused(ran("evaluate", *named, "--template", "en: {en}", *WORDS), "--words is for one class a row")
    refused(ran("train", *named, "--method", "LoRA(r=2)", "--template", "{en}"), "a tuning method with --prompt")


def test_texts_as_answers_of_a_server(tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [{"en": f"film {i}", "fr": f"old film {i}"} for i in range(40)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    template = ("--template", "en: {en} fr:")

    def continued(body, number):
        number_of_row = prompt_of(body).split()[-2]
        return 200, text_of(f" old film {number_of_row}\n\nen: and more")

    with running(continued) as server:
        common = ("--url", server.url, "--name", "m", "--form", "plain", "--cache", tmp_path / "a.jsonl")
        named = ("--data", rows, "--text", "en", "--label", "fr", "--task", "generate")
        done = worked(ran("evaluate", *common, *named, *template, "--method", "ICL(shots=2)", "--json"))
        assert json.loads(done.out)["scores"]["em"] == 1.0
        assert server.requests[0]["prompt"].count("en: film") == 3
        assert server.requests[0]["stop"] == ["\n\n"]
        alone = ("--task", "generate", "--text", "en", *template, "--method", "ZeroShot(stop='\\n')")
        answer = json.loads(worked(ran("predict", *common, *alone, stdin="film 3\n")).out)
        assert answer["output"] == "old film 3"
        refused(ran("evaluate", *common, *named, "--method", "ICL(length=9)"), "length=9 needs the model itself")


def test_a_comparison_of_prompts_and_tuning_for_texts(tmp_path):
    folder, rows = tmp_path / "writer", tmp_path / "rows.jsonl"
    models.tiny("llama", "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    lines = [{"input": f"film {i}", "output": f"old film {i}"} for i in range(60)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    methods = ("ZeroShot(stop='\\n')", "ICL(shots=2)", "LoRA(r=2)")
    command = ("compare", "--model", folder, "--data", rows, "--new-tokens", "4", "--epochs", "1", "--seeds", "1")
    done = worked(ran(*command, "--rates", "1", "--methods", *methods, "--out", tmp_path / "out", "--json"))
    answers = json.loads(done.out)["samples"][0]["answers"]
    assert [each["method"] for each in answers] == [*methods]


def test_a_server_that_fails(data, tmp_path):
    command = (
        "--name",
        "m",
        "--data",
        data,
        *TEMPLATE,
        *WORDS,
        "--retries",
        "0",
        "--cache",
        tmp_path / "a.jsonl",
        "--concurrency",
        "1",
    )
    with running(lambda body, number: says("awful")(body, number) if number < 6 else (500, "down")) as server:
        refused(ran("evaluate", "--url", server.url, *command), "500", "answers are kept", "the same command")
        assert len((tmp_path / "a.jsonl").read_text().splitlines()) >= 5
    refused(ran("evaluate", "--url", "http://127.0.0.1:9/v1", *command), "Is the server running")
    refused(ran("evaluate", "--url", "nonsense", *command), "not an address")
    refused(ran("evaluate", "--url", "http://127.0.0.1:9/v1", *command[2:]), "--url needs --name")
    refused(ran("evaluate", "--url", "http://127.0.0.1:9/v1", "--model", "x", *command), "give one of the two")
    refused(ran("evaluate", "--url", "http://127.0.0.1:9/v1", *command, "--key", "NO_SUCH_KEY"), "NO_SUCH_KEY")


# --- methods ---


def test_methods_lists_prompting():
    done = worked(ran("methods"))
    assert "Prompting" in done.out
    assert re.search(r"^  ICL ", done.out, re.M)
    assert "shots" in worked(ran("methods", "ICL")).out
    one = json.loads(worked(ran("methods", "Cloze", "--json")).out)
    assert one["trains"] == "LoRA(r=8)"
    refused(ran("methods", "ZeroShto"), "did you mean 'ZeroShot'")


def test_recipes_refuse_prompting_methods(model, data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {model}\ndata: {data}\nmethod: ZeroShot()\nout: {tmp_path / 'run'}\n")
    refused(ran("run", recipe), "prompting method", "deltatune train")
    recipe.write_text(
        f"model: {model}\nout: {tmp_path / 'run'}\nstages:\n  - name: one\n    data: {data}\n    method: ICL()\n"
        "    merge: false\n"
    )
    refused(ran("run", recipe), "prompting method")


def test_an_interruption_says_what_is_kept(model, data, tmp_path, monkeypatch):
    from deltatune.prompting.zero_shot import ZeroShot

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ZeroShot, "fit", interrupted)
    done = ran("train", "--model", model, "--data", data, "--method", "ZeroShot()", *WORDS, "--out", tmp_path / "run")
    assert done.code == 130
    assert "the same command starts again" in done.err
    monkeypatch.undo()
    worked(ran("train", "--model", model, "--data", data, "--method", "ZeroShot()", *WORDS, "--out", tmp_path / "run"))
