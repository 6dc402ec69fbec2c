"""Small adapter folders for tests of the adapter store, made without a base where none is needed."""

import functools
from pathlib import Path

import torch

from deltatune import Host, parse
from deltatune.tasks.heads import Head, HeadConfig
from support import models

LABELS = ("bad", "good")


@functools.cache
def base(kind: str = "bert") -> Host:
    """A host for all adapters of a kind of model; nothing stays attached."""
    return Host(models.tiny(kind, "lm" if kind in ("gpt2", "llama") else None))


def make_adapter(
    folder: Path, seed: int = 0, method: str = "LoRA(r=2)", *, kind: str = "bert", score: float | None = None, **extra
) -> Path:
    """An adapter with values drawn from a seed, with a task, labels and a score if one is given."""
    host = base(kind)
    head = Head(HeadConfig(outputs=2, width=32), seed=seed) if kind == "bert" else False
    task = {"task": "classify", "labels": list(LABELS), "metric": "accuracy"}
    scores = {} if score is None else {"scores": {"test": {"accuracy": score, "f1": score / 2}}}
    adapter = host.attach("made", parse(method), seed=seed, head=head, extra={"task": task, **scores, **extra})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    host.save("made", folder)
    host.detach("made")
    return folder


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's folder."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter.safetensors")


def same(one, other) -> bool:
    """Whether two mappings hold equal tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
