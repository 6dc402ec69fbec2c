"""Quantisation by its definition and by golden tensors: nothing here needs bitsandbytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization import kernels
from deltatune.core.quantization.blockwise import quantize_4bit, unpack
from deltatune.core.quantization.schemes import FP4, NF4, Int8, Scheme, read_scheme
from support.golden_cases import tensors

SCHEMES = [NF4(), NF4(double=False), NF4(nested="fp8"), FP4(), FP4(double=False, block=128), Int8()]
four_bit = pytest.mark.parametrize("scheme", SCHEMES[:-1], ids=repr)


@pytest.fixture(params=["kernel", "pure torch"])
def road(request, monkeypatch):
    """With bitsandbytes' kernel, where it is installed, and without."""
    if request.param == "pure torch":
        monkeypatch.setattr(kernels, "_kernel", lambda: None)


@pytest.mark.parametrize("which", ["", "wide."])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.usefixtures("road")
def test_golden_tensors(which, double):
    weight = tensors("nf4", "input.")[f"{which}weight"]
    wanted = tensors("nf4", f"output.{which}" + ("double." if double else ""))
    scheme = NF4(double=double)
    ours = scheme.quantize(weight)
    assert torch.equal(ours["codes"], wanted["packed"])
    assert torch.equal(ours["absmax"], wanted["absmax"])
    if double:
        assert torch.equal(ours["nested_absmax"], wanted["nested_absmax"])
        assert torch.equal(ours["offset"][None], wanted["offset"])
    dequantised = scheme.dequantize(ours, tuple(weight.shape), torch.float32)
    assert torch.equal(dequantised, wanted["weight"])
    if not double:
        x = tensors("nf4", "input.")[f"{which}x"]
        assert torch.allclose(x @ dequantised.T, wanted["y"], atol=1e-6)


def test_golden_tables():
    assert torch.equal(NF4().table, tensors("nf4", "output.")["code"])
    assert torch.equal(NF4().nested_table, tensors("nf4", "output.double.")["code"])


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("shape", [(24, 32), (12, 128), (7, 9), (1, 1), (3, 65)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_roads_have_the_same_bits(scheme, shape, dtype, monkeypatch):
    stored = scheme.quantize(torch.randn(shape))
    first = scheme.dequantize(stored, shape, dtype)
    monkeypatch.setattr(kernels, "_kernel", lambda: None)
    assert torch.equal(scheme.dequantize(stored, shape, dtype), first)
    assert first.dtype == dtype


@given(st.integers(1, 300), st.sampled_from([32, 64, 128]), st.sampled_from([NF4, FP4]), st.integers(0, 99))
def test_each_value_gets_the_nearest_code(count, block, kind, seed):
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    scheme = kind(double=False, block=block)
    packed, absmax = quantize_4bit(values, scheme.table, block)
    codes = unpack(packed, count)
    for start in range(0, count, block):
        part = values[start : start + block]
        assert absmax[start // block] == part.abs().max()
        distances = (part[:, None] / part.abs().max() - scheme.table).abs()
        chosen = distances.gather(1, codes[start : start + block, None].long())[:, 0]
        assert torch.all(chosen <= distances.amin(1) + 1e-6)


def test_the_first_value_is_in_the_high_half():
    packed, _ = quantize_4bit(torch.tensor([1.0, -1.0]), NF4().table, 64)
    assert packed.tolist() == [0xF0]


@pytest.mark.parametrize("kind", [NF4, FP4])
def test_codes_survive_exactly_without_double_quantisation(kind):
    weight = kind().table.repeat(4, 4)
    scheme = kind(double=False)
    assert torch.equal(scheme.dequantize(scheme.quantize(weight), (4, 64), torch.float32), weight)
    twice = scheme.quantize(scheme.dequantize(scheme.quantize(weight * 3), (4, 64), torch.float32))
    assert torch.equal(scheme.dequantize(twice, (4, 64), torch.float32), weight * 3)


def e4m3():
    """The finite values of an 8-bit float with 4 bits of exponent and 3 of fraction, over the largest."""
    values = {0.0}
    for exponent in range(16):
        for fraction in range(8):
            if (exponent, fraction) != (15, 7):  # NaN
                size = 2.0**-6 * fraction / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction / 8)
                values |= {size / 448, -size / 448}
    return torch.tensor(sorted(values))


def test_magnitudes_in_eight_bit_floats_are_the_nearest_ones():
    absmax = torch.rand(3 * 256 + 17) + 0.5
    weight = torch.zeros(len(absmax), 64)
    weight[:, 0] = absmax
    scheme = NF4(nested="fp8")
    stored = scheme.quantize(weight)
    assert torch.equal(torch.unique(scheme.nested_table), e4m3())
    centred = absmax - absmax.mean()
    for start in range(0, len(absmax), 256):
        part = centred[start : start + 256]
        scale = part.abs().max()
        assert torch.equal(stored["nested_absmax"][start // 256], scale)
        chosen = scheme.nested_table[stored["absmax"][start : start + 256].long()]
        best = (part[:, None] / scale - e4m3()).abs().amin(1)
        assert torch.all((chosen - part / scale).abs() <= best + 2 / 65535)  # values lie on a grid first
        assert torch.allclose(scheme.magnitudes(stored)[start : start + 256], chosen * scale + absmax.mean())


@four_bit
def test_blocks_of_zeros_stay_zeros(scheme):
    weight = torch.zeros(6, 64)
    assert not scheme.dequantize(scheme.quantize(weight), (6, 64), torch.float32).any()
    weight[2:4] = torch.randn(2, 64)
    if not scheme.double and scheme.block == 64:
        again = scheme.dequantize(scheme.quantize(weight), (6, 64), torch.float32)
        assert not again[[0, 1, 4, 5]].any()
        assert again[2:4].any()


def test_eight_bits_by_the_definition():
    weight = torch.randn(5, 33)
    weight[2] = 0
    stored = Int8().quantize(weight)
    scale = weight.abs().amax(1, keepdim=True)
    wanted = torch.where(scale > 0, weight / scale * 127, 0)
    assert (stored["codes"] - wanted).abs().max() <= 0.5 + 1e-4
    again = Int8().dequantize(stored, (5, 33), torch.float32)
    assert torch.allclose(again, stored["codes"] * scale / 127, atol=1e-7)
    assert not again[2].any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [0, 70, 129])
def test_values_that_are_not_finite_are_refused(scheme, bad, place):
    weight = torch.randn(2, 65)
    weight.view(-1)[place] = bad
    with pytest.raises(DeltatuneError, match="infinite or NaN"):
        scheme.quantize(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_magnitudes_that_pass_the_largest_number_when_quantised_twice_are_refused(dtype):
    refused = 0
    for zeros in range(20):
        weight = torch.empty(40, 64).uniform_(0.5, 1).mul(torch.finfo(dtype).max / 8).to(dtype)
        weight *= 8 if dtype == torch.float16 else 1  # their mean is finite in float32
        weight[0], weight[20 : 20 + zeros] = torch.finfo(dtype).max, 0
        plain = NF4(double=False)
        assert plain.dequantize(plain.quantize(weight), (40, 64), dtype).isfinite().all()
        try:
            stored = NF4().quantize(weight)
        except DeltatuneError as error:
            refused += "NF4(double=False)" in str(error)
        else:
            assert NF4().dequantize(stored, (40, 64), dtype).isfinite().all()
    assert refused > 0


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [(NF4(), 4.127), (NF4(double=False), 4.5), (NF4(nested="fp8"), 4.127), (FP4(block=128, double=False), 4.25)],
)
def test_bits_of_a_parameter(scheme, bits):
    shape = (1024, 1024)
    stored = scheme.quantize(torch.randn(shape))
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert size == scheme.bytes(shape)
    assert round(8 * size / (1024 * 1024), 3) == bits
    assert {name: t.shape for name, t in scheme.empty(shape).items()} == {n: t.shape for n, t in stored.items()}


def test_the_result_does_not_depend_on_a_default_device_or_on_gradients():
    weight = torch.randn(4, 64, requires_grad=True)
    wanted = NF4().quantize(weight.detach())
    with torch.device("meta"):
        stored = NF4().quantize(weight.detach())
        assert torch.equal(NF4().magnitudes(stored), NF4().magnitudes(wanted))
    assert all(torch.equal(stored[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_the_text_form_reads_back_equal(scheme):
    assert read_scheme(scheme.text) == scheme
    assert read_scheme(repr(scheme)) == scheme
    assert isinstance(read_scheme(scheme), Scheme)


def test_no_quantisation():
    assert read_scheme(None) is read_scheme("none") is read_scheme(" None ") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nf5", r"nf4.*fp4.*int8"),
        ("NF4(dubble=True)", "double"),
        ("nf4(block=48)", "32, 64, 128"),
        ("nf4(block=64", "not a quantisation"),
        ("nf4(double=3)", "double"),
        ("nf4(nested=fp9)", "fp8"),
        ("int8(block=64)", "no field 'block'"),
        ("NF4(name='nf4')", "no field 'name'; fields: double, block, nested$"),
        ("NF4(block=64, block=128)", "block"),
        ("nf4(64)", "no field '64'"),
        ("nf4)", "not a quantisation"),
        ("nf4(double=)", "double"),
    ],
)
def test_a_wrong_scheme_is_refused_in_words(text, says):
    with pytest.raises(DeltatuneError, match=says):
        read_scheme(text)


def test_eight_bits_of_rows_near_the_ends_of_float32():
    for size in (1e-45, 1e-38, 1e-36, 1e-30, 2e36):
        weight = torch.linspace(-1, 1, 64).repeat(2, 1) * size
        tensors = Int8().quantize(weight)
        found = Int8().dequantize(tensors, (2, 64), torch.float32)
        assert (found - weight).abs().max() <= max(size / 127, 1e-36)
    with pytest.raises(DeltatuneError, match="pass what 8 bits can hold"):
        Int8().quantize(torch.full((2, 64), 3e38))
