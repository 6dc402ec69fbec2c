"""Codes, magnitudes and dequantised values have the bits of bitsandbytes, for any weight that has finite values."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from deltatune.core.quantization import kernels, schemes
from deltatune.core.quantization.schemes import BLOCKS, FP4, NF4, Int8

bitsandbytes = pytest.importorskip("bitsandbytes")
functional = bitsandbytes.functional
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FOUR_BIT = {"nf4": NF4, "fp4": FP4}


def same(ours, theirs):
    """Equal bits: signs of zeros too."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs)
    if ours.is_floating_point():
        assert torch.equal(torch.signbit(ours), torch.signbit(theirs))


def torch_operator(packed, absmax, block, name, shape, dtype):
    """bitsandbytes' own pure torch operator, which the CPU kernel stands in for."""
    from bitsandbytes.backends.default import ops

    table = functional.get_4bit_type(name, device="cpu")
    return ops._dequantize_4bit_compute.__wrapped__(packed.view(-1), absmax, table, block, shape, dtype)


def check_four_bits(weight, scheme):
    ours = scheme.quantize(weight)
    packed, state = functional.quantize_4bit(
        weight, blocksize=scheme.block, compress_statistics=scheme.double, quant_type=scheme.name
    )
    same(ours["codes"], packed.view(-1))
    same(ours["absmax"], state.absmax)
    absmax = state.absmax
    if scheme.double:
        same(ours["nested_absmax"], state.state2.absmax)
        same(ours["offset"], state.offset)
        absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    same(scheme.magnitudes(ours), absmax)
    shape = tuple(weight.shape)
    wanted = torch_operator(packed, absmax, scheme.block, scheme.name, shape, weight.dtype)
    same(schemes.dequantize_4bit(ours["codes"], absmax, scheme.table, scheme.block, shape, weight.dtype), wanted)
    dequantised = scheme.dequantize(ours, shape, weight.dtype)
    if weight.dtype == torch.bfloat16:  # the kernel flushes what is too small to be normal
        small = wanted.abs() < torch.finfo(torch.bfloat16).tiny
        dequantised, wanted = dequantised.masked_fill(small, 0), wanted.masked_fill(small, 0)
    same(dequantised, wanted)


def a_weight(rows, columns, seed, exponent, dtype, kind):
    """A random matrix; of some kinds, with blocks of zeros, one large value, or magnitudes of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if kind == "zeros":
        weight[torch.rand(rows, generator=generator) < 0.5] = 0
    if kind == "outlier":
        weight.view(-1)[int(torch.randint(weight.numel(), (1,), generator=generator))] *= 1000
    if kind == "spread":
        weight *= 10 ** torch.empty(rows, 1).uniform_(-12, 12, generator=generator)
    if kind == "few values":
        weight = weight.round()
    most = torch.finfo(dtype).max / 4  # above, double quantisation may overflow
    return (weight * 10.0**exponent).clamp(-most, most).to(dtype)


weights = st.builds(
    a_weight,
    rows=st.integers(1, 40) | st.sampled_from([64, 129, 300]),
    columns=st.integers(1, 130) | st.sampled_from([64, 128, 256, 1024]),
    seed=st.integers(0, 2**31),
    exponent=st.sampled_from([0, 0, -2, 3, -20, 20, -37, 36, -40, -44]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["normal", "zeros", "outlier", "spread", "few values"]),
)
four_bit_schemes = st.builds(
    lambda name, double, block: FOUR_BIT[name](double=double, block=block),
    st.sampled_from(sorted(FOUR_BIT)),
    st.booleans(),
    st.sampled_from(BLOCKS),
)


@settings(max_examples=120)
@given(weights, four_bit_schemes)
@example(torch.zeros(3, 5), NF4())
@example(torch.zeros(1, 1), FP4())
@example(torch.full((2, 64), torch.finfo(torch.float32).max), NF4(double=False))
@example(-torch.full((1, 65), torch.finfo(torch.float32).max), NF4(double=False, block=32))
@example(torch.full((4, 64), 1e-45), NF4())
def test_four_bits(weight, scheme):
    check_four_bits(weight, scheme)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bits_of_many_values(name, double, dtype):
    check_four_bits(a_weight(700, 1111, 3, 0, dtype, "outlier"), FOUR_BIT[name](double=double))
    check_four_bits(a_weight(512, 1024, 4, -2, dtype, "normal"), FOUR_BIT[name](double=double))


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("scale", [1.0, 0.37, 3e-5, 2e20])
def test_values_in_the_middle_of_two_codes(name, scale):
    table = FOUR_BIT[name]().table.sort().values
    middles = (table[:-1] + table[1:]) / 2
    near = torch.cat([middles, middles.nextafter(torch.tensor(9.0)), middles.nextafter(torch.tensor(-9.0))])
    weight = torch.zeros(2, 64)
    weight[:, : len(near)] = near
    weight[:, -1] = 1.0
    check_four_bits(weight * scale, FOUR_BIT[name](double=False))


def test_every_pair_of_codes_is_read_as_bitsandbytes_reads_it():
    codes = torch.arange(256, dtype=torch.uint8).repeat(2)  # 1,024 values
    absmax = torch.rand(16) + 0.1
    for name, scheme in FOUR_BIT.items():
        for dtype in DTYPES:
            wanted = torch_operator(codes, absmax, 64, name, (16, 64), dtype)
            tensors = {"codes": codes, "absmax": absmax}
            same(scheme(double=False).dequantize(tensors, (16, 64), dtype), wanted)
            same(schemes.dequantize_4bit(codes, absmax, scheme().table, 64, (16, 64), dtype), wanted)


@settings(max_examples=60)
@given(weights)
def test_eight_bits(weight):
    assume(float(weight.abs().max()) < 2.6e36)  # refused: code times magnitude would pass float32
    ours = Int8().quantize(weight)
    codes, scales, _ = functional.int8_vectorwise_quant(weight.clone())
    same(ours["absmax"], scales)
    ordinary = scales > 1e-36  # a row of zeros, or nearly: infinity times zero there
    same(ours["codes"][ordinary], codes[ordinary])
    wanted = functional.int8_vectorwise_dequant(ours["codes"], scales)
    same(Int8().dequantize(ours, tuple(weight.shape), torch.float32), wanted)
    for row in torch.nonzero(scales == 0).view(-1):
        assert not ours["codes"][row].any()


def test_the_tables_are_those_of_bitsandbytes():
    assert torch.equal(NF4().table, functional.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(FP4().table, functional.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(NF4().nested_table, functional.create_dynamic_map())


def kernel_bits(scheme, shape, block):
    """The values of the installed kernel, and those of the pure torch operator."""
    tensors = type(scheme)(double=False, block=block).quantize(torch.randn(shape))
    given = (tensors["codes"], tensors["absmax"], block, scheme.name, shape, torch.float32)
    return torch.ops.bitsandbytes.dequantize_4bit.default(*given), torch_operator(*given)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="a mistake of the AVX512 kernel alone")
@pytest.mark.parametrize(("shape", "block"), [((24, 32), 64), ((24, 96), 64), ((10, 48), 32)])
@pytest.mark.parametrize("scheme", [NF4(), FP4()], ids=lambda scheme: scheme.name)
def test_the_kernel_is_left_out_where_it_takes_wrong_magnitudes(scheme, shape, block):
    theirs, wanted = kernel_bits(scheme, shape, block)
    if torch.equal(theirs, wanted):
        pytest.skip("this version of bitsandbytes has mended it")
    assert (theirs - wanted).abs().max() > 0.01  # no rounding: other magnitudes
    assert kernels.four_bit_kernel(torch.device("cpu"), shape, block, torch.float32) is None
    check_four_bits(torch.randn(shape), type(scheme)(double=False, block=block))


@pytest.mark.parametrize(
    ("version", "used"), [("0.46.1", False), ("0.49.2", False), ("0.50.0", True), ("1.0.0.dev0", True)]
)
def test_kernels_of_older_versions_are_left_out(version, used, monkeypatch):
    """0.47 and 0.48 return other bits for 16-bit matrices, and 0.46 refuses FP4."""
    monkeypatch.setattr("bitsandbytes.__version__", version)
    kernels._kernel.cache_clear()
    try:
        assert (kernels.four_bit_kernel(torch.device("cpu"), (16, 1024), 64, torch.bfloat16) is not None) == used
    finally:
        kernels._kernel.cache_clear()


def test_the_kernel_is_used_where_it_has_the_bits():
    for block in (32, 64, 1024):
        theirs, wanted = kernel_bits(NF4(), (16, 1024), block)
        same(theirs, wanted)
        assert kernels.four_bit_kernel(torch.device("cpu"), (16, 1024), block, torch.float32) is not None
    assert kernels.four_bit_kernel(torch.device("cpu"), (16, 1024), 64, torch.float64) is None
    assert kernels.four_bit_kernel(torch.device("meta"), (16, 1024), 64, torch.float32) is None
