"""Mixtures on the command line and in recipes: trained, scored, used and compared, part by part."""

import json

import pytest

from deltatune.training.open_session import open_adapter
from support import models
from support.command_line import ran, reviews, write_csv
from support.language_models import generation_tokenizer

FAST = ("--epochs", "1", "--lr", "1e-2", "--precision", "float32")


def tagged(path, count=40):
    """A CoNLL file whose films are entities."""
    sentences = [f"the O\n{('film', 'plot')[i % 2]} {('B-X', 'O')[i % 2]}\nis{i} O\n" for i in range(count)]
    path.write_text("\n".join(sentences), encoding="utf-8")
    return path


def answers(path, count=40):
    rows = [
        {"instruction": f"say film {i}", "output": f"the film is {('good', 'bad')[i % 2]} {i}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    return {
        "mood": write_csv(place / "reviews.csv", reviews(60)),
        "names": tagged(place / "names.conll"),
        "answers": answers(place / "answers.jsonl"),
    }


def sources(files, *names):
    return [word for name in names for word in ("--data", f"{name}={files[name]}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder, files):
    out = tmp_path_factory.mktemp("runs") / "mixture"
    done = ran(
        "train", "--model", tiny_folder, *sources(files, "mood", "names"), *FAST, "--max-length", "32",
        "--temperature", "2", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "temperature 2: mood" in " ".join(done.out.split())
    return out


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    models.tiny("llama", "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    return folder


def test_training_stores_each_parts_scores(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"mean", "mood.accuracy", "names.f1"} <= set(metrics["test"])
    task = open_adapter(trained).task
    assert task.temperature == 2.0
    assert {name: part.max_length for name, part in task.parts.items()} == {"mood": 32, "names": 32}


def test_evaluate_scores_one_part_or_all(trained, files):
    both = ran("evaluate", "--adapter", trained, *sources(files, "mood", "names"), "--json")
    assert both.code == 0, both.err
    found = json.loads(both.out)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert found["scores"] == pytest.approx(metrics["test"])
    one = ran("evaluate", "--adapter", trained, "--part", "names", "--data", files["names"], "--json")
    assert one.code == 0, one.err
    alone = json.loads(one.out)
    assert {f"names.{name}": value for name, value in alone["scores"].items()}.items() <= found["scores"].items()
    assert alone["trained_on"]["rows"] == 0
    known = ran(
        "evaluate", "--adapter", trained, "--part", "mood", "--data", files["mood"], "--split", "train", "--json"
    )
    assert json.loads(known.out)["trained_on"]["rows"] == json.loads(known.out)["rows"]
    text = ran("evaluate", "--adapter", trained, *sources(files, "mood", "names"))
    assert "names f1" in text.out


def test_a_split_of_one_part_is_no_mean_of_all(trained, files, tmp_path):
    for name, seed in (("train", 1), ("test_matched", 2), ("test_mismatched", 3)):
        write_csv(tmp_path / f"{name}.csv", reviews(20, seed))
    data = ("--data", f"mood={tmp_path}", *sources(files, "names"))
    shown = " ".join(ran("evaluate", "--adapter", trained, *data, "--weight", "0.5").out.split())
    assert "the mean of test_mismatched is over mood: the other parts have no such split" in shown
    assert f"rows test: 20 from {tmp_path}" in shown
    assert f"test_mismatched: 20 from {tmp_path}" in shown
    assert "the adapter's change was multiplied by 0.5" in shown
    named = ran("evaluate", "--adapter", trained, "--part", "mood", "--data", f"mood={files['mood']}", "--json")
    assert named.code == 0, named.err
    twice = ran("evaluate", "--adapter", trained, "--part", "mood", *sources(files, "mood", "names"))
    assert "--part mood is one task: name one data set, not 2" in twice.err


def test_predict_uses_one_part(trained, tmp_path):
    done = ran("predict", "--adapter", trained, "--part", "mood", stdin="the film is good\nthe plot is bad\n")
    assert done.code == 0, done.err
    assert {json.loads(line)["label"] for line in done.out.splitlines()} <= {"bad", "good"}
    tags = ran("predict", "--adapter", trained, "--part", "names", stdin="the film is\n")
    assert len(json.loads(tags.out)["tags"]) == 3
    for options, message in (((), "--part"), (("--part", "mod"), "did you mean 'mood'")):
        refused = ran("predict", "--adapter", trained, *options, stdin="the film\n")
        assert refused.code != 0
        assert message in refused.err


def test_a_language_model_learns_to_classify_and_to_write(decoder_folder, files, tmp_path):
    command = ("train", "--model", decoder_folder, *sources(files, "mood", "answers"), *FAST, "--new-tokens", "3")
    done = ran(*command, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert {"mood.accuracy", "answers.rougeL"} <= set(scores)
    text = ran("predict", "--adapter", tmp_path / "run", "--part", "answers", stdin="the film\n")
    assert "output" in json.loads(text.out)
    again = ran(*command, "--out", tmp_path / "run")
    assert "finished before" in again.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "text"), "--text is for a single data set"),
        (("--metric", "f1"), "--metric is for a single task"),
        (("--beams", "2"), "no part generates text"),
        (("--data", "third.csv"), "each needs a name"),
        (("--temperature", "0"), "temperature must be above 0"),
        (("--packing",), "packing is for a single task"),
    ],
)
def test_options_of_single_tasks_are_errors(tiny_folder, files, tmp_path, options, message):
    done = ran(
        "train", "--model", tiny_folder, *sources(files, "mood", "names"), *FAST, "--out", tmp_path / "x", *options
    )
    assert done.code != 0
    assert message in done.err
    single = ran("train", "--model", tiny_folder, "--data", files["mood"], "--temperature", "2")
    assert "is for a mixture" in single.err


def test_an_encoder_cannot_write(tiny_folder, files, tmp_path):
    done = ran("train", "--model", tiny_folder, *sources(files, "mood", "answers"), *FAST, "--out", tmp_path / "x")
    assert done.code != 0
    assert "Traceback" not in done.err


def test_a_recipe_names_the_columns_of_each_part(tiny_folder, files, tmp_path):
    recipe = tmp_path / "both.yaml"
    recipe.write_text(
        f"""model: {tiny_folder}
mixture:
  temperature: 3
  parts:
    mood: {{source: {files["mood"]}, text: text, label: label, fields: {{max_length: 24, metric: f1_macro}}}}
    names: {files["names"]}
settings: {{epochs: 1, learning_rate: 0.01, precision: float32}}
""",
        encoding="utf-8",
    )
    done = ran("run", recipe, f"out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    task = open_adapter(tmp_path / "out").task
    assert (task.temperature, task.parts["mood"].metric, task.parts["mood"].max_length) == (3.0, "f1_macro", 24)
    again = ran("run", tmp_path / "out" / "recipe.yaml", f"out={tmp_path / 'out'}")
    assert "finished before" in again.out, again.err
    for override, message in (
        ("mixture.parts.mood.fields.max_lenth=3", "max_length"),
        ("mixture.parts.names=null", "at least two"),
        ("data=x.csv", "data and mixture"),
        ("task.metric=f1", "move metric to fields"),
    ):
        refused = ran("run", recipe, f"out={tmp_path / 'other'}", override)
        assert refused.code != 0, override
        assert message in refused.err, refused.err


def test_training_goes_on_with_a_mixture(trained, files, tmp_path):
    more = {"mood": write_csv(tmp_path / "new.csv", reviews(60, 5)), "names": tagged(tmp_path / "new.conll", 36)}
    done = ran("train", "--from", trained, *sources(more, "mood", "names"), *FAST, "--out", tmp_path / "next")
    assert done.code == 0, done.err
    earlier = json.loads((tmp_path / "next" / "metrics.json").read_text())["earlier"]
    assert [entry["source"] for entry in earlier] == [str(files["mood"]), str(files["names"])]
    before = json.loads((trained / "metrics.json").read_text())["test"]
    assert earlier[0]["before"]["accuracy"] == pytest.approx(before["mood.accuracy"])
    assert "earlier: names.conll" in done.out
    one = ran("train", "--from", trained, "--data", files["mood"], *FAST, "--out", tmp_path / "one")
    assert "--data NAME=SOURCE" in one.err


def test_compare_ranks_methods_by_the_mean_of_the_parts(tiny_folder, files, tmp_path):
    done = ran(
        "compare", "--model", tiny_folder, *sources(files, "mood", "names"), "--method", "BitFit()", "--method",
        "LoRA(r=2)", "--seeds", "1", "--rates", "1", "--epochs", "1", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["metric"] == "mean"
    assert all({"mean", "mood.accuracy", "names.f1"} <= set(entry["scores"]) for entry in summary["methods"])
    assert all(entry["ci95"][0] <= entry["score"] <= entry["ci95"][1] for entry in summary["methods"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_merged_mixture_keeps_its_heads_and_its_answers(trained, files, tmp_path):
    done = ran("merge", "--adapter", trained, "--out", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    head = json.loads(done.out)["head"]
    both = sources(files, "mood", "names")
    before, after = (
        json.loads(ran("evaluate", "--adapter", adapter, *both, "--split", "all", "--json").out)
        for adapter in (trained, head)
    )
    assert after["scores"] == pytest.approx(before["scores"], abs=1e-4)
    assert after["parts"]["mood"]["trained_on"]["rows"] == before["parts"]["mood"]["trained_on"]["rows"] > 0


def test_parts_may_have_names_of_python(tiny_folder, files, tmp_path):
    data = ["--data", f"items={files['mood']}", "--data", f"update={files['names']}"]
    done = ran("train", "--model", tiny_folder, *data, *FAST, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "--part items texts.txt" in done.out
    assert ran("predict", "--adapter", tmp_path / "run", "--part", "update", stdin="the film\n").code == 0
