"""Absurd sizes are refused by arithmetic: before anything is allocated, with the field, the bytes and the memory."""

import subprocess
import sys

import pytest
import torch

from deltatune import Host, parse
from deltatune.core.budget import fit_budget, read_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.memory import in_bytes, memory_of, tensor_bytes
from deltatune.testing.tiny_models import tiny


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(tiny("bert", "classify"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LoRA(r=1000000000)", r"LoRA\(r=1000000000\): r=1,000,000,000 makes tensors of 1.02 TB, .* useful up to 32"),
        ("BitFit() + LoRA(r=1000000000)", "r=1,000,000,000 makes tensors of"),
        ("LoRA(r=4611686018427387904)", "makes tensors of more than 9.22 EB"),
        ("Prompt(length=1000000000000)", "length=1,000,000,000,000 makes tensors of 128 TB"),
        ("Prefix(length=1000000000)", "length=1,000,000,000 makes tensors of 512 GB"),
        ("Prefix(length=4, mlp=1000000000)", "mlp=1,000,000,000 makes tensors"),
        ("Bottleneck(size=1000000000)", "size=1,000,000,000 makes tensors"),
        ("UniPELT(LoRA(r=1000000000))", "r=1,000,000,000 makes tensors"),
        ("VeRA(r=10000000000)", "r=10,000,000,000 makes tensors"),
        ("PTuning(length=4, layers=1000000000)", "layers must be at most 32"),
        ("PiSSA(r=2, niter=1000000000)", "niter must be at most 1000"),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_an_absurd_size_is_refused_before_it_is_allocated(host: Host, text: str, message: str) -> None:
    with pytest.raises(DeltatuneError, match=message):
        host.attach("large", parse(text))
    assert not host.adapters


@pytest.mark.parametrize(
    "text", ["LoRA(r=8)", "VeRA(r=5)", "Prefix(length=3, mlp=7)", "UniPELT()", "Compacter(size=8)"]
)
def test_counted_bytes_are_those_that_are_made(host: Host, text: str) -> None:
    method = parse(text)
    adapter = host.attach("small", method, head=False)
    made = sum(tensor.numel() for tensor in (*adapter.parameters(), *adapter.buffers())) * 4
    host.detach("small")
    assert sum(tensor_bytes(part, host.sites) or 0 for part in method.parts) == made


@pytest.mark.parametrize(
    "budget",
    ["1e400", "99999999999999", "9" * 5000, "1e30%", "nan", "inf", 10**5000, "-5", "1e99999999999999999999"],
    ids=lambda value: str(type(value)) + (value[:8] if isinstance(value, str) else ""),
)
def test_an_absurd_budget_is_a_plain_error(host: Host, budget: str | int) -> None:
    with pytest.raises(DeltatuneError, match=r"the budget .*(this machine has|write a share)") as caught:
        read_budget(budget, host.sites)
    assert len(str(caught.value)) < 400


def test_a_budget_is_fitted_without_making_tensors(host: Host) -> None:
    assert fit_budget(parse("UniPELT()"), host.sites, "500m").size == 32


@pytest.mark.slow
def test_a_limit_of_the_process_counts_as_its_memory() -> None:
    program = (
        "import resource, torch; from deltatune.core.memory import memory_of; "
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36)); print(memory_of(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(2**36, memory_of(torch.device("cpu")))


def test_bytes_are_written_with_a_unit() -> None:
    assert [in_bytes(n) for n in (0, 999, 73_700, 73.7e12, 2**63)] == ["0 B", "999 B", "73.7 kB", "73.7 TB", "9.22 EB"]
