"""What several processes do in `test_distributed.py`: `torchrun processes.py FOLDER OPTIONS` trains cases.

Also run in one process, by importing `train_case`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate
from deltatune.training import train
from support import models
from support.runs import PLAIN, QUIET, ROWS, TASK, host_with, tensors

WORDS = [
    {"input": f"the {' '.join(row['text'].split()[:3])}", "output": " ".join(row["text"].split()[3:]) or "it"}
    for row in ROWS
]
"""Answers of different lengths, so the processes have different numbers of labelled tokens."""
WRITE = Generate(max_length=64, new_tokens=8)
CALM = dataclasses.replace(PLAIN, learning_rate=1e-2)
"""70 rows in batches of 16: the last of an epoch has 6."""

CASES = {
    "lora": ("LoRA(r=4)", "bert", CALM),
    "prefix": ("Prefix(length=3, mlp=8)", "bert", CALM),
    "bottleneck": ("Bottleneck(size=4)", "bert", CALM),
    "full": ("Full()", "bert", dataclasses.replace(PLAIN, learning_rate=1e-3)),
    "probe": ("Probe()", "bert", CALM),
    "drop": (
        "AdapterDrop(size=4, robust=True)",
        "bert",
        dataclasses.replace(CALM, checkpoint_every=2, evaluate="epoch"),
    ),
    "llama": ("LoRA(r=4)", "llama", CALM),
    "llama-prefix": ("Prefix(length=3)", "llama", CALM),
    "llama-bottleneck": ("Bottleneck(size=4)", "llama", CALM),
    "llama-full": ("Full()", "llama", dataclasses.replace(PLAIN, learning_rate=1e-3)),
    "llama-packed": ("LoRA(r=4)", "llama", dataclasses.replace(CALM, packing=True, accumulation=2)),
    "pieces": ("LoRA(r=4)", "bert", dataclasses.replace(CALM, accumulation=3, evaluate="epoch")),
    "dora": ("DoRA(r=4)", "bert", CALM),
    "soft": ("Prompt(length=3)", "llama", CALM),
    "t5": ("LoRA(r=4)", "t5", dataclasses.replace(CALM, evaluate="epoch")),
    "bitfit": ("BitFit(sites='*.ffn.{in,out}')", "bert", CALM),  # a key's bias learns nothing but noise
    "recomputed": ("LoRA(r=4)", "llama", dataclasses.replace(CALM, checkpointing=True, accumulation=2)),
    "nf4": ("LoRA(r=4)", "nf4", CALM),
    "few": ("LoRA(r=4)", "bert", dataclasses.replace(CALM, batch_size=23, accumulation=12)),
}


def host_for(method, kind, case=""):
    if case == "drop":  # dropout, and layers that a process leaves out of a step
        return host_with(method)
    if kind == "bert" and method:
        return host_with(method, dropout=0.0, **QUIET)
    calm = {"bert": QUIET, "t5": {"dropout_rate": 0.0}}
    if kind == "nf4":
        deltatune.quantize_(model := models.tiny("llama", "lm"), "nf4")
        host = deltatune.Host(model)
        host.attach("a", deltatune.parse(method), head=False)
        return host
    host = deltatune.Host(models.tiny(kind, None if kind == "bert" else "lm", **calm.get(kind, {})))
    if method is None:
        return host
    host.attach("a", deltatune.parse(method), head=False)
    return host


def tokenizer_for(kind):
    tokenizer = models.tiny_tokenizer()
    if kind != "bert":
        tokenizer.eos_token = "[SEP]"
    return tokenizer


def train_case(case, out=None, on_step=None, **over):
    """The host and what its training did."""
    method, kind, settings = CASES[case]
    settings = dataclasses.replace(settings, **over)
    host = host_for(method, kind, case)
    task, rows = (TASK, ROWS) if kind == "bert" else (WRITE, WORDS)
    if case == "few":  # 1 row is left over: one of two processes has none
        rows = rows[:24]
    outcome = train(host, "a", task, rows, rows[:9], tokenizer_for(kind), settings, out, on_step)
    return host, outcome


def record(folder, case, host, outcome):
    """Keep what a case came to; each process its own."""
    place = Path(folder) / f"{case}.{deltatune_rank()}"
    save_file({name: value.contiguous() for name, value in tensors(host).items()}, f"{place}.safetensors")
    said = {"history": outcome.history, "evaluations": outcome.evaluations, "spread": spread(host)}
    Path(f"{place}.json").write_text(json.dumps(said))
    if deltatune_rank() == 0:
        host.save("a", Path(folder) / case)


def spread(host):
    """Parameters of the model that are spread over processes."""
    return sum(isinstance(parameter, DTensor) for parameter in host.model.parameters())


def deltatune_rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class Stopped(Exception):
    pass


def stop_at(last):
    def on_step(step, *_):
        if step == last:
            raise Stopped

    return on_step


def main(folder, cases=(), out=None, stop=None, odd=False):
    """Train each case; with `out` keep checkpoints there; `stop` after a step; `odd`: process 1 has another seed."""
    torch.set_num_threads(1)
    if not cases:
        after()
    seed = {"seed": 1} if odd and os.environ["RANK"] == "1" else {}
    for case in cases:
        record(folder, case, *train_case(case, out, stop and stop_at(stop), **seed))


def after():
    """What is refused once the base is spread."""
    host, _ = train_case("lora", max_steps=1)
    for act in (lambda: host.merge_("a"), lambda: host.attach("b", deltatune.parse("LoRA(r=2)"))):
        try:
            act()
        except DeltatuneError as error:
            print(error)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
