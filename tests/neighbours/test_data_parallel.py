"""torch's DistributedDataParallel, two processes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deltatune
from support import models
from support.neighbour_processes import token_rows
from support.neighbours import hosted, run_processes, stepped_alone, values, works

NAME = "`DistributedDataParallel`"
PACKAGES = ("torch",)
NOT_APPLICABLE = {"serve": "after training the model is served as any other"}
WAYS = ("ddp",)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What two processes have written."""
    folder = tmp_path_factory.mktemp("run")
    run_processes(folder, WAYS)
    return folder


@works()
def test_attach(run):
    """Before wrapping; both processes have the same adapter afterwards."""
    first, second = (load_file(run / "ddp" / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == values(hosted()).keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@works()
def test_train(run):
    alone, together = values(stepped_alone(token_rows())), load_file(run / "ddp" / "0.safetensors")
    start = values(hosted())
    for name, tensor in alone.items():
        assert not torch.equal(tensor, start[name])
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)


@works()
def test_save(run):
    assert json.loads((run / "ddp" / "0.json").read_text()) == {}
    assert (run / "ddp" / "out" / "mine" / "adapter.safetensors").is_file()


@works("host.load(folder)")
def test_reload(run):
    folder = run / "ddp" / "adapter"
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load(folder)
    with torch.no_grad():
        out = host.model(input_ids=token_rows()[:1]).logits
    torch.testing.assert_close(out, load_file(run / "ddp" / "logits-0.safetensors")["logits"])
