"""Hardware: the device of a process, where bfloat16 is used, and peak memory."""

import sys

import pytest
import torch

from deltatune.models.hardware import best_device, native_bfloat16, peak_memory, reset_peak_memory, uses_bfloat16
from support import models


def test_bfloat16_only_where_it_helps():
    base = models.tiny("bert")
    assert uses_bfloat16(base, "auto") == native_bfloat16(torch.device("cpu"))
    assert uses_bfloat16(base, "bfloat16")
    assert not uses_bfloat16(base, "float32")
    assert not uses_bfloat16(base.to(torch.bfloat16), "bfloat16")  # it is in half precision already


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert best_device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert best_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured on Linux")
def test_peak_memory_of_the_process_includes_a_large_tensor():
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory(device)
    tensor = torch.ones(2**25)  # 128 MiB
    assert peak_memory(device) >= max(before, tensor.nbytes)
    assert peak_memory(torch.device("meta")) is None
