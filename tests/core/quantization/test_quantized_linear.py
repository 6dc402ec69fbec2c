"""The frozen quantised map: its product, gradients, memory, moves, files and torch's transformations."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization import kernels
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import FP4, NF4, Int8

WIDTH, OUT = 64, 24
SCHEMES = [NF4(), NF4(nested="fp8", block=32), FP4(double=False), Int8()]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)


def make(scheme, bias=True, width=WIDTH, out=OUT):
    return QuantizedLinear.of(torch.randn(out, width) / 8, scheme, nn.Parameter(torch.randn(out)) if bias else None)


def plain(module, dtype):
    """A Linear with exactly the values that the codes stand for."""
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, dtype=dtype)
    linear.weight = nn.Parameter(module.matrix(dtype), requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach().to(dtype))
    return linear


def gradients(module, x):
    """Outputs, the gradient of x, that of the bias (zero if there is none)."""
    module.zero_grad()
    given = x.detach().clone().requires_grad_()
    y = module(given)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    bias = module.bias.grad if module.bias is not None else torch.zeros(1)
    return y.detach(), given.grad, bias


@each_scheme
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(WIDTH,), (5, WIDTH), (2, 3, WIDTH), (2, 1, 3, WIDTH), (0, WIDTH), (2, 0, WIDTH)])
def test_it_is_the_linear_map_of_its_dequantised_weight_bit_for_bit(scheme, dtype, shape):
    module = make(scheme)
    linear = plain(module, dtype)
    x = torch.randn(shape).to(dtype)
    theirs = gradients(linear, x)
    module.bias.data = module.bias.data.to(dtype)
    for mine, wanted in zip(gradients(module, x), theirs, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, wanted)


@each_scheme
@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_too(scheme, bias):
    module, x = make(scheme, bias), torch.randn(3, 5, WIDTH)
    linear = plain(module, torch.float32)
    linear.weight = nn.Parameter(module.matrix(torch.bfloat16).float(), requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = gradients(module, x), gradients(linear, x)
    assert mine[0].dtype == torch.bfloat16
    for ours, wanted in zip(mine, theirs, strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted)


@each_scheme
def test_inputs_that_are_not_contiguous(scheme):
    module = make(scheme)
    for x in (torch.randn(WIDTH, 5).T, torch.randn(4, 2 * WIDTH)[:, ::2], torch.randn(1, WIDTH).expand(6, WIDTH)):
        for mine, wanted in zip(gradients(module, x), gradients(module, x.contiguous()), strict=True):
            assert torch.equal(mine, wanted)


@each_scheme
def test_gradients_in_double_precision(scheme):
    module = make(scheme, width=8, out=5).double()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, bias: torch.func.functional_call(module, {"bias": bias}, x), (x, module.bias)
    )
    assert torch.autograd.gradgradcheck(lambda x: module(x).pow(3), (x,))


@each_scheme
def test_nothing_of_the_weights_size_is_kept_for_backward(scheme):
    module, x = make(scheme, width=256, out=512), torch.randn(2, 256, requires_grad=True)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(x)
    stored = {tensor.untyped_storage().data_ptr() for tensor in module.tensors.values()}
    assert set(kept) <= stored  # the codes and scales themselves, no copies
    y.sum().backward()
    assert x.grad is not None


def test_the_weight_itself_gets_no_gradient():
    module = make(NF4())
    assert [name for name, _ in module.named_parameters()] == ["bias"]
    assert not module.weight.requires_grad
    with torch.no_grad():
        assert not module(torch.randn(2, WIDTH)).requires_grad
    with torch.inference_mode():
        assert module(torch.randn(2, WIDTH)).is_inference()
        x = torch.randn(2, WIDTH)
    assert module(x).shape == (2, OUT)


@each_scheme
def test_types_that_are_not_floating_and_wrong_widths_are_refused(scheme):
    with pytest.raises(DeltatuneError, match="floating"):
        make(scheme)(torch.ones(2, WIDTH, dtype=torch.long))
    with pytest.raises(RuntimeError, match="shapes"):
        make(scheme)(torch.ones(2, WIDTH + 1))


@each_scheme
@pytest.mark.parametrize("dtype", DTYPES)
def test_moving_keeps_what_is_stored(scheme, dtype):
    module = make(scheme)
    before, weight = copy.deepcopy(module.tensors), module.matrix(dtype)
    moved = module.to(dtype)
    assert moved is module
    assert moved.dtype == moved.bias.dtype == moved.weight.dtype == dtype
    assert {name: tensor.dtype for name, tensor in moved.tensors.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(moved.tensors[name], tensor) for name, tensor in before.items())
    assert torch.equal(moved.weight, weight)
    assert torch.equal(moved.to(torch.bfloat16).to(dtype).weight, weight)


@each_scheme
def test_on_the_meta_device_it_has_shapes_alone(scheme):
    module = copy.deepcopy(make(scheme)).to("meta")
    assert module(torch.empty(3, WIDTH, device="meta")).shape == (3, OUT)
    assert module.weight.shape == (OUT, WIDTH)
    assert all(tensor.is_meta for name, tensor in module.state_dict().items() if "quant_state" not in name)


@each_scheme
def test_copies_are_apart(scheme):
    module = make(scheme)
    other = copy.deepcopy(module)
    x = torch.randn(2, WIDTH)
    assert torch.equal(other(x), module(x))
    other.codes.zero_()
    assert not torch.equal(other(x), module(x))


def test_a_conv1d_keeps_its_orientation():
    conv = Conv1D(OUT, WIDTH)
    module = QuantizedLinear.of(conv.weight, NF4(), conv.bias, transposed=True)
    x = torch.randn(3, WIDTH)
    assert module.weight.shape == conv.weight.shape == (WIDTH, OUT)
    assert torch.allclose(module(x), torch.addmm(conv.bias, x, module.weight), atol=1e-6)
    assert (module.weight - conv.weight).abs().max() < 0.01
    straight = QuantizedLinear.of(conv.weight.detach().T.contiguous(), NF4(), conv.bias)
    assert torch.equal(straight.codes, module.codes)  # blocks run along the inputs


# --- files


@each_scheme
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("start", ["cpu", "meta"])
def test_a_state_dict_keeps_it(scheme, assign, start):
    module = make(scheme)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.device(start):
        other = QuantizedLinear(scheme, WIDTH, OUT, nn.Parameter(torch.zeros(OUT, device="cpu")))
    assert str(other.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    x = torch.randn(2, WIDTH)
    assert torch.equal(other(x), module(x))
    shares = other.codes.data_ptr() == state["weight"].data_ptr()
    assert shares == (assign or start == "meta")


@each_scheme
def test_missing_and_unexpected_keys_are_named(scheme):
    state = make(scheme).state_dict()
    gone = "SCB" if "SCB" in state else "weight.absmax"
    del state[gone]
    state["weight.other"] = torch.zeros(1)
    other = make(scheme)
    before = other.codes.clone()
    with pytest.raises(RuntimeError, match=gone):
        other.load_state_dict(state)
    keys = other.load_state_dict(state, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == ([gone], ["weight.other"])
    assert torch.equal(other.codes, before)


@pytest.mark.parametrize(
    ("scheme", "width", "out", "says"),
    [
        (NF4(block=128), WIDTH, OUT, "blocksize is 64, not 128"),
        (NF4(), OUT, WIDTH, r"shape is \[24, 64\], not \[64, 24\]"),
        (NF4(nested="fp8"), WIDTH, OUT, "nested_quant_map holds other values"),
    ],
)
def test_tensors_of_another_kind_are_refused(scheme, width, out, says):
    state = make(NF4(), bias=False).state_dict()
    other = make(scheme, False, width, out)
    before = {name: tensor.clone() for name, tensor in other.tensors.items()}
    with pytest.raises(DeltatuneError, match=says):
        other.load_state_dict(state)
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in before.items())


def test_eight_bits_of_another_shape_are_refused():
    with pytest.raises(DeltatuneError, match=r"\(24, 64\), not \(64, 24\)"):
        QuantizedLinear(Int8(), OUT, WIDTH).load_state_dict(make(Int8(), bias=False).state_dict())


def test_the_stored_facts_are_those_that_transformers_reads():
    state = make(NF4()).bfloat16().state_dict()
    assert list(state) == [
        "bias",
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4",
    ]
    assert state["weight"].shape == (WIDTH * OUT // 2, 1)
    facts = json.loads(bytes(state["weight.quant_state.bitsandbytes__nf4"].tolist()))
    assert facts["shape"] == [OUT, WIDTH]
    assert facts["dtype"] == "bfloat16"
    storages = {tensor.untyped_storage().data_ptr() for tensor in [*state.values(), *make(NF4()).state_dict().values()]}
    assert len(storages) == 14  # none shared, which safetensors would refuse


def four_bit(weight, bias, scheme):
    """bitsandbytes' own module with a weight quantised by it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made = bitsandbytes.nn.Linear4bit(
        WIDTH, OUT, compute_dtype=torch.float32, quant_type=scheme.name, compress_statistics=scheme.double
    )
    made.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, quant_type=scheme.name, compress_statistics=scheme.double, module=made
    )
    made.bias = nn.Parameter(bias)
    return made.to("cpu").train()  # moving quantises; in eval mode its codes may be packed anew


@pytest.mark.parametrize("scheme", [NF4(), NF4(double=False), FP4(), FP4(double=False)], ids=repr)
def test_both_read_the_others_state(scheme):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight, bias = torch.randn(OUT, WIDTH) / 8, torch.randn(OUT)
    theirs = four_bit(weight, bias, scheme)
    ours = QuantizedLinear.of(weight, scheme, nn.Parameter(bias))
    x = torch.randn(5, WIDTH)
    assert torch.equal(ours(x), theirs(x))
    first, second = ours.state_dict(), theirs.state_dict()
    assert set(first) == set(second)
    for name, tensor in second.items():
        if "quant_state" not in name:
            assert torch.equal(first[name], tensor), name
        else:
            assert json.loads(bytes(first[name].tolist())) == json.loads(bytes(tensor.tolist()))
    other = QuantizedLinear(scheme, WIDTH, OUT, nn.Parameter(torch.zeros(OUT)))
    other.load_state_dict(second)
    assert torch.equal(other(x), theirs(x))
    stats = {name: tensor for name, tensor in first.items() if name.startswith("weight.")}
    read = bitsandbytes.nn.Params4bit.from_prequantized(data=first["weight"], quantized_stats=stats, device="cpu")
    again = four_bit(torch.zeros_like(weight), bias, scheme)
    again.weight = read
    assert torch.equal(again(x), ours(x))


def test_eight_bits_are_read_by_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours = make(Int8(), bias=False)
    state = ours.state_dict()
    theirs = bitsandbytes.functional.int8_vectorwise_dequant(state["weight"], state["SCB"])
    assert torch.equal(ours.weight, theirs)


# --- torch's transformations


@pytest.mark.one_in(4)
@each_scheme
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own doing
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_it_is_the_same(scheme, autocast):
    module, x = make(scheme), torch.randn(5, WIDTH)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = gradients(module, x)
        given = x.clone().requires_grad_()
        module.zero_grad()
        y = compiled(given)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    for mine, eager in zip((y.detach(), given.grad, module.bias.grad), wanted, strict=True):
        assert torch.equal(mine, eager)


@each_scheme
def test_under_checkpointing_calls_and_vmap_it_is_the_same(scheme):
    module = make(scheme)
    x = torch.randn(4, 5, WIDTH, requires_grad=True)
    y = module(x)
    (wanted,) = torch.autograd.grad(y.square().sum(), x)
    for reentrant in (True, False):
        x.grad = None
        checkpoint(module, x, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(x.grad, wanted)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert torch.equal(torch.func.functional_call(module, tensors, (x,)), y)
    assert torch.equal(torch.func.functional_call(module, {"bias": torch.zeros(OUT)}, (x,)), F.linear(x, module.weight))
    assert torch.allclose(torch.vmap(module)(x), y, atol=1e-6)
    per_row = torch.vmap(torch.func.grad(lambda row: module(row).square().sum()))(x.detach())
    assert torch.allclose(per_row, wanted, atol=1e-5)


@each_scheme
def test_without_bitsandbytes_the_bits_are_the_same(scheme, monkeypatch):
    module, x = make(scheme, width=128), torch.randn(5, 128)
    wanted = gradients(module, x)
    monkeypatch.setattr(kernels, "_kernel", lambda: None)
    for mine, theirs in zip(gradients(module, x), wanted, strict=True):
        assert torch.equal(mine, theirs)
