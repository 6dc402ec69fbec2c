"""Continual learning: the measures, every kind of task, runs that are stopped, and what is kept."""

import json
import math

import numpy as np
import pytest

from deltatune import DeltatuneError
from deltatune.comparison.continual.continual_plan import make_plan
from deltatune.comparison.continual.continual_run import run
from deltatune.comparison.continual.transfer import over_seeds, transfer
from deltatune.data import read
from deltatune.data.mixture_data import mix
from deltatune.store.folder_lock import FolderLock
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter
from support import models
from support.command_line import ran, review_folder, reviews, write_csv
from support.killed import killed
from support.language_models import generation_tokenizer

SETTINGS = Settings(epochs=1, batch_size=8, learning_rate=1e-2, precision="float32")


def test_the_measures_are_those_of_the_papers():
    matrix = [[0.9], [0.95, 0.8], [0.7, 0.85, 0.6]]
    found = transfer(matrix, ["accuracy"] * 3)
    assert found["average"] == pytest.approx((0.7 + 0.85 + 0.6) / 3)
    assert found["backward_transfer"] == pytest.approx(((0.7 - 0.9) + (0.85 - 0.8)) / 2)
    assert found["forgetting"] == pytest.approx(((0.95 - 0.7) + (0.8 - 0.85)) / 2)
    losses = transfer([[3.0], [9.0, 0.5]], ["perplexity", "accuracy"])
    assert losses["average"] == pytest.approx((1 / 10 + 0.5) / 2)
    assert losses["forgetting"] == pytest.approx(1 / 4 - 1 / 10)
    assert transfer([[0.5]], ["accuracy"]) == {"average": 0.5, "backward_transfer": 0.0, "forgetting": 0.0}
    seeds = over_seeds([{"matrix": matrix, **found}, {"matrix": [[0.7], [0.75, 0.8], [0.7, 0.85, 0.8]], "average": 1.0,
                                                       "backward_transfer": 0.0, "forgetting": 0.0}])  # fmt: skip
    assert seeds["matrix"][0] == [pytest.approx(0.8)]
    assert seeds["deviation"]["forgetting"] == pytest.approx(found["forgetting"] / math.sqrt(2))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    sentences = [f"the O\n{('film', 'plot')[i % 2]} {('B-X', 'O')[i % 2]}\nis{i} O\n" for i in range(40)]
    (place / "names.conll").write_text("\n".join(sentences), encoding="utf-8")
    texts = [{"instruction": f"say film {i}", "output": f"it is {('good', 'bad')[i % 2]} {i}"} for i in range(40)]
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    return {
        "mood": write_csv(place / "mood.csv", reviews(60)),
        "names": place / "names.conll",
        "answers": place / "answers.jsonl",
    }


def planned(files, names, model, out, **more):
    return make_plan(
        mix({name: read(files[name]) for name in names}), model=str(model), settings=SETTINGS, out=out, **more
    )


def test_adapters_apart_forget_nothing_and_one_model_does(files, tiny_folder, tmp_path):
    plan = planned(files, ("mood", "names"), tiny_folder, tmp_path / "out")
    result = run(plan)
    lora, full = result["methods"]
    assert [task["metric"] for task in result["tasks"]] == ["accuracy", "f1"]
    for entry in (lora, full):
        assert entry["apart"]["forgetting"] == entry["apart"]["backward_transfer"] == 0.0  # scored from the files
        assert [len(row) for row in entry["sequential"]["matrix"]] == [1, 2]
        assert [row[-1] for row in entry["apart"]["matrix"]] == entry["apart"]["matrix"][-1]
        assert len(entry["joint"]["matrix"]) == 1
        assert entry["sequential"]["matrix"][0] == entry["apart"]["matrix"][0]  # the first task is learned alone
    [places], mood = (tmp_path / "out" / "trainings").glob("1-LoRA*-seed0"), plan.encoded["mood"]["test"]
    final = open_adapter(places / "sequential" / "names")
    answers = final.for_part("mood").predict(mood)
    score = final.task.parts["mood"].score(answers, mood.references)["accuracy"]
    assert score == pytest.approx(lora["sequential"]["matrix"][1][0])
    assert np.abs(answers - open_adapter(places / "apart" / "mood").predict(mood)).max() > 1e-3  # it has learned on
    assert not list((tmp_path / "out").rglob("*checkpoints*"))
    rows = final.adapter.trained_rows
    assert len(rows.train) == sum(len(set(map(str, part.train))) for part in plan.data.parts.values())


def test_a_language_model_learns_every_kind_in_sequence(files, tmp_path):
    folder = tmp_path / "llama"
    models.tiny("llama", "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    fields = {"parts": {"answers": {"prompt": "plain", "new_tokens": 3}}}
    names, methods = ("mood", "answers", "names"), ("Prefix(length=2)",)
    plan = planned(files, names, folder, tmp_path / "out", methods=methods, modes=("sequential",), seeds=2, task=fields)
    [entry] = run(plan)["methods"]
    assert len(entry["sequential"]["seeds"]) == 2
    assert entry["sequential"]["deviation"]["average"] is not None
    assert [len(row) for row in entry["sequential"]["matrix"]] == [1, 2, 3]


def test_a_stopped_run_ends_with_the_same_result(files, tiny_folder, tmp_path):
    names = ("mood", "names")
    whole = run(planned(files, names, tiny_folder, tmp_path / "whole", methods=("LoRA(r=2)",)))
    plan = planned(files, names, tiny_folder, tmp_path / "stopped", methods=("LoRA(r=2)",))
    for stops in range(1, 9):
        count = 0

        def on_training(text, scores, stops=stops):
            nonlocal count
            count += 1
            if count == stops:
                raise KeyboardInterrupt

        try:
            resumed = run(plan, on_training)
            break
        except KeyboardInterrupt:
            assert plan.session.host.adapters == {}
    assert resumed == whole
    assert run(plan) == whole  # finished: nothing is trained again


def test_a_folder_with_another_run_is_refused_and_forced(files, tiny_folder, tmp_path):
    first = planned(files, ("mood", "names"), tiny_folder, tmp_path / "out", methods=("BitFit()",), modes=("joint",))
    run(first)
    other = planned(files, ("names", "mood"), tiny_folder, tmp_path / "out", methods=("BitFit()",), modes=("joint",))
    with pytest.raises(DeltatuneError, match="other settings"):
        run(other)
    assert [task["name"] for task in run(other, force=True)["tasks"]] == ["names", "mood"]


def test_mistakes_show_before_anything_is_trained(files, tiny_folder, tmp_path):
    with pytest.raises(DeltatuneError, match="did you mean 'joint'"):
        planned(files, ("mood", "names"), tiny_folder, tmp_path / "out", modes=("jiont",))
    with pytest.raises(DeltatuneError, match="BitFit\\(\\) is named twice"):
        planned(files, ("mood", "names"), tiny_folder, tmp_path / "out", methods=("BitFit()", "BitFit()"))
    with pytest.raises(DeltatuneError, match=r"LORA\(\)"):
        planned(files, ("mood", "names"), tiny_folder, tmp_path / "out", methods=("LORA()",))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_matrix_and_measures(files, tiny_folder, tmp_path):
    command = (
        "continual", "--model", tiny_folder, "--data", files["mood"], "--data", f"tags={files['names']}",
        "--epochs", "1", "--method", "BitFit()", "--max-length", "32", "--precision", "float32",
        "--out", tmp_path / "out",
    )  # fmt: skip
    done = ran(*command)
    assert done.code == 0, done.err
    for word in ("mood (accuracy)", "tags (f1)", "one after another: after tags", "backward transfer", "all together"):
        assert word in done.out
    again = ran(*command, "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert result == json.loads((tmp_path / "out" / "metrics.json").read_text())
    with FolderLock(tmp_path / "out"):
        pass
    for more, message in (
        (("--data", files["mood"]), "two tasks have the name mood"),
        (("--mode", "x"), "apart, sequential, joint"),
    ):
        refused = ran(*command, *more)
        assert refused.code != 0
        assert message in refused.err
    single = ran("continual", "--model", tiny_folder, "--data", files["mood"])
    assert "at least two tasks" in single.err


def kill_command(folder):
    review_folder(folder / "data")
    write_csv(folder / "more.csv", reviews(40, 9))
    models.tiny("bert").save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    sources = ["--data", f"first={folder / 'data'}", "--data", f"second={folder / 'more.csv'}"]
    quick = ["--max-length", "16", "--precision", "float32", "--epochs", "1", "--method", "LoRA(r=2)"]
    return ["continual", "--model", str(folder / "model"), *sources, *quick]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_as_if_never_killed(folder):
    whole = contents(folder / "whole")
    others = [path for path in folder.iterdir() if path.name != "whole" and (path / "metrics.json").exists()]
    for other in others:
        assert contents(other) == whole, other.name
    return len(others)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    killed(kill_command(tmp_path), tmp_path, touches=1, clock=1)
    assert assert_as_if_never_killed(tmp_path) == 3


@pytest.mark.slow
def test_there_is_no_moment_at_which_a_kill_does_harm(tmp_path):
    """Killed before 20 random changes of files, and one run at 20 random times."""
    killed(kill_command(tmp_path), tmp_path, touches=20, clock=20)
    assert assert_as_if_never_killed(tmp_path) == 22
