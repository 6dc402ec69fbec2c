"""torch's `fully_shard` (FSDP2), two processes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deltatune
from support import models
from support.neighbour_processes import token_rows
from support.neighbours import hosted, run_processes, stepped_alone, values, works

NAME = "`fully_shard` (FSDP2)"
PACKAGES = ("torch",)
NOT_APPLICABLE = {"serve": "after training the model is served as any other"}
WAYS = ("fsdp2", "fsdp2-pieces", "fsdp2-unknown")
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
    first, second = (load_file(run / "fsdp2" / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == values(hosted()).keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@works()
def test_train(run):
    alone, together = values(stepped_alone(token_rows())), load_file(run / "fsdp2" / "0.safetensors")
    start = values(hosted())
    for name, tensor in alone.items():
        assert not torch.equal(tensor, start[name])
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)


@works("remember(host)", but=("an adapter that is sharded too", "keep adapters whole"))
def test_save(run, refusal):
    """In a user's loop: `deltatune.store.fingerprint.remember(host)` before fully_shard."""
    assert json.loads((run / "fsdp2" / "0.json").read_text()) == {}, "it has called remember(host)"
    assert (run / "fsdp2" / "out" / "mine" / "adapter.safetensors").is_file()
    for way in ("fsdp2-pieces", "fsdp2-unknown"):
        said = json.loads((run / way / "0.json").read_text())["refused"]
        assert ("remember(host)" if way == "fsdp2-unknown" else test_save.cell.words) in said
        assert not (run / way / "adapter").exists()
    with refusal():
        raise ValueError(json.loads((run / "fsdp2-pieces" / "0.json").read_text())["refused"])


@works("host.load(folder)")
def test_reload(run):
    folder = run / "fsdp2" / "adapter"
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load(folder)
    with torch.no_grad():
        out = host.model(input_ids=token_rows()[:1]).logits
    torch.testing.assert_close(out, load_file(run / "fsdp2" / "logits-0.safetensors")["logits"])
