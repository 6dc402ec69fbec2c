"""Errors of recipes speak of keys, with the file and the line; those of the command line of options."""

# ruff: noqa: E501  a recipe and what is said of it a line

import re
from pathlib import Path

import pytest

from deltatune import DeltatuneError, compare
from deltatune.core.input_validation.option_words import reworded, rewording
from deltatune.training.recipes.recipe_words import in_recipe_words
from support.command_line import ran, reviews, write_csv

OPTION = re.compile(r"(?<![\w-])--(?!force\b|again\b)[a-z-]+")
"""An option that `deltatune run` does not have."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "r.csv", reviews(40))
    rows = [{"a": row["text"], "b": row["text"][::-1], "c": row["label"]} for row in reviews(40)]
    write_csv(tmp_path / "several.csv", rows)
    return tmp_path


def test_options_by_other_names() -> None:
    names = {"label": "data.label", "text": "data.text", "task": "data.task", "quantize": "quantize", "set": "task."}
    for text, other in {
        "--label lable: there is no column": "data.label=lable: there is no column",
        "leave --quantize out, or accept it with --other-base": "leave quantize out, or accept it with --other-base",
        "  --task classify --text a --text b --label c": "  data.task=classify data.text=a data.text=b data.label=c",
        "name it with --text NAME, twice for a pair": "name it with data.text=NAME, twice for a pair",
        "--text names a column twice: a": "data.text names a column twice: a",
        "rewards need no copy: --set reference=base": "rewards need no copy: task.reference=base",
        "such as --quantize nf4; or leave it out": "such as quantize=nf4; or leave it out",
        "start with --fsdp_version 2": "start with --fsdp_version 2",
        "a --label-free word": "a --label-free word",
    }.items():
        assert reworded(text, names) == other


def test_rewording_keeps_the_kind_of_an_error() -> None:
    class Own(DeltatuneError):
        pass

    with pytest.raises(Own, match=r"^label=x: no$"), rewording({"label": "label"}):
        raise Own("--label x: no")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data:\n  source: r.csv\n  label: lable\n", "r.yaml: data.label=lable: there is no column 'lable', did you mean 'label'? (line 3)"),
        ("data: {source: r.csv, text: [txt]}\n", "r.yaml: data.text=txt: there is no column 'txt'"),
        ("model: builtin\ndata:\n  source: r.csv\n  task: span\n", "name it with data.text=QUESTION data.text=CONTEXT. (line 2)"),
        ("data: several.csv\n", "data.text=NAME, twice for a pair of texts. (line 1)"),
        ("data: nofile.csv\n", "r.yaml: data: no file nofile.csv"),
        ("model: builtin\ndata: r.csv\ntask:\n  metric: f2\n", "task.metric: 'f2' is not a metric of classification, did you mean 'f1'?"),
        ("data: r.csv\ninit: loftq\n", "r.yaml: init=loftq: LoftQ starts from what quantisation loses: quantise the plain model, such as quantize=nf4"),
        ("data: r.csv\n\nmethod: LoRA(rank=8)\n", "r.yaml: method: LoRA has no option 'rank'; it is called 'r' here (line 3)"),
        ("data: r.csv\nsetings: {}\n", "did you mean 'settings'"),
        ("data: r.csv\nsettings:\n  precision: float99\n", "- settings.precision: input should be"),
        ("data: r.csv\nfrom: nothere\n", "r.yaml: from: no adapter folder at nothere"),
        ("data: r.csv\nout: r.csv\n", "r.yaml: out=r.csv is a file; choose another folder (line 2)"),
        ("mixture:\n  parts:\n    a: {source: r.csv, label: nope}\n    b: {source: r.csv}\n", "mixture.parts.a.label=nope: there is no column 'nope'. (line 3)"),
        ("stages:\n- name: one\n  data: {source: r.csv, task: lm, text: nope}\n- name: two\n  data: {source: r.csv, label: zz}\n", "stages.two.data.label=zz: there is no column 'zz'. (line 5)"),
        ("adapters:\n  x: {data: {source: r.csv, text: nope}}\n  y: {data: r.csv}\n", "adapters.x.data.text=nope: there is no column 'nope'. (line 2)"),
        ("data: r.csv\nmethod: LoRA(r=4) + Lora(r=8)\n", "r.yaml: method: no method is called 'Lora', did you mean 'LoRA'? (line 2)"),
        ("data: r.csv\ntask: {loss: ipo}\n", "r.yaml: task.loss: Classify has no 'loss'; it has: "),
        ("data: r.csv\ntask:\n  beams: 2\n  flip: true\n", "r.yaml:\n- task.beams: Classify has no 'beams'"),
        ("data: r.csv\ntask: {max_seconds: 3}\n", "r.yaml: task.max_seconds: it is for sounds, and these rows hold text; leave it out (line 2)"),
        ("data: {source: r.csv, task: lm}\nhead: {pooling: cls}\n", "r.yaml: head: head options do not apply"),
        ("data: {source: r.csv, task: image}\n", "- data.task: image: recipes train on texts; `deltatune train` trains text to image (line 1)"),
        ("data: r.csv\nsettings: {learning_rate: fast}\n", "- settings.learning_rate: input should be a valid number, unable to parse string as a number, not 'fast' (line 2)"),
        ("data: r.csv\nsettings: {epochs: 2, max_steps: 3}\n", "- settings: there are epochs and max_steps, and only max_steps would be used: leave one out (line 2)"),
        ("title: t\ncompare:\n  data: r.csv\n  methods: [LoRA()]\n  minutes: -1\n", "r.yaml: compare.minutes=-1: a study needs more than 0 minutes (line 5)"),
        ("title: t\ncompare:\n  data: {source: r.csv, label: nope}\n  methods: [LoRA()]\n", "compare.data.NAME.label=nope"),
    ],
)  # fmt: skip
def test_errors_of_recipes(content: str, words: str, place: Path) -> None:
    (place / "r.yaml").write_text(content)
    done = ran("run", "r.yaml")
    assert done.code == 2, done.out
    assert words in done.err
    assert "r.yaml" in done.err.partition("\n")[0]
    assert not OPTION.search(done.err), done.err


def test_an_override_has_no_line(place: Path) -> None:
    (place / "r.yaml").write_text("data: {source: r.csv, label: label}\n")
    done = ran("run", "r.yaml", "data.label=lable")
    assert "r.yaml: data.label=lable: there is no column 'lable'" in done.err
    assert "(line" not in done.err
    (place / "r.yaml").write_text("data: r.csv\ntask: {metric: f1}\n")
    done = ran("run", "r.yaml", "task.beams=2")
    assert "r.yaml: task.beams: Classify has no 'beams'" in done.err
    assert "(line" not in done.err


def test_the_options_of_run_stay(place: Path) -> None:
    (place / "r.yaml").write_text("data: r.csv\n")
    assert (
        "--again x: this recipe has no stages and no adapters; --force runs it again"
        in ran("run", "r.yaml", "--again", "x", f"out={place / 'out'}").err
    )


def test_files_that_are_no_recipes_are_no_second_error(tmp_path: Path) -> None:
    assert in_recipe_words("--label x: no", tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: data.label=x: no"
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "data.label=x" in in_recipe_words("--label x: no", tmp_path / "bad.yaml")


def test_the_same_mistakes_on_the_command_line_and_in_python(place: Path) -> None:
    for command in ("train", "compare"):
        done = ran(command, "--data", "r.csv", "--label", "lable")
        assert "error: --label lable: there is no column 'lable'" in done.err
    with pytest.raises(DeltatuneError, match=r"^label=lable: there is no column 'lable'") as caught:
        compare("r.csv", label="lable")
    assert not OPTION.search(str(caught.value))
    with pytest.raises(DeltatuneError, match=r"^minutes=-1: a study needs more"):
        compare("r.csv", budget=["1%", "2%"], minutes=-1)
