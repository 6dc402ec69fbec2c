"""Bases that transformers quantised with bitsandbytes: recognised, kept as stored, trained, saved, made plain."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

import deltatune
from deltatune import Host, LoRA
from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.stored_weights import stored_weight, weight_of
from deltatune.models.quantization.quantize_model import dequantize_
from deltatune.store.fingerprint import base_identity
from support import models

bitsandbytes = pytest.importorskip("bitsandbytes")
functional = bitsandbytes.functional

WIDTHS = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_inner": 128},
    "bert": {"hidden_size": 64, "intermediate_size": 128},
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SCHEMES = {
    "nf4": NF4,
    "nf4-bf16": {**NF4, "bnb_4bit_compute_dtype": torch.bfloat16},
    "nf4-fp16": {**NF4, "bnb_4bit_compute_dtype": torch.float16},
    "fp4": {"load_in_4bit": True},
    "stored-bf16": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
    "int8-no-outliers": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "int8-at-run-time": {"load_in_8bit": True, "llm_int8_has_fp16_weight": True},
}
QUICK = [("gpt2", "nf4-bf16"), ("gpt2", "int8"), ("llama", "stored-bf16"), ("llama", "int8-at-run-time")]


def pairs(kinds, schemes, quick=QUICK):
    """Kinds and schemes; those that no quick test needs are slow."""
    slow = pytest.mark.slow
    return [pytest.param(k, s, marks=[] if (k, s) in quick else slow) for k in kinds for s in schemes]


LABELS = {"nf4": "bitsandbytes nf4", "fp4": "bitsandbytes FP4(double=False)", "int8": "bitsandbytes int8"}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """It warns at every product of 8 bits."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small plain model of a kind."""
    made = {}

    def of(kind, head="lm"):
        if (kind, head) not in made:
            made[kind, head] = tmp_path_factory.mktemp(kind)
            models.tiny(kind, head, dropout=False, **WIDTHS[kind]).save_pretrained(made[kind, head])
        return made[kind, head]

    return of


@pytest.fixture
def load(folder):
    def quantized(kind, scheme, head="lm", dtype=torch.float32):
        cls = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
        config = BitsAndBytesConfig(**SCHEMES[scheme])
        return cls.from_pretrained(folder(kind, head), quantization_config=config, dtype=dtype).eval()

    return quantized


def maps(model):
    return {path: module for path, module in model.named_modules() if hasattr(module, "in_features")}


def quantized_maps(model):
    return {path: module for path, module in maps(model).items() if stored_weight(module) is not None}


def package_values(module):
    """The matrix (out, in) as bitsandbytes itself makes it."""
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        return functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    if module.weight.is_floating_point():
        return functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(module.weight.data.half())[:2])
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return functional.int8_vectorwise_dequant(module.weight.data, scales)


def _bytes(tensor):
    return tensor.reshape(-1).view(torch.uint8)  # codes in bfloat16 may be no numbers


def logits(model, kind):
    with torch.no_grad():
        return model(**models.inputs(kind)).logits


@pytest.mark.parametrize(("kind", "scheme"), pairs(["llama", "gpt2"], SCHEMES))
def test_sites_and_values_are_those_of_the_plain_model(kind, scheme, load):
    model, plain = load(kind, scheme), models.tiny(kind, "lm", **WIDTHS[kind])
    modules = quantized_maps(model)
    assert len(modules) == 14 if kind == "llama" else 8
    for module in modules.values():
        expected = package_values(module)
        assert torch.equal(weight_of(module), expected.T if stored_weight(module).transposed else expected)
    host, other = Host(model), Host(plain)
    label = LABELS.get(scheme.partition("-")[0], "bitsandbytes FP4(double=False)")
    assert host.sites.keys() == other.sites.keys()
    assert host.sites.base_params == other.sites.base_params
    for name, site in host.sites.items():
        like = other.sites[name]
        shape = site.width_in, site.width_out, site.params, site.bias, site.slice
        assert shape == (like.width_in, like.width_out, like.params, like.bias, like.slice)
        if site.kind in ("linear", "norm", "embed"):
            assert site.quantized == (label if site.kind == "linear" and site.layer is not None else "")
    for name, tensor in host.base.tensors():
        assert tensor.shape == dict(other.base.tensors())[name].shape


@pytest.mark.parametrize(("kind", "scheme"), pairs(["llama", "gpt2"], SCHEMES))
def test_running_changes_nothing_that_is_stored(kind, scheme, load):
    host = Host(load(kind, scheme))
    modules = quantized_maps(host.model)
    before = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    identity = base_identity(host)
    for training in (False, True, False):
        host.model.train(training)
        first = logits(host.model, kind)
        with torch.autocast("cpu", torch.bfloat16):
            logits(host.model, kind)
        assert torch.equal(first, logits(host.model, kind))
    after = host.model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert all(torch.equal(_bytes(before[name]), _bytes(after[name])) for name in before)
    assert base_identity(host) == identity == base_identity(Host(load(kind, scheme)))
    assert all(stored_weight(module).readable for module in modules.values())


@pytest.mark.parametrize(("kind", "storage"), pairs(["llama", "gpt2"], ["nf4-bf16", "stored-bf16"]))
def test_a_base_that_was_run_before(kind, storage, load):
    """Its magnitudes may be rounded by then; codes, products and reading agree all the same, and it is said."""
    raw, fresh = load(kind, storage), Host(load(kind, storage))
    for module in quantized_maps(raw).values():
        module.support_avx512bf16_for_cpu = True
        module.weight.data, _ = functional._convert_weight_packed_for_cpu(module.weight.data, module.weight.quant_state)
        assert module.weight.quant_state.packing_format_for_cpu
    packed = {path: weight_of(module) for path, module in quantized_maps(raw).items()}
    host = Host(raw)
    for path, module in quantized_maps(raw).items():
        assert torch.equal(weight_of(module), packed[path])
        assert torch.equal(package_values(module), stored_weight(module).read())
        true = weight_of(fresh.model.get_submodule(path))
        assert not torch.equal(true, packed[path]) or true.dtype != torch.float32
        torch.testing.assert_close(packed[path], true, rtol=2**-8, atol=0)
        codes = module.weight.data.view(torch.uint8)
        assert torch.equal(codes, fresh.model.get_submodule(path).weight.data.view(torch.uint8))
    torch.testing.assert_close(logits(raw, kind), logits(fresh.model, kind), rtol=0, atol=0.2)
    ours, theirs = base_identity(host), base_identity(fresh)
    assert ours["content"] == theirs["content"]
    assert ours["quantized"] == [f"{label}, magnitudes rounded to bfloat16" for label in theirs["quantized"]]


METHODS = [
    "LoRA(r=2)",
    "DoRA(r=2)",
    "PiSSA(r=2)",
    "Bottleneck(size=4)",
    "Prefix(length=2)",
    "Prompt(length=2)",
    "IA3()",
]


@pytest.mark.parametrize(
    ("method", "scheme"), pairs(METHODS, ["nf4-bf16", "int8"], [("LoRA(r=2)", "nf4-bf16"), ("DoRA(r=2)", "int8")])
)
def test_methods_train_are_saved_and_loaded(method, scheme, load, tmp_path):
    host = Host(load("gpt2", scheme))
    batch = models.inputs("gpt2")
    logits(host.model, "gpt2")  # evaluated before training
    host.attach("a", deltatune.parse(method))
    optimizer = torch.optim.AdamW([parameter for _, parameter in host.trainable("a")], lr=2e-2)
    losses = []
    for step in range(5):
        host.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 0):
            loss = host.model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for _, parameter in host.trainable("a"))
        optimizer.step()
        losses.append(loss.item())
        host.model.eval()
        logits(host.model, "gpt2")  # evaluated between steps
    assert losses[-1] < losses[0]
    assert not [n for n, p in host.model.named_parameters() if p.grad is not None and not n.startswith("deltatune.")]
    host.save("a", tmp_path / "a")
    again = Host(load("gpt2", scheme))
    again.load(tmp_path / "a")
    assert torch.equal(logits(host.model, "gpt2"), logits(again.model, "gpt2"))
    row = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    generated = [h.generate(**row, max_new_tokens=4, do_sample=False) for h in (host, again)]
    assert torch.equal(*generated)
    base = logits(load("gpt2", scheme), "gpt2") if scheme == "int8" else None
    host.detach("a")
    if base is not None:
        assert torch.equal(base, logits(host.model, "gpt2"))


@pytest.mark.parametrize(
    ("kind", "scheme"), pairs(["llama", "gpt2"], ["nf4", "fp4", "int8"], [("gpt2", "nf4"), ("llama", "int8")])
)
def test_dequantised_it_computes_the_same(kind, scheme, load):
    model = load(kind, scheme)
    values = {path: package_values(module) for path, module in quantized_maps(model).items()}
    Host(model)
    logits(model, kind)
    expected = logits(model.train(), kind)  # in training mode int8 leaves activations as they are
    paths = dequantize_(model)
    assert set(paths) == set(values)
    for path, matrix in values.items():
        module = model.get_submodule(path)
        assert torch.equal(module.weight, matrix.T if "Conv1D" in type(module).__name__ else matrix)
    torch.testing.assert_close(logits(model, kind), expected, rtol=1e-4, atol=1e-4)


def test_eight_bits_in_a_model_of_bfloat16_become_plain_in_bfloat16(load):
    """Their codes do not say what type the weight had."""
    host = Host(load("llama", "int8", dtype=torch.bfloat16))
    before = logits(host.model, "llama")
    host.attach("a", LoRA(r=2), head=False)
    host.merge_("a")  # raises an error for a difference that rounding does not explain
    assert {parameter.dtype for parameter in host.model.model.layers[0].self_attn.q_proj.parameters()} == {
        torch.bfloat16
    }
    host.detach("a")
    assert torch.equal(logits(host.model, "llama"), before)
    plain = load("llama", "int8", dtype=torch.bfloat16)
    dequantize_(plain)
    assert (logits(plain, "llama") - before).norm() < 0.05 * before.norm()  # these quantise their inputs too


def test_the_gradient_passes_as_through_the_plain_weight(load):
    for scheme in ("fp4", "int8"):
        model = load("llama", scheme)
        Host(model)
        for module in list(quantized_maps(model).values())[:3]:
            module.train()
            x = torch.randn(2, 3, module.in_features, requires_grad=True)
            grad = torch.randn(2, 3, module.out_features)
            module(x).backward(grad)
            torch.testing.assert_close(x.grad, grad @ weight_of(module), rtol=1e-4, atol=1e-4)


def test_a_quantised_task_head_is_trained_as_a_plain_copy(load):
    """transformers quantises classifiers too; their codes have no gradient."""
    host = Host(load("bert", "nf4", "classify"))
    plain = Host(models.tiny("bert", "classify", **WIDTHS["bert"]))
    assert stored_weight(host.model.classifier) is not None
    assert host.sites["head"].params == plain.sites["head"].params
    expected = logits(host.model, "bert")
    host.attach("a", LoRA(r=2))
    torch.testing.assert_close(logits(host.model, "bert"), expected, rtol=1e-4, atol=1e-5)
    batch = models.inputs("bert")
    labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
    torch.nn.functional.cross_entropy(host.model(**batch).logits, labels).backward()
    head = {name: parameter for name, parameter in host.trainable("a") if name.startswith("deltas.head")}
    assert len(head) == 2
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.values())


@pytest.mark.parametrize("kind", [pytest.param("bert", marks=pytest.mark.slow), "roberta"])
def test_merging_with_a_head_writes_the_head_too(kind, tmp_path):
    """RoBERTa's head holds two maps, both quantised."""
    widths = WIDTHS["bert"]
    models.tiny(kind, "classify", dropout=False, **widths).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**SCHEMES["nf4"])
    host = Host(AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=config).eval())
    before = logits(host.model, kind)
    host.attach("a", LoRA(r=2), seed=1)
    with torch.no_grad():
        for _, parameter in host.trainable("a"):
            parameter += 0.05
    expected = logits(host.model, kind)
    host.merge_("a")
    torch.testing.assert_close(logits(host.model, kind), expected, rtol=1e-3, atol=1e-4)
    host.unmerge_("a")
    host.use(None)
    assert torch.equal(logits(host.model, kind), before)


def test_widths_that_the_package_computes_wrongly_are_refused(tmp_path):
    """Blocks of 64 do not fit into 32 columns, and the kernel of 0.50 for processors then takes wrong magnitudes."""
    models.tiny("llama", "lm").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**NF4))
    module = model.model.layers[0].self_attn.q_proj
    true, computed = weight_of(module), package_values(module)
    if torch.allclose(true, computed):
        pytest.skip("this version of bitsandbytes computes them rightly")
    with pytest.raises(
        DeltatuneError, match="wrong values on this processor for weights of 32 columns in blocks of 64"
    ):
        Host(model)


def test_a_map_without_codes_is_refused(load):
    model = load("llama", "nf4")
    empty = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
    model.model.layers[0].self_attn.q_proj = empty
    with pytest.raises(DeltatuneError, match=r"self_attn\.q_proj: a Linear4bit of bitsandbytes holds no codes yet"):
        Host(model)


def test_ours_and_theirs_are_one_base(load, tmp_path):
    """The bits are the same, so an adapter trained on one loads onto the other."""
    theirs, plain = Host(load("llama", "nf4")), models.tiny("llama", "lm", dropout=False, **WIDTHS["llama"])
    deltatune.quantize_(plain, "nf4")
    ours = Host(plain)
    ours.attach("a", LoRA(r=2))
    ours.save("a", tmp_path / "a")
    theirs.load(tmp_path / "a")
    deltatune.quantize_(other := models.tiny("llama", "lm", dropout=False, **WIDTHS["llama"]), "NF4(double=False)")
    with pytest.raises(DeltatuneError, match="stored in nf4"):
        Host(other).load(tmp_path / "a")
