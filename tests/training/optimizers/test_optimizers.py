"""The optimizers: the bits of torch's AdamW and of bitsandbytes', states in files, and what is said where they fail."""

import dataclasses
import errno
import os
import sys

import pytest
import torch
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import CannotWrite
from deltatune.training import Settings
from deltatune.training.optimizers.bitsandbytes_paged import bitsandbytes_adamw
from deltatune.training.optimizers.chunked_adamw import ChunkedAdamW
from deltatune.training.optimizers.eight_bit_moments import dequantize_moment, quantize_moment_
from deltatune.training.optimizers.make_optimizer import arithmetic_of, make_optimizer
from deltatune.training.optimizers.state_bytes import OPTIMIZERS, file_bytes, state_bytes
from deltatune.training.optimizers.stored_states import load_states_, state_problems, write_states
from deltatune.training.scaling import disk_file
from deltatune.training.scaling.disk_file import DiskFile, folder_for, memory_file_system

SHAPES = [(1,), (7,), (16, 4), (4095,), (4096,), (4097,), (33, 257), (5, 7, 129)]


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in shapes]


def updated(optimizer, steps, rate=1e-2, first=0, total=None):
    """Take the steps from `first` on: gradients of very different sizes, some of them zero, under a falling rate."""
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(first, steps):
        draw = torch.Generator().manual_seed(1000 + step)
        for parameter in members:
            sizes = torch.rand(parameter.shape, generator=draw) ** 4 * 10 ** float(torch.randn((), generator=draw) * 2)
            kept = torch.rand(parameter.shape, generator=draw) < (0.2 if step % 3 == 1 else 1.0)
            parameter.grad = (torch.randn(parameter.shape, generator=draw) * sizes * kept).to(parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / (total or steps))
        optimizer.step()
    return members


def chunked(members, folder=None, **options):
    file = None if folder is None else lambda size: DiskFile(folder, size)
    return ChunkedAdamW(members, file=file, **options)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b), tuple(a.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [256, 4096, 2**20])
def test_states_in_a_file_give_the_bits_of_torch(dtype, decay, chunk, tmp_path):
    steps = 200 if chunk == 2**20 and dtype == torch.float32 else 12
    options = {"lr": 1e-2, "weight_decay": decay}
    wanted = torch.optim.AdamW(parameters(dtype=dtype), fused=True, **options)
    paged = chunked(parameters(dtype=dtype), tmp_path, chunk=chunk, **options)
    assert_equal(updated(wanted, steps), updated(paged, steps))
    for i, tensors in wanted.state_dict()["state"].items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, paged.state_dict()["state"][i][key]), key


def test_several_threads_and_large_tensors_change_no_bit(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shapes = [(1000, 333)]
        wanted = updated(torch.optim.AdamW(parameters(shapes), fused=True), 3)
        assert_equal(wanted, updated(chunked(parameters(shapes), tmp_path, chunk=65536), 3))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_parameter_that_is_not_contiguous_is_updated_too(eight_bit, tmp_path):
    plain, turned = parameters([(96, 80)]), [nn.Parameter(parameters([(96, 80)])[0].detach().T.contiguous().T)]
    assert not turned[0].is_contiguous()
    one = updated(chunked(plain, eight_bit=eight_bit), 5)
    other = updated(chunked(turned, tmp_path, eight_bit=eight_bit), 5)
    torch.testing.assert_close(one[0], other[0])


# --- 8 bits ---


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_8_bits_are_those_of_bitsandbytes(decay, paged, dtype, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wanted = bitsandbytes.optim.AdamW8bit(parameters(dtype=dtype), lr=1e-2, weight_decay=decay)
    ours = chunked(parameters(dtype=dtype), tmp_path if paged else None, lr=1e-2, weight_decay=decay, eight_bit=True)
    members = updated(wanted, 20)
    assert_equal(members, updated(ours, 20))
    for i, parameter in enumerate(members):
        theirs, tensors = wanted.state[parameter], ours.state_dict()["state"][i]
        names = {
            "state1": "exp_avg",
            "state2": "exp_avg_sq",
            "absmax1": "exp_avg_absmax",
            "absmax2": "exp_avg_sq_absmax",
        }
        assert {names[key] for key in names if key in theirs} == tensors.keys() - {"step"}
        for key in names.keys() & theirs.keys():
            assert torch.equal(theirs[key], tensors[names[key]]), (key, i)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-37, 1e-40, 1e-43])
def test_codes_are_those_of_bitsandbytes_down_to_the_smallest_numbers(signed, scale):
    functional = pytest.importorskip("bitsandbytes.functional")
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(70_001, generator=draw) * torch.rand(70_001, generator=draw) ** 6 * scale
    values[9_000:10_000] = 0
    values = values if signed else values.abs()
    theirs, scales = torch.ops.bitsandbytes.quantize_blockwise(values, functional.create_dynamic_map(signed), 256)
    codes, ours = torch.empty(len(values), dtype=torch.uint8), torch.empty(len(scales))
    quantize_moment_(values.clone(), codes, ours, signed)
    assert torch.equal(codes, theirs)
    assert torch.equal(ours, scales)


def test_a_second_moment_is_never_rounded_to_zero():
    """It is divided by: with a 0 there, a first moment that is not 0 would move a value without bound."""
    values = torch.full((256,), 1e-12)
    values[0] = 1.0
    codes, scales = torch.empty(256, dtype=torch.uint8), torch.empty(1)
    quantize_moment_(values, codes, scales, signed=False)
    assert (dequantize_moment(codes, scales, signed=False) > 1e-5).all()


def test_8_bits_learn_what_float32_learns():
    draw = torch.Generator().manual_seed(0)
    x, wanted = torch.randn(256, 64, generator=draw), torch.randn(64, 128, generator=draw)
    losses = {}
    for eight_bit in (False, True):
        weight = nn.Parameter(torch.zeros(64, 128))
        optimizer = chunked([weight], eight_bit=eight_bit, lr=3e-2, weight_decay=0.0)
        for _ in range(100):
            loss = (x @ weight - x @ wanted).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[eight_bit] = loss.item()
    assert losses[True] < 1.1 * losses[False] < 0.02 * 64


# --- the states of a checkpoint ---


def made(name, members, folder):
    return make_optimizer(name, [{"params": members, "lr": 1e-2, "weight_decay": 0.1}], 1e-2, out=folder)


NAMES = [f"t{i}" for i in range(len(SHAPES))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_that_were_stored_go_on_bit_for_bit(name, tmp_path):
    path = tmp_path / "states.safetensors"
    wanted = updated(made(name, parameters(), tmp_path), 9)
    half = made(name, parameters(), tmp_path)
    values = updated(half, 5, total=9)
    write_states(path, half, NAMES)
    again = made(name, [nn.Parameter(value.detach().clone()) for value in values], tmp_path)
    assert state_problems(path, again, NAMES, NAMES) == []
    load_states_(path, again, NAMES)
    assert_equal(wanted, updated(again, 9, first=5))


@pytest.mark.parametrize(("name", "other"), [("adamw", "paged-adamw"), ("adamw-8bit", "paged-adamw-8bit")])
def test_states_in_a_file_and_in_memory_are_stored_alike(name, other, tmp_path):
    for each in (name, other):
        optimizer = made(each, parameters(), tmp_path)
        updated(optimizer, 3)
        write_states(tmp_path / each, optimizer, NAMES)
    assert (tmp_path / name).read_bytes() == (tmp_path / other).read_bytes()
    assert arithmetic_of(other) == arithmetic_of(name) == name
    assert arithmetic_of("paged-adamw", "cuda") == "paged-adamw"


def test_stored_states_of_another_kind_are_listed(tmp_path):
    path = tmp_path / "states.safetensors"
    optimizer = made("adamw-8bit", parameters(), tmp_path)
    updated(optimizer, 2)
    write_states(path, optimizer, NAMES)
    problems = state_problems(path, made("paged-adamw", parameters(), tmp_path), NAMES)
    assert "tensor t4|exp_avg is of torch.uint8, not torch.float32" in problems
    assert "tensor t4|exp_avg_absmax belongs to no tensor that is trained" in problems
    shapes = [(2, *shape) for shape in SHAPES]
    problems = state_problems(path, made("adamw-8bit", parameters(shapes), tmp_path), [*NAMES[1:], "new"], ["new"])
    assert "tensor new|exp_avg is missing" in problems
    assert any(problem.startswith("tensor t0|") and "belongs to no tensor" in problem for problem in problems)
    assert any(problem.startswith("tensor t5|exp_avg has shape") for problem in problems)


def test_the_state_dict_is_restored(tmp_path):
    for eight_bit in (False, True):
        one = chunked(parameters(), tmp_path, eight_bit=eight_bit)
        updated(one, 4, total=8)
        other = chunked([nn.Parameter(p.detach().clone()) for p in one.param_groups[0]["params"]], eight_bit=eight_bit)
        other.load_state_dict(one.state_dict())
        assert_equal(updated(one, 8, first=4), updated(other, 8, first=4))


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ["paged-adamw", "paged-adamw-8bit"])
def test_states_of_bitsandbytes_own_optimizers_are_stored(name, tmp_path):
    """Those that GPUs get; here without pages."""
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "states.safetensors"

    def fresh(members):
        return bitsandbytes_adamw(name, [{"params": members, "lr": 1e-2, "weight_decay": 0.1}], 1e-2)

    wanted = updated(fresh(parameters()), 7)
    half = fresh(parameters())
    values = updated(half, 4, total=7)
    write_states(path, half, NAMES)
    again = fresh([nn.Parameter(value.detach().clone()) for value in values])
    assert state_problems(path, again, NAMES, NAMES) == []
    load_states_(path, again, NAMES)
    assert_equal(wanted, updated(again, 7, first=4))


def test_without_bitsandbytes_a_gpu_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(DeltatuneError, match=r"needs bitsandbytes on a GPU.*pip install bitsandbytes; or choose adamw"):
        bitsandbytes_adamw("paged-adamw", [{"params": parameters()}], 1e-2)


# --- memory and files ---


def test_the_bytes_are_counted(tmp_path):
    numels = [parameter.numel() for parameter in parameters()]
    kept = {}
    for name in ("adamw", "adamw-8bit"):
        optimizer = made(name, parameters(), tmp_path)
        updated(optimizer, 1)
        states = optimizer.state_dict()["state"].values()
        kept[name] = sum(t.nbytes for tensors in states for key, t in tensors.items() if key != "step")
        assert state_bytes(name, numels) == kept[name]
        assert file_bytes(name, numels) == 0
    for name in ("paged-adamw", "paged-adamw-8bit"):
        assert state_bytes(name, numels) == 0
        assert file_bytes(name, numels) == kept[name.removeprefix("paged-")]
        assert made(name, parameters(), tmp_path).file.size >= file_bytes(name, numels)
    assert kept["adamw-8bit"] < 0.4 * kept["adamw"]


def test_the_file_has_no_name_and_goes_with_the_optimizer(tmp_path):
    optimizer = chunked(parameters(), tmp_path)
    updated(optimizer, 1)
    assert list(tmp_path.iterdir()) == []
    optimizer.close()
    with pytest.raises(DeltatuneError, match="training that it belonged to is over"):
        updated(optimizer, 1)


def mounted(monkeypatch, tmp_path, **kinds):
    lines = [f"1 1 0:1 / {place} rw - {kind} {kind} rw" for place, kind in {"/": "ext4", **kinds}.items()]
    (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(disk_file, "MOUNTS", tmp_path / "mountinfo")


def test_a_folder_whose_files_are_in_memory_is_refused(monkeypatch, tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "memory" / "disk"
    disk.mkdir(parents=True)
    mounted(monkeypatch, tmp_path, **{str(memory): "tmpfs", str(disk): "xfs"})
    assert memory_file_system(memory) == "tmpfs"
    assert memory_file_system(disk) is None
    assert folder_for(str(disk), None) == disk
    with pytest.raises(DeltatuneError, match="is on tmpfs, which keeps files in memory"):
        folder_for(str(memory), None)
    assert folder_for(None, disk / "run" / "checkpoints") == disk
    assert folder_for(None, memory) != memory  # another one, on a disk
    mounted(monkeypatch, tmp_path, **{"/": "tmpfs"})
    with pytest.raises(DeltatuneError, match=r"none is one that can be written; choose a folder on a disk with opt"):
        folder_for(None, disk)
    with pytest.raises(DeltatuneError, match="does not exist"):
        folder_for(str(tmp_path / "nowhere"), None)


def test_a_full_disk_is_told_before_anything_is_trained(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DiskFile, "_extend", full)
    with pytest.raises(CannotWrite, match=r"are needed in a file, and .* free; choose a folder .* or paged-adamw-8bit"):
        made("paged-adamw", parameters(), tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CannotWrite, match="choose a folder on a disk"):
        make_optimizer("paged-adamw", [{"params": parameters()}], 1e-2, folder=str(tmp_path / "closed"))


def test_settings_refuse_what_does_not_fit_together(tmp_path):
    with pytest.raises(DeltatuneError, match="is for paged optimizers"):
        Settings(optimizer_folder=str(tmp_path))
    with pytest.raises(DeltatuneError, match=r"optimizer.*did you mean 'paged-adamw'"):
        Settings(optimizer="paged_adamw")
    with pytest.raises(DeltatuneError, match="leave one of them out"):
        Settings(offload_activations=True, compile="on")
    paged = Settings(optimizer="paged-adamw", optimizer_folder=str(tmp_path))
    assert paged.identity() == Settings().identity()
    assert paged.record() == Settings().record()
    assert dataclasses.replace(paged, optimizer="adamw-8bit", optimizer_folder=None).facts() != Settings().facts()


def test_sparse_gradients_are_refused():
    table = nn.Embedding(10, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(DeltatuneError, match="sparse"):
        chunked(table.parameters()).step()
