"""What the tests of stages share: the staged recipe of the repository on a tiny model and a tiny language.

Also run by itself, `stages.py FOLDER OUT STAGE MOMENT`: it does the recipe and kills itself in that stage.
"""

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from deltatune.store import merged_model as whole
from deltatune.training.recipes import read_recipe, run_recipe
from deltatune.training.recipes import stages as vocabulary
from support import models, vocabularies

RECIPE = Path(__file__).parents[2] / "recipes/chinese-llama.yaml"
TRAINED = ("embeddings", "pretrain", "instruct")
NAMES = ("words", *TRAINED)


def world(place, tied=True):
    """A model, texts of a new and an old language, and instructions, in a folder."""
    tokenizer = vocabularies.tokenizer("bytes")
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.chat_template = None
    model = models.tiny("llama", "lm", tie_word_embeddings=tied, max_position_embeddings=512)
    model.resize_token_embeddings(max(tokenizer.get_vocab().values()) + 1, mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "texts.txt").write_text("\n\n".join(vocabularies.NEW), encoding="utf-8")
    (place / "old.txt").write_text("\n\n".join(vocabularies.OLD), encoding="utf-8")
    rows = [
        {"instruction": "好吗？", "input": text, "output": "不好" if "差" in text else "好"}
        for text in vocabularies.NEW
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (place / "asked.jsonl").write_text(lines, encoding="utf-8")
    return place


def recipe(place, out, *more, file=RECIPE):
    """The recipe, or another one with the same stages, on such a folder."""
    texts = place / "texts.txt"
    over = [f"model={place / 'model'}", f"out={out}", f"measure={texts}", "stages.words.vocabulary.size=40"]
    over += [f"stages.words.vocabulary.known={place / 'old.txt'}"]
    over += [f"stages.{name}.data={texts}" for name in NAMES[:3]]
    over += [f"stages.{name}.objective.max_length=48" for name in NAMES[1:3]]
    over += [f"stages.instruct.data.source={place / 'asked.jsonl'}", "stages.instruct.task.new_tokens=4"]
    over += ["stages.instruct.task.max_length=320"]
    if json.loads((place / "model/config.json").read_text())["tie_word_embeddings"]:
        over += ["stages.embeddings.method=Embeddings()"]  # its input embeddings are its head
    for name in TRAINED:
        place_of = f"stages.{name}.settings"
        over += [f"{place_of}.epochs=null", f"{place_of}.max_steps=4", f"{place_of}.checkpoint_every=2"]
        over += [f"{place_of}.batch_size=8", f"{place_of}.accumulation=2", f"{place_of}.precision=float32"]
        over += [f"{place_of}.learning_rate=1e-2"]
    replaced = tuple(override.partition("=")[0] for override in more)  # a value may be set only once
    kept = [
        override
        for override in over
        if not any(f"{override.partition('=')[0]}.".startswith(f"{name}.") for name in replaced)
    ]
    return read_recipe(file, [*kept, *more])


def stopping(stage, stop, after=3):
    """A callback that stops in a stage: after that many of its steps, or at once if it trains nothing."""

    @contextmanager
    def on_stage(info):
        if info.name == stage and info.prepared is None and not info.finished:
            stop()

        def on_step(number, total, loss, rate):
            if info.name == stage and number == after:
                stop()

        yield on_step

    return on_stage


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def main(place, out, stage, moment):
    torch.set_num_threads(1)  # as in the tests: with more threads, sums are in another order
    if moment == "writing":  # files are there, but not in their place
        module = vocabulary if stage == "words" else whole
        write = module.write_folder

        def half(folder, fill):
            def fill_and_die(work):
                fill(work)
                if folder.parent == Path(out) if stage == "instruct" else folder.parent.name.endswith(stage):
                    killed()

            write(folder, fill_and_die)

        module.write_folder = half
    run_recipe(recipe(Path(place), out), "r", on_stage=stopping(stage if moment == "training" else None, killed))


if __name__ == "__main__":
    main(*sys.argv[1:])
