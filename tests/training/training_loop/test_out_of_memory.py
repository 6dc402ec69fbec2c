"""Memory that is used up: an error that says what to lower, and a run that resumes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deltatune.core.errors import DeltatuneError, OutOfMemory, is_out_of_memory
from deltatune.training import train
from support import models
from support.child import in_child
from support.command_line import ran, review_folder
from support.runs import PLAIN, ROWS, TASK, host_with


def array_memory_error():
    """numpy's own subclass of MemoryError."""
    with pytest.raises(MemoryError) as info:
        np.empty(2**62, dtype=np.uint8)
    return info.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        array_memory_error(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_way_to_say_it_is_known(error, tmp_path):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(DeltatuneError(str(error)))
    seen = []

    def on_step(step, *_):
        seen.append(step)
        if len(seen) == 7:
            raise error

    with pytest.raises(
        OutOfMemory, match=r"(?s)accumulation: 1 forward passes a step now, up to 16: .*batch_size, now 16"
    ):
        train(host_with(), "a", TASK, ROWS, None, models.tiny_tokenizer(), PLAIN, tmp_path, on_step)
    assert train(host_with(), "a", TASK, ROWS, None, models.tiny_tokenizer(), PLAIN, tmp_path).resumed == 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is limited and measured on Linux")
def test_a_process_with_too_little_memory_says_so_and_resumes(tiny_folder, tmp_path):
    resource = pytest.importorskip("resource")
    data = review_folder(tmp_path / "data")
    command = ["train", "--model", tiny_folder, "--data", data, "--method", "Full()", "--epochs", "2"]
    command += ["--max-length", "120", "--precision", "float32", "--batch-size"]
    texts = [json.dumps({"text": "good film " * 59, "label": label}) for label in ("a", "b")] * 64
    for split in ("train", "dev", "test"):
        (data / f"{split}.csv").unlink()
        (data / f"{split}.jsonl").write_text("\n".join(texts) + "\n")
    small = [review_folder(tmp_path / "small") if part == data else part for part in command]
    assert ran(*small, "8", "--out", tmp_path / "first").code == 0  # everything is imported now

    def limited(spare):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
        done = ran(*command, "128", "--out", tmp_path / "run")
        return done.code, done.err

    codes = []
    for spare in (5, 20, 80):
        code, said = in_child(lambda spare=spare: limited(spare * 2**20))
        codes.append(code)
        assert code in (0, 2), said
        if code:
            assert "out of memory" in said
            assert "Traceback" not in said
    assert 2 in codes
    assert ran(*command, "128", "--out", tmp_path / "run").code == 0
    assert ran(*command, "128", "--out", tmp_path / "whole").code == 0
    whole, run = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "run"))
    assert whole["test"] == run["test"]
