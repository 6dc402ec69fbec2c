"""`deltatune train --task image` and `deltatune draw`: from a folder of pictures to a grid over the slider."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltatune.cli.commands.draw import file_name, weighted
from support.command_line import ran
from support.pictures import write_pictures

pytest.importorskip("diffusers")

STYLE = "LoRA(r=4, sites='*.{q,k,v,o}')"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline, pictures, and a run on them. Read only."""
    from support.diffusion import stable_diffusion

    folder = tmp_path_factory.mktemp("draw")
    stable_diffusion().save_pretrained(folder / "pipe")
    write_pictures(folder / "pictures")
    done = ran(
        *("train", "--task", "image", "--model", folder / "pipe", "--data", folder / "pictures", "--method", STYLE),
        *("--steps", "3", "--batch-size", "2", "--lr", "0.05", "--precision", "float32", "--out", folder / "run"),
        *("--sample", "a red wall", "--seed", "3"),
    )
    assert done.code == 0, done.err
    (folder / "screen.txt").write_text(done.out)
    return folder


@pytest.mark.slow
def test_a_run_has_scores_before_and_after_and_sample_pictures(place):
    metrics = json.loads((place / "run/metrics.json").read_text())
    assert metrics["validation"]["loss"] != metrics["before"]["validation"]["loss"]
    assert metrics["training"]["steps"] == 3
    pictures = [np.asarray(Image.open(place / f"run/samples/01-weight-{weight}.png")) for weight in (0, 1)]
    assert pictures[0].shape == (8, 8, 3)
    assert not np.array_equal(*pictures)
    assert {path.name for path in (place / "run/samples").iterdir()} == {
        "01-weight-0.png", "01-weight-1.png", "grid.png"
    }  # fmt: skip
    screen = " ".join((place / "screen.txt").read_text().split())
    assert "validation, before" in screen
    assert "these are 3 steps" in screen
    assert f"deltatune draw --adapter {place / 'run'}" in screen


@pytest.mark.slow
def test_the_same_command_does_not_train_again_but_for_other_pictures(place, tmp_path):
    command = (
        *("train", "--task", "image", "--model", place / "pipe", "--method", STYLE, "--steps", "2", "--lr", "0.05"),
        *("--precision", "float32", "--sample", "", "--out", tmp_path / "run"),
    )
    pictures = write_pictures(tmp_path / "pictures")
    assert ran(*command, "--data", pictures).code == 0
    assert not (tmp_path / "run/samples").exists()
    assert "finished before" in ran(*command, "--data", pictures).out
    Image.new("RGB", (9, 9), "white").save(pictures / "00.png")
    other = ran(*command, "--data", pictures)
    assert other.code != 0
    assert "other settings" in other.err


@pytest.mark.slow
def test_a_slider_of_pictures_and_its_grid(place, tmp_path):
    out = tmp_path / "slider"
    asked = ("draw", "--adapter", place / "run", "--text", "a red wall", "--steps", "2")
    done = ran(*asked, "--weight", "0", "--weight", "0.5", "--weight", "1", "--out", out, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [picture["file"] for picture in facts["pictures"]] == [
        "01-a-red-wall-weight-0.png", "01-a-red-wall-weight-0.5.png", "01-a-red-wall-weight-1.png"
    ]  # fmt: skip
    assert json.loads((out / "pictures.json").read_text())["grid"] == "grid.png"
    pixels = {(out / picture["file"]).read_bytes() for picture in facts["pictures"]}
    assert len(pixels) == 3
    again = ran(*asked, "--out", out)
    assert again.code != 0
    assert "--force" in again.err
    # half of the run's weight is the same as the weight 0.5 of the slider
    done = ran(
        "draw", "--adapter", f"{place / 'run'}=0.5", "--text", "a red wall", "--steps", "2", "--out", out / "one"
    )
    assert done.code == 0, done.err
    assert (out / "one/01-a-red-wall.png").read_bytes() == (out / "01-a-red-wall-weight-0.5.png").read_bytes()


@pytest.mark.slow
def test_two_styles_at_once_and_diffusers_draws_the_same(place, tmp_path):
    from diffusers import StableDiffusionPipeline

    from deltatune.core.delta import generator_for

    run, twin = place / "run", tmp_path / "twin"
    shutil.copytree(run, twin)
    done = ran(
        *("draw", "--adapter", f"{run}=0.5", "--adapter", f"{twin}=0.5", "--text", "a wall", "--steps", "2"),
        *("--out", tmp_path / "both"),
    )
    assert done.code == 0, done.err
    assert ran("draw", "--adapter", run, "--text", "a wall", "--steps", "2", "--out", tmp_path / "one").code == 0
    both, one = (np.asarray(Image.open(tmp_path / name / "01-a-wall.png"), int) for name in ("both", "one"))
    assert np.abs(both - one).max() <= 1
    pipe = StableDiffusionPipeline.from_pretrained(place / "pipe")
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(run / "adapter")
    generator = generator_for(0, "picture.0")
    picture = pipe("a wall", height=8, width=8, num_inference_steps=2, generator=generator).images[0]
    assert np.abs(np.asarray(picture, int) - one).max() <= 1
    bare = ran("draw", "--model", place / "pipe", "--text", "a wall", "--steps", "2", "--out", tmp_path / "bare")
    assert bare.code == 0, bare.err
    assert np.abs(np.asarray(Image.open(tmp_path / "bare/01-a-wall.png"), int) - one).max() > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--text is missing"),
        (("--text", "a"), "name an adapter"),
        (("--text", " ", "--model", "m"), "--text ' ' is empty"),
        (("--text", "a", "--adapter", "run=much"), "'much' is no weight"),
        (("--text", "a", "--adapter", "run=nan"), "must be a finite number"),
        (("--text", "a", "--adapter", "run", "--weight", "inf"), "is no finite number"),
        (("--text", "a", "--adapter", "run", "--weight", "1", "--weight", "1"), "--weight 1 is given twice"),
        (
            ("--text", "a", "--adapter", "run", "--weight", "0.1234567", "--weight", "0.1234568"),
            "0.123457 is given twice",
        ),
        (("--text", "a", "--adapter", "run", "--adapter", "run"), "--adapter run=2 doubles its weight"),
        (("--text", "a", "--model", "m", "--guidance", "nan"), "--guidance nan is no finite number"),
        (("--text", "a", "--model", "m", "--resolution", "0"), "--resolution"),
        (("--text", "a", "--model", "m", "--weight", "0", "--weight", "1"), "a slider of an adapter"),
        (("--text", "a", "--adapter", "no-such-run"), "there is no adapter no-such-run"),
    ],
)
def test_what_cannot_be_drawn(options, words):
    done = ran("draw", *options)
    assert done.code != 0
    assert words in done.err


@pytest.mark.slow
def test_what_does_not_draw_says_what_does(place, tmp_path):
    done = ran("serve", "--adapter", place / "run", "--port", "0")
    assert (done.code, "run draws pictures" in done.err, "deltatune draw" in done.err) == (2, True, True)
    for options in (("--for", "vllm"), ("--for", "vllm", "--merge"), ("--for", "onnx")):
        done = ran("export", place / "run", *options, "--out", tmp_path / "out")
        assert (done.code, "pipe.load_lora_weights(folder)" in done.err) == (2, True)
    done = ran("evaluate", "--adapter", place / "run", "--data", place / "pictures", "--json")
    assert json.loads(done.out)["rows"] == 4  # each picture once, though it is in two splits


@pytest.mark.slow
def test_options_of_pictures_are_for_pictures(place, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(30)))
    done = ran("train", "--data", table, "--resolution", "64", "--flip")
    assert "--resolution is for --task image; this task is classification" in done.err
    assert "--flip is for --task image" in done.err
    command = ("train", "--task", "image", "--model", place / "pipe", "--data", place / "pictures")
    for options, words in (
        (("--resolution", "9"), "this model takes multiples of 2"),
        (("--resolution", "64"), "fewer than --resolution 64"),
        (("--min-snr", "0"), "min_snr must be above 0"),
        (("--packing",), "packing is for texts"),
        (("--quantize", "nf4"), "float32"),
    ):
        done = ran(*command, *options, "--out", tmp_path / "run")
        assert done.code != 0
        assert words in done.err
    done = ran("predict", "--adapter", place / "run", stdin="a wall\n")
    assert done.code != 0
    assert "deltatune draw" in done.err
    done = ran("evaluate", "--adapter", place / "run", "--data", place / "pictures", "--json")
    assert done.code == 0, done.err
    trained = json.loads((place / "run/metrics.json").read_text())
    assert f'"loss": {trained["validation"]["loss"]}'[:14] in done.out


def test_names_and_weights_of_options(tmp_path):
    assert file_name(0, "A red Circle!", None) == "01-a-red-circle.png"
    assert file_name(1, "你好", -0.5) == "02-weight--0.5.png"
    assert weighted("run") == ("run", 1.0)
    assert weighted("a=b=0.7") == ("a=b", 0.7)
    (tmp_path / "lr=3").mkdir()
    assert weighted(str(tmp_path / "lr=3")) == (str(tmp_path / "lr=3"), 1.0)


def test_what_a_pipeline_does_not_do_is_said_in_words(place_of_pipe):
    folder = place_of_pipe
    pipe, pictures = folder / "pipe", folder / "pictures"
    task = ("--task", "image", "--data", pictures)
    train = ("train", *task, "--model", pipe, "--method", "LoRA(r=2)", "--steps", "1", "--out", folder / "e")
    for command, words in (
        (("draw", "--model", pipe, "--text", "a", "--steps", "2000", "--out", folder / "x"), "2000 cannot be larger"),
        (("compare", *task, "--model", pipe, "--method", "LoRA(r=2)", "--out", folder / "y"), "has a loss alone"),
        (("train", *task, "--steps", "1", "--out", folder / "z"), "the built-in model reads texts: name with --model"),
        (("sites", pipe), "is a pipeline of diffusers"),
        (("train", "--data", pictures, "--out", folder / "z"), "they are for --task image"),
        (
            ("train", *task, "--model", pipe, "--method", "Prompt", "--out", folder / "z"),
            "it has: *.attn, *.attn.heads",
        ),
        ((*train, "--init", "eva"), "--init eva reads the tokens of the training rows"),
    ):
        done = ran(*command)
        assert done.code == 2, done.err
        assert words in " ".join(done.err.split())
    (pictures / "01.png").write_text("no picture")
    done = ran("data", "check", pictures, "--task", "image")
    assert done.code == 1
    assert "1 of 4 files cannot be used" in " ".join((done.out + done.err).split())


@pytest.mark.slow
def test_training_goes_on_with_other_samples(place, tmp_path):
    done = ran(
        *("train", "--from", place / "run", "--task", "image", "--data", place / "pictures", "--steps", "1"),
        *("--sample", "", "--flip", "--precision", "float32", "--out", tmp_path / "further"),
    )
    assert done.code == 0, done.err
    done = ran("train", "--from", place / "run", "--task", "image", "--data", place / "pictures", "--crop", "none")
    assert done.code == 2
    assert "crop='none': the adapter was trained with 'center'; may change: metric, samples" in done.err


@pytest.fixture
def place_of_pipe(tmp_path):
    """A saved pipeline and pictures."""
    from support.diffusion import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "pipe")
    write_pictures(tmp_path / "pictures")
    return tmp_path
