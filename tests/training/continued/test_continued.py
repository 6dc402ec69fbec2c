"""Training that goes on: an adapter learns new data, its origin is kept, and what it forgets is said."""

import json
import shutil

import pytest

from deltatune import DeltatuneError, parse
from deltatune.data import read
from deltatune.store.atomic_files import check_folder
from deltatune.training import Settings
from deltatune.training.continued.continued_training import read_start
from deltatune.training.job import Job, prepare, record_of, run
from deltatune.training.open_session import open_adapter
from support.command_line import QUICK, ran, review_folder, reviews, write_csv

RATE = ("--lr", "1e-2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder, data):
    out = tmp_path_factory.mktemp("runs") / "first"
    done = ran("train", "--model", tiny_folder, "--data", data, *RATE, *QUICK, "--out", out)
    assert done.code == 0, done.err
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def new_reviews(path, count=60, seed=7, **columns):
    rows = [{columns.get(name, name): value for name, value in row.items()} for row in reviews(count, seed)]
    return write_csv(path, rows)


def goes_on(start, file, out, *options):
    return ran(
        "train",
        "--from",
        start,
        "--data",
        file,
        *RATE,
        "--epochs",
        "1",
        "--precision",
        "float32",
        "--out",
        out,
        *options,
    )


def test_training_goes_on_from_an_adapter_with_other_columns(trained, tmp_path):
    before = contents(trained)
    out = tmp_path / "second"
    done = goes_on(trained, new_reviews(tmp_path / "new.csv", text="review", label="stars"), out)
    assert done.code == 0, done.err
    assert contents(trained) == before
    check_folder(out / "adapter")
    metrics = json.loads((out / "metrics.json").read_text())
    first = json.loads((trained / "metrics.json").read_text())
    [earlier] = metrics["earlier"]
    assert earlier["before"] == first["test"]
    assert set(earlier["after"]) == set(first["test"])
    assert set(metrics["before"]) == {"validation", "test"}
    assert "test, before" in done.out
    assert "earlier: reviews, before" in done.out
    session = open_adapter(out)
    [parent] = session.extra["parents"]
    assert parent["folder"].startswith(str(trained))
    assert len(parent["fingerprint"]) == 32
    assert session.task.text == ("review",)
    rows = session.adapter.trained_rows
    assert rows.complete
    assert len(rows.train) > 64  # those of both trainings
    assert session.adapter.method == parse("LoRA(r=8)")


def test_the_first_step_starts_from_the_adapters_weights(trained, data):
    ready = prepare(Job("", read(data), start=read_start(trained), settings=Settings(epochs=1, precision="float32")))
    first = open_adapter(trained)
    ours, theirs = ready.session.adapter.tensors(), first.adapter.tensors()
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_a_chain_keeps_all_parents(trained, tmp_path):
    second, third = tmp_path / "second", tmp_path / "third"
    assert goes_on(trained, new_reviews(tmp_path / "b.csv", seed=7), second).code == 0
    assert goes_on(second, new_reviews(tmp_path / "c.csv", seed=8), third).code == 0
    parents = open_adapter(third).extra["parents"]
    assert [parent["folder"].split("/")[-2] for parent in parents] == ["first", "second"]
    metrics = json.loads((third / "metrics.json").read_text())
    assert len(metrics["earlier"]) == 2
    assert "unknown" not in ran("evaluate", "--adapter", third, "--data", tmp_path / "b.csv", "--split", "train").out


def test_new_labels_are_an_error_or_new_outputs(trained, tmp_path):
    rows = [*reviews(60, 7), *({"text": f"the film is plot {i}", "label": "so-so"} for i in range(30))]
    file = write_csv(tmp_path / "three.csv", rows)
    refused = goes_on(trained, file, tmp_path / "out")
    assert refused.code != 0
    assert "'so-so'" in refused.err
    assert "--new-labels" in refused.err
    assert not (tmp_path / "out").exists()
    done = goes_on(trained, file, tmp_path / "out", "--new-labels")
    assert done.code == 0, done.err
    task = open_adapter(tmp_path / "out").task
    assert task.labels == ("bad", "good", "so-so")
    idle = goes_on(trained, new_reviews(tmp_path / "two.csv"), tmp_path / "two", "--new-labels")
    assert "no new labels" in idle.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "BitFit()"), "LoRA"),
        (("--budget", "1k"), "--budget"),
        (("--pooling", "cls"), "pooling='cls'"),
        (("--task", "regression"), "was trained for classify"),
    ],
)
def test_what_contradicts_the_adapter_is_an_error(trained, tmp_path, options, message):
    done = goes_on(trained, new_reviews(tmp_path / "new.csv"), tmp_path / "out", *options)
    assert done.code != 0
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_the_same_method_is_no_contradiction(trained, tmp_path):
    done = goes_on(trained, new_reviews(tmp_path / "new.csv"), tmp_path / "out", "--method", "LoRA(r=8)")
    assert done.code == 0, done.err


def test_the_folder_of_the_start_is_never_replaced(trained, tmp_path):
    before = contents(trained)
    for place in (trained, trained / "adapter", trained / "adapter" / "next"):
        done = goes_on(trained, new_reviews(tmp_path / "new.csv"), place, "--force")
        assert done.code != 0
        assert "starts from" in done.err
    assert contents(trained) == before


def test_a_stopped_run_that_went_on_ends_with_the_same_adapter(trained, tmp_path):
    data = read(new_reviews(tmp_path / "new.csv"))
    settings = Settings(epochs=2, batch_size=8, learning_rate=1e-2, precision="float32", checkpoint_every=2)

    def trained_in(folder, stop):
        ready = prepare(Job("", data, start=read_start(trained), settings=settings))
        folder.mkdir(exist_ok=True)

        def on_step(step, *rest):
            if step == stop:
                raise KeyboardInterrupt

        run(ready, folder, record_of(ready, "new.csv"), on_step)
        return json.loads((folder / "metrics.json").read_text())

    whole = trained_in(tmp_path / "whole", 0)
    with pytest.raises(KeyboardInterrupt):
        trained_in(tmp_path / "stopped", 5)
    resumed = trained_in(tmp_path / "stopped", 0)
    assert all(whole[name] == resumed[name] for name in ("validation", "test", "before", "earlier"))
    one, other = (tmp_path / name / "adapter" / "adapter.safetensors" for name in ("whole", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_a_recipe_goes_on_from_an_adapter(trained, tmp_path):
    yaml = tmp_path / "more.yaml"
    settings = "{epochs: 1, learning_rate: 0.01, precision: float32}"
    yaml.write_text(f"from: {trained}\ndata: {new_reviews(tmp_path / 'new.csv')}\nsettings: {settings}\n")
    done = ran("run", yaml, f"out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["earlier"]) == 1
    resolved = (tmp_path / "out" / "recipe.yaml").read_text()
    assert f"from: {trained}" in resolved
    assert "method" not in resolved
    again = ran("run", tmp_path / "out" / "recipe.yaml", f"out={tmp_path / 'out'}")
    assert again.code == 0, again.err
    assert "finished before" in again.out
    for override, message in (
        ("method=BitFit()", "leave method out"),
        ("budget=1k", "leave budget out"),
        (f"out={trained}", "starts from"),
        ("from=nowhere", "no adapter folder at nowhere"),
    ):
        out = [] if override.startswith("out=") else [f"out={tmp_path / 'other'}"]
        other = ran("run", yaml, *out, override)
        assert other.code != 0, override
        assert message in other.err
    assert not (tmp_path / "other").exists()


def test_an_adapter_of_peft_is_a_start(trained, data, tiny_folder, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / "adapter" / name, folder / name)
    done = ran(
        "train", "--from", folder, "--model", tiny_folder, "--data", data, *RATE, *QUICK, "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert "with a new head" in " ".join(done.out.split())
    session = open_adapter(tmp_path / "out")
    assert not session.adapter.trained_rows.complete
    assert "may know more" in " ".join(ran("evaluate", "--adapter", tmp_path / "out", "--data", data).out.split())


def test_no_adapter_there_is_an_error(tmp_path):
    with pytest.raises(DeltatuneError, match="no adapter folder"):
        read_start(tmp_path / "nothing")
