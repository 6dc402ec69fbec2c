"""The recipes of the repository: every one runs on a tiny model and tiny data, and so do those in the documents."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deltatune.training.recipes import Recipe, as_yaml, checked_recipe, read_recipe
from support import models, vocabularies
from support.command_line import ran, reviews

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_recipes_begin_with_what_they_do():
    for path in FILES:
        first, second, *rest = path.read_text(encoding="utf-8").splitlines()
        assert first == "# yaml-language-server: $schema=../docs/recipe.schema.json"
        assert second.startswith("# ")
        assert len(rest) <= 28
        assert f"deltatune run recipes/{path.name}" in "\n".join(rest)


def test_the_snippets_of_the_documents_are_recipes():
    found = []
    for page in ("docs/tasks.md", "docs/recipes.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for snippet in re.findall(r"```yaml\n(.*?)```", text, re.S):
            for one in re.split(r"^---\n", snippet, flags=re.M):
                assert isinstance(checked_recipe(yaml.safe_load(one)), Recipe)
                found.append((page, one))
    by_task = [one for page, one in found if page == "docs/tasks.md"]
    assert len(by_task) >= 7, "one for each kind of task"
    assert all(len(one.splitlines()) <= 10 for one in by_task)


def model_folder(folder, kind, head=None, tokenizer=None):
    """A model with a tokenizer, grown where the tokenizer has more tokens."""
    model, tokenizer = models.tiny(kind, head), tokenizer or models.tiny_tokenizer()
    size = max(tokenizer.get_vocab().values()) + 1
    if size > model.config.vocab_size:
        model.resize_token_embeddings(size, mean_resizing=False)
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models and data for every recipe: name of the recipe -> overrides."""
    place = tmp_path_factory.mktemp("world")
    texts = [row["text"] for row in reviews(60)]
    bert, gpt2 = model_folder(place / "bert", "bert"), model_folder(place / "gpt2", "gpt2", "lm")
    chatty = models.tiny_tokenizer()
    chatty.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    llama = model_folder(place / "llama", "llama", "lm", chatty)
    pairs = [
        {"premise": a, "hypothesis": b, "label": "yn"[i % 2]}
        for i, (a, b) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    scored = [{"text": text, "score": i % 7 + i / 100} for i, text in enumerate(texts)]
    conll = "\n\n".join("\n".join(f"{w} {'B-X' if w == 'film' else 'O'}" for w in t.split()) for t in texts)
    (place / "train.conll").write_text(conll + "\n")
    spans = [
        {
            "question": f"which {i}",
            "context": f"{text} {i}",
            "answers": {"text": [text.split()[0]], "answer_start": [0]},
        }
        for i, text in enumerate(texts)
    ]
    chats = [
        {"messages": [{"role": "user", "content": f"is {t}"}, {"role": "assistant", "content": t.split()[i % 3]}]}
        for i, t in enumerate(texts)
    ]
    instructions = [{"instruction": f"say {t}", "input": "", "output": t.split()[i % 3]} for i, t in enumerate(texts)]
    asked = [{"question": text, "sql": f"the {text.split()[1]} {i}"} for i, text in enumerate(texts)]
    raw = lines(place / "texts.jsonl", [{"document": f"{t} {i}"} for i, t in enumerate(texts)])
    old = lines(place / "old.jsonl", [{"text": text} for text in vocabularies.OLD[:60]])
    return {
        "classify": [f"model={bert}", "data.limit=64"],
        "pair": [f"model={bert}", f"data.source={lines(place / 'pairs.jsonl', pairs)}", "task.max_length=64"],
        "regression": [f"model={bert}", f"data.source={lines(place / 'scored.jsonl', scored)}"],
        "tag": [f"model={bert}", f"data.source={place / 'train.conll'}"],
        "span": [
            f"model={bert}", f"data.source={lines(place / 'spans.jsonl', spans)}", "task.max_length=48",
            "task.stride=8",
        ],
        "generate": [
            f"model={gpt2}", f"data.source={lines(place / 'asked.jsonl', asked)}", "task.new_tokens=4",
            "task.beams=2",
        ],
        "chat": [f"model={llama}", f"data.source={lines(place / 'chats.jsonl', chats)}", "task.new_tokens=4"],
        "qlora": [
            f"model={llama}", f"data.source={lines(place / 'instructions.jsonl', instructions)}", "method=LoRA(r=2)",
            "settings.accumulation=1", "task.prompt=plain", "task.max_length=64", "task.new_tokens=4",
        ],
        "lm": [f"model={gpt2}", f"data.source={raw}", "task.max_length=32"],
        "pretrain": [
            f"model={model_folder(place / 'mlm', 'bert', 'lm')}", f"data={raw}", "objective.max_length=32",
        ],
        "adapt-spans": [
            f"model={model_folder(place / 't5', 't5', 'lm', vocabularies.tokenizer('t5'))}", f"data={old}",
            "objective.max_length=24",
        ],
    }  # fmt: skip


SHORT = ["settings.max_steps=2", "settings.epochs=null", "settings.batch_size=8", "settings.precision=float32"]


def test_every_recipe_is_tried():
    tried = {
        "classify", "pair", "regression", "tag", "span", "generate", "chat", "qlora", "lm", "pretrain", "adapt-spans",
    }  # fmt: skip
    elsewhere = {"chinese-llama": "tests/training/recipes/test_stages.py", "together": "below", "prefer": "below"}
    assert {path.stem for path in FILES} == tried | set(elsewhere), elsewhere


SINGLE = [path for path in FILES if path.stem not in ("chinese-llama", "together", "prefer")]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_a_recipe_runs_to_its_scores_and_goes_on(path, world, tmp_path):
    out = tmp_path / "out"
    argv = ["run", path, *world[path.stem], *SHORT, f"out={out}"]
    done = ran(*argv)
    assert done.code == 0, done.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["steps"] == 2
    assert f"Adapter: {out / 'adapter'}" in done.out
    assert "2 steps" in done.out
    stored = read_recipe(out / "recipe.yaml")
    assert stored == read_recipe(path, [*world[path.stem], *SHORT, f"out={out}"])
    assert as_yaml(stored) in done.out, "the resolved recipe is printed"
    before = (out / "metrics.json").stat().st_mtime_ns
    again = ran(*argv, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == metrics
    assert (out / "metrics.json").stat().st_mtime_ns == before


def test_the_recipe_of_several_adapters_runs_to_their_scores(world, tmp_path):
    path, out = ROOT / "recipes/together.yaml", tmp_path / "out"
    done = ran("run", path, *world["classify"], *SHORT, f"out={out}")
    assert done.code == 0, done.err
    metrics = json.loads((out / "adapters.json").read_text())["adapters"]
    assert list(metrics) == list(read_recipe(path).adapters)
    assert all(scores["training"]["steps"] == 2 for scores in metrics.values())
    assert as_yaml(read_recipe(out / "recipe.yaml")) in done.out, "the resolved recipe is printed"


def test_another_run_in_the_folder_is_an_error_that_names_the_way_out(world, tmp_path):
    argv = ["run", ROOT / "recipes/pair.yaml", *world["pair"], *SHORT, f"out={tmp_path / 'out'}"]
    assert ran(*argv).code == 0
    other = ran(*argv, "settings.seed=1")
    assert other.code == 2
    assert "settings.seed: it was 0, now it is 1" in other.err
    assert "out=NAME keeps both, --force replaces it" in other.err
    assert ran(*argv, "settings.seed=1", "--force").code == 0
    assert ran(*argv, "--again", "x").code == 2


@pytest.mark.slow
def test_preferences_are_learned_from_the_model_that_learned_instructions(world, tmp_path):
    rows = [{"instruction": f"say {i}", "output": f"the film {i}"} for i in range(40)]
    pairs = [{"prompt": f"say {i}", "chosen": "great and good", "rejected": "awful"} for i in range(40)]
    short = [word.removeprefix("settings.") for word in (*SHORT, "accumulation=1", "learning_rate=5e-2")]
    words = [f"stages.{stage}.settings.{word}" for stage in ("instruct", "prefer") for word in short]
    llama = next(word for word in world["chat"] if word.startswith("model="))
    done = ran(
        "run", ROOT / "recipes/prefer.yaml", llama, f"out={tmp_path / 'out'}", *words,
        f"stages.instruct.data.source={lines(tmp_path / 'rows.jsonl', rows)}", "stages.instruct.task.new_tokens=8",
        f"stages.prefer.data.source={lines(tmp_path / 'pairs.jsonl', pairs)}", "stages.prefer.task.new_tokens=8",
    )  # fmt: skip
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "out/2-prefer/metrics.json").read_text())["test"]
    assert scores["accuracy"] > 0.5
    assert (tmp_path / "out/model/model.safetensors").exists()
