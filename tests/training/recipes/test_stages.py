"""Recipes in stages: what each makes, going on after a stop anywhere, noticing what changed, and the report."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import digest
from deltatune.training.recipes import read_recipe, run_recipe
from support import stages, vocabularies
from support.command_line import ran

WEIGHTS = "model.safetensors"


class Stopped(Exception):
    pass


def stop():
    raise Stopped


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return stages.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A finished run: its folder and what it gave. Read only."""
    out = tmp_path_factory.mktemp("done") / "out"
    return out, run_recipe(stages.recipe(world, out), "r")


@pytest.fixture
def copied(done, tmp_path):
    """A finished run to change. Paths are those of the copy."""
    shutil.copytree(done[0], tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.json"):
        if path.name in ("stage.json", "measure.json", "run.json"):
            path.write_text(path.read_text().replace(str(done[0]), str(tmp_path / "out")))
    return tmp_path / "out"


class Seen:
    """A callback that notes which stages run and which were finished."""

    def __init__(self):
        self.done, self.finished = [], []

    def __call__(self, stage):
        (self.finished if stage.finished else self.done).append(stage.name)
        return stages.stopping(None, stop)(stage)


# --- what comes of it


def test_each_stage_makes_a_model_and_says_what_it_gained(done):
    out, result = done
    assert json.loads((out / "pipeline.json").read_text()) == result
    words, embeddings, pretrain, instruct = result["stages"]
    assert words["vocabulary"]["added"] == 40
    assert 0 < words["vocabulary"]["known_unchanged"] <= 1
    assert words["vocabulary"]["rows"] % 64 == 0
    assert [stage["from"] for stage in result["stages"][1:]] == [stage["model"] for stage in result["stages"][:-1]]
    for stage in (embeddings, pretrain, instruct):
        assert 0 <= stage["merge"]["difference"] < 1e-3
        assert stage["merge"] == json.loads((Path(stage["model"]) / "merge.json").read_text())
        assert stage["scores"]["training"]["steps"] == 4
    assert pretrain["merge"]["difference"] > 0, "LoRA rounds"
    assert result["result"] == str(out / "model")
    for name in ("1-words", "2-embeddings", "3-pretrain", "4-instruct"):
        assert (out / name / "recipe.yaml").is_file()
    assert len(read_recipe(out / "recipe.yaml").stages) == 4


def test_new_words_make_texts_shorter_and_training_makes_them_likelier(done):
    _, result = done
    before, after = result["measure"], [stage["measure"] for stage in result["stages"]]
    assert after[0]["tokens_per_char"] < 0.8 * before["tokens_per_char"]
    assert {one["tokens_per_char"] for one in after} == {after[0]["tokens_per_char"]}
    assert after[0]["bits_per_char"] > after[1]["bits_per_char"] > after[2]["bits_per_char"]


def test_the_last_model_is_read_by_transformers_with_its_words(done, world):
    out, _ = done
    tokenizer, old = AutoTokenizer.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(world / "model")
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    text = vocabularies.NEW[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) < len(old(text, add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(ids) == text
    assert max(ids) < model.config.vocab_size
    assert torch.isfinite(model(**tokenizer(text, return_tensors="pt")).logits).all()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_stay_tied_or_apart(tied, done, tmp_path):
    if tied:
        out = done[0]
    else:
        out = tmp_path / "out"
        run_recipe(stages.recipe(stages.world(tmp_path, tied=False), out), "r")
    models = [
        AutoModelForCausalLM.from_pretrained(place) for place in (out / "1-words/model", out / "2-embeddings/model")
    ]
    for model in models:
        same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert same == tied
    first, second = ({name: value for name, value in model.named_parameters()} for model in models)
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"model.embed_tokens.weight"}, "input embeddings alone"


def test_the_pretraining_stage_moves_attention_and_embeddings_and_the_last_the_ffn(done):
    out, _ = done
    places = [out / "2-embeddings/model", out / "3-pretrain/model", out / "model"]
    states = [dict(AutoModelForCausalLM.from_pretrained(place).named_parameters()) for place in places]
    pairs = pairwise(states)
    pretrain, instruct = ({name.split(".")[-2] for name in a if not torch.equal(a[name], b[name])} for a, b in pairs)
    assert pretrain == {"q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens"}
    assert instruct == {"gate_proj", "up_proj", "down_proj"}


# --- going on


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "stage",
    [
        "words",
        "embeddings",
        pytest.param("pretrain", marks=pytest.mark.slow),
        pytest.param("instruct", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_in_a_stage_goes_on_to_the_same_model(stage, world, done, tmp_path):
    out, seen = tmp_path / "out", Seen()
    with pytest.raises(Stopped):
        run_recipe(stages.recipe(world, out), "r", on_stage=stages.stopping(stage, stop))
    assert not (out / "pipeline.json").exists()
    result = run_recipe(stages.recipe(world, out), "r", on_stage=seen)
    before = stages.NAMES[: stages.NAMES.index(stage)]
    assert seen.finished == list(before)
    assert digest(out / "model" / WEIGHTS) == digest(done[0] / "model" / WEIGHTS)
    assert [one["measure"] for one in result["stages"]] == [one["measure"] for one in done[1]["stages"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        ("words", "writing"),
        pytest.param("embeddings", "training", marks=pytest.mark.slow),
        pytest.param("pretrain", "writing", marks=pytest.mark.slow),
        pytest.param("instruct", "writing", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_model(stage, moment, world, done, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, stages.__file__, world, out, stage, moment]
    died = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=200)
    assert died.returncode == -9, died.stderr
    left = list(out.rglob(".model.*"))
    assert bool(left) == (moment == "writing")
    run_recipe(stages.recipe(world, out), "r")
    assert digest(out / "model" / WEIGHTS) == digest(done[0] / "model" / WEIGHTS)
    assert not list(out.rglob(".model.*")), "what the killed write left is gone"


def test_a_finished_run_is_not_done_again(world, copied):
    seen, before = Seen(), {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    run_recipe(stages.recipe(world, copied), "r", on_stage=seen)
    assert seen.finished == list(stages.NAMES)
    assert before == {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}


def test_a_model_that_was_removed_is_merged_again_without_training(world, copied, done):
    shutil.rmtree(copied / "3-pretrain/model")
    trained = (copied / "3-pretrain/metrics.json").stat().st_mtime_ns
    seen = Seen()
    run_recipe(stages.recipe(world, copied), "r", on_stage=seen)
    assert (copied / "3-pretrain/metrics.json").stat().st_mtime_ns == trained
    assert digest(copied / "3-pretrain/model" / WEIGHTS) == digest(done[0] / "3-pretrain/model" / WEIGHTS)
    assert "instruct" in seen.finished, "it starts from the same model as before"


def test_a_damaged_model_is_noticed(world, copied):
    path = copied / "2-embeddings/model" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DeltatuneError, match="was changed or damaged"):
        run_recipe(stages.recipe(world, copied), "r")


# --- noticing what changed


def test_a_changed_stage_is_named_and_done_again_on_request(world, copied, done):
    changed = stages.recipe(world, copied, "stages.pretrain.settings.seed=3")
    with pytest.raises(
        DeltatuneError, match=r"(?s)stage pretrain was finished in .*settings.seed: it was 0, now it is 3"
    ):
        run_recipe(changed, "r")
    seen = Seen()
    run_recipe(changed, "r", on_stage=seen, again="pretrain")
    assert seen.finished == ["words", "embeddings"]
    assert seen.done == ["pretrain", "instruct"]
    assert digest(copied / "model" / WEIGHTS) != digest(done[0] / "model" / WEIGHTS)
    seen = Seen()
    run_recipe(changed, "r", on_stage=seen)
    assert seen.finished == list(stages.NAMES)


@pytest.mark.slow
def test_later_stages_are_done_again_when_an_earlier_one_makes_another_model(world, copied):
    changed = stages.recipe(world, copied, "stages.embeddings.settings.seed=3")
    with pytest.raises(Stopped):  # the later stages are finished, but of the old model
        run_recipe(changed, "r", on_stage=stages.stopping("pretrain", stop), again="embeddings")
    seen = Seen()
    run_recipe(changed, "r", on_stage=seen)
    assert seen.finished == ["words", "embeddings"]
    assert seen.done == ["pretrain", "instruct"]


def test_changed_rows_are_a_change(world, copied, tmp_path):
    again = shutil.copytree(world, tmp_path / "again")
    (again / "asked.jsonl").write_text((again / "asked.jsonl").read_text().replace("不好", "很差"))
    recipe = stages.recipe(world, copied, f"stages.instruct.data.source={again / 'asked.jsonl'}")
    with pytest.raises(DeltatuneError, match=r"(?s)stage instruct was finished.*content"):
        run_recipe(recipe, "r")


def test_a_dropped_last_stage_makes_the_one_before_the_result(world, copied):
    recipe = stages.recipe(world, copied, "stages.instruct=null")
    result = run_recipe(recipe, "r")
    assert result["result"] == str(copied / "model")
    assert digest(copied / "model" / WEIGHTS) == digest(copied / "3-pretrain/model" / WEIGHTS)


@pytest.mark.slow
def test_force_does_everything_again(world, copied):
    seen = Seen()
    run_recipe(stages.recipe(world, copied), "r", force=True, on_stage=seen)
    assert seen.done == list(stages.NAMES)


# --- what is refused before anything runs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.instruct.method=LoRA(sites='*.ffn.{gat}')", "stages.instruct: no site of this LlamaForCausalLM"),
        ("stages.instruct.method=Bottleneck(size=4)", "stages.instruct: Bottleneck(size=4) cannot be merged"),
        ("stages.instruct.budget=3", "stages.instruct: "),
        ("stages.pretrain.objective.kind=lmm", "stages.pretrain: there is no objective 'lmm', did you mean 'lm'?"),
        ("stages.instruct.task.beam=2", "stages.instruct: Generate has no 'beam', did you mean 'beams'?"),
        ("stages.words.vocabulary.known=nowhere.txt", "words: "),
        ("measure=nowhere.txt", "measure: "),
    ],
)
def test_mistakes_of_late_stages_show_first(world, tmp_path, override, message):
    with pytest.raises(DeltatuneError) as caught:
        run_recipe(stages.recipe(world, tmp_path / "out", override), "r")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_head_cannot_be_merged_but_may_be_kept_apart(world, tmp_path):
    rows = [{"text": text, "label": "差" if "差" in text else "好"} for text in vocabularies.NEW]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    over = ["stages.instruct.task=null", f"stages.instruct.data={path}", "stages.words=null", "stages.pretrain=null"]
    with pytest.raises(DeltatuneError, match="a classification head, which cannot be merged into the base model"):
        run_recipe(stages.recipe(world, tmp_path / "out", *over), "r")
    result = run_recipe(stages.recipe(world, tmp_path / "out", *over, "stages.instruct.merge=false"), "r")
    assert result["result"] == str(tmp_path / "out/1-embeddings/model")
    assert "merge" not in result["stages"][-1]
    assert "accuracy" in result["stages"][-1]["scores"]["test"]
    assert (tmp_path / "out/2-instruct/adapter").is_dir()


def test_an_adapter_that_was_removed_is_noticed(tiny_folder, tmp_path):
    rows = [{"text": f"{word} film {number}", "label": word} for number in range(60) for word in ("good", "bad")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = "{max_steps: 1, precision: float32}"
    stage = f"{{name: one, data: {tmp_path / 'rows.jsonl'}, method: BitFit(), merge: false, settings: {settings}}}"
    (tmp_path / "recipe.yaml").write_text(f"model: {tiny_folder}\nout: {tmp_path / 'out'}\nstages: [{stage}]\n")
    staged = read_recipe(tmp_path / "recipe.yaml")
    run_recipe(staged, "recipe")
    shutil.rmtree(tmp_path / "out/1-one/adapter")
    with pytest.raises(DeltatuneError, match=r"stage one was finished, but .* is incomplete[^$]*--again one trains it"):
        run_recipe(staged, "recipe")
    run_recipe(staged, "recipe", again="one")
    assert (tmp_path / "out/1-one/adapter").is_dir()


def test_folders_of_others_are_left_alone(world, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DeltatuneError, match="holds files that are not a run of a recipe"):
        run_recipe(stages.recipe(world, tmp_path / "mine"), "r")
    with pytest.raises(DeltatuneError, match="no such stage, did you mean 'instruct'"):
        run_recipe(stages.recipe(world, tmp_path / "out"), "r", again="instruc")


# --- the command


def test_the_command_reports_every_stage(done, world, copied, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text((done[0] / "recipe.yaml").read_text())
    shown = ran("run", path, f"out={copied}")
    assert shown.code == 0, shown.err
    assert "Stage 4 of 4, instruct: finished before" in shown.out
    assert "40 new tokens" in shown.out
    assert "bits/char" in shown.out
    assert f"Model: {copied / 'model'}" in shown.out
    told = ran("run", path, f"out={copied}", "--json")
    assert json.loads(told.out) == json.loads((copied / "pipeline.json").read_text())


def test_ctrl_c_says_what_is_kept(world, done, tmp_path, monkeypatch):
    path, out = tmp_path / "r.yaml", tmp_path / "out"
    path.write_text((done[0] / "recipe.yaml").read_text())

    def interrupted():
        raise KeyboardInterrupt

    def on_step(self, number, total, loss, rate):
        if number == 3:
            interrupted()

    monkeypatch.setattr("deltatune.cli.ui.live.TrainingProgress.__call__", on_step)
    stopped = ran("run", path, f"out={out}")
    assert stopped.code == 130
    assert "the stages before embeddings are finished, step 2 is kept in" in stopped.err
    monkeypatch.undo()
    assert ran("run", path, f"out={out}").code == 0
    assert digest(out / "model" / WEIGHTS) == digest(done[0] / "model" / WEIGHTS)
