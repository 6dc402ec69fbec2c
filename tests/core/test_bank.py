"""A bank: slots, groups, errors, dtypes, routes; what the laws of banks do not say."""

import copy
import re

import pytest
import torch
from torch import nn

from deltatune import DeltatuneError, LoRA, parse
from deltatune.core.host_parts.bank import BankFull
from deltatune.core.module_copy import plain_norm
from deltatune.methods.adapters.bottleneck_bank import TwoLayerBank
from deltatune.testing import inputs, tiny
from deltatune.testing.fixtures import assert_close, attach, make_host, outputs, quantized_bases
from deltatune.testing.laws.generation_laws import prompt, step_logits


def stored(kind, text, seed=0, dtype=torch.float32):
    """A trained adapter as its files hold it: method and tensors."""
    host = make_host(kind, dtype=dtype)
    adapter = attach(host, "x", parse(text), seed=seed)
    return adapter.method, {name: tensor.clone() for name, tensor in adapter.tensors().items()}


def put(host, name, kind, text, seed=0):
    method, tensors = stored(kind, text, seed)
    return host.bank().put(name, method, tensors, seed=seed)


def attach_same(host, name, kind, text, seed=0):
    method, tensors = stored(kind, text, seed)
    host.attach(name, method, seed=seed).load_tensors(tensors)


def groups(host):
    return [sorted(group.members) for group in host.bank().groups.values()]


def test_ranks_sizes_and_lengths_that_are_padded_alike_share_a_group():
    host = make_host("bert")
    for i, text in enumerate(
        ["LoRA(r=5)", "LoRA(r=8)", "LoRA(r=3)", "Prefix(length=3)", "Prefix(length=16)", "Prefix(length=17)"]
    ):
        put(host, f"p{i}", "bert", text)
    assert groups(host) == [["p0", "p1"], ["p2"], ["p3", "p4"], ["p5"]]


def test_other_activations_forms_and_sites_do_not_share_one():
    host = make_host("bert")
    texts = ["Bottleneck(size=4)", "Bottleneck(size=4, activation='tanh')", "Bottleneck(size=4, form='parallel')"]
    for i, text in enumerate([*texts, "Bottleneck(size=4, sites='*.ffn')", "Bottleneck(size=3, scale=4.0)"]):
        put(host, f"p{i}", "bert", text)
    assert groups(host) == [["p0", "p4"], ["p1"], ["p2"], ["p3"]]


def test_matrices_that_read_one_input_may_have_ranks_of_their_own():
    text = "LoRA(r=8, sites='*.attn.{q,k,v}', ranks=(('*.attn.q', 2),))"
    host = make_host("llama")
    put(host, "b", "llama", text)
    attach_same(host, "a", "llama", text)
    host.use(["b", None, "b"])
    mixed = outputs(host, inputs("llama"))
    host.use(["a", None, "a"])
    assert_close(mixed, outputs(host, inputs("llama")), "other ranks at q than at k and v")


def test_a_full_bank_names_its_size_and_the_way_out():
    host = make_host("bert")
    host.bank(slots=2)
    for name in ("x", "y"):
        put(host, name, "bert", "BitFit()")
    with pytest.raises(BankFull, match=r"all 2 slots.*host\.bank"):
        put(host, "z", "bert", "LoRA()")
    with pytest.raises(DeltatuneError, match="slots=1 is too few"):
        host.bank(slots=1)
    host.bank(slots=3)
    put(host, "z", "bert", "LoRA()")
    assert host.bank().names == ("x", "y", "z")


@pytest.mark.parametrize("text", ["LongLoRA()", "IDPG()", "Full()", "AdapterFusion((Pfeiffer(4), Pfeiffer(4)))"])
def test_a_method_without_a_form_is_refused_by_name_and_can_be_attached(text):
    host, method = make_host("bert"), parse(text)
    assert not host.bank().can_hold(method)
    with pytest.raises(DeltatuneError, match=re.escape(f"{method!r} has no form for banks; attach it")):
        host.bank().put("x", method, {})
    host.attach("x", method)


def test_the_forms_cover_the_built_in_methods():
    texts = [
        *(
            "LoRA()",
            "RsLoRA()",
            "LoRAPlus()",
            "DoRA()",
            "PiSSA()",
            "VeRA()",
            "IA3()",
            "BitFit()",
            "LoReFT()",
            "DiReFT()",
        ),
        *("Houlsby()", "Pfeiffer()", "Parallel()", "Compacter()", "AdapterDrop()", "RobustAdapterDrop()", "MAM()"),
        *("Prefix()", "PTuningV2()", "Prompt()", "PTuning(encoder='none')", "UniPELT()", "Unified()"),
        *("LongLoRA(embeddings=False)", "LoRA(sites='embed')", "ReFT(first=2, last=1, tied=False)"),
    ]
    host = make_host("bert")
    assert [text for text in texts if not host.bank().can_hold(parse(text))] == []


@pytest.mark.parametrize(
    "text", ["LoRA(r=3)", "Houlsby(size=3)", "Prefix(length=3)", "DoRA(r=3)", "IA3()", "ReFT(r=3)"]
)
def test_stacks_in_bfloat16_beside_a_base_in_bfloat16(text):
    host = make_host("llama", dtype=torch.bfloat16)
    for i, seed in enumerate((0, 3)):
        method, tensors = stored("llama", text, seed)
        host.bank().put(f"b{i}", method, tensors)
        host.attach(f"a{i}", method).load_tensors(tensors)
    assert host.bank().dtype == torch.bfloat16
    batch = inputs("llama")
    host.use(["b0", None, "b1"])
    in_bank = outputs(host, batch)
    host.use(["a0", None, "a1"])
    assert_close(in_bank, outputs(host, batch), "in bfloat16", within=6 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("text", ["LoRA(r=3)", "Houlsby(size=3)", "Prefix(length=3)", "VeRA(r=5)", "Prompt(length=3)"])
def test_stacks_follow_the_model_to_another_dtype(text):
    host, batch = make_host("bert"), inputs("bert")
    put(host, "b", "bert", text)
    attach_same(host, "a", "bert", text)
    host.use(["b", None, "b"])
    outputs(host, batch)
    host.model.to(torch.float64)
    in_bank = outputs(host, batch)
    host.use(["a", None, "a"])
    assert in_bank.dtype == torch.float64
    assert_close(in_bank, outputs(host, batch), "after model.to(float64)", within=1e-6)
    put(host, "later", "bert", text, seed=4)
    host.use(["later", None, "b"])
    outputs(host, batch)


@pytest.mark.parametrize("text", ["DoRA(r=3)", "LoRA(r=3)", "Houlsby(size=3)"])
def test_beside_a_quantised_base(text):
    with quantized_bases("nf4"):
        host = make_host("llama")
    put(host, "b", "llama", text)
    attach_same(host, "a", "llama", text)
    host.use(["b", None, "b"])
    in_bank = outputs(host, inputs("llama"))
    host.use(["a", None, "a"])
    assert_close(in_bank, outputs(host, inputs("llama")), "on a base in nf4")


def test_a_route_is_put_back_with_the_slots_of_then():
    host, batch = make_host("bert"), inputs("bert")
    for seed, name in enumerate(("x", "y", "z")):
        put(host, name, "bert", "LoRA()", seed)
    host.use(["z", None, "y"])
    wanted = outputs(host, batch)
    with host.using("x"):
        for name in ("x", "z"):
            host.bank().remove(name)
        put(host, "z", "bert", "LoRA()", 2)  # now in x's slot
    assert_close(outputs(host, batch), wanted, "a route after a slot has moved")


def test_an_adapter_that_is_removed_leaves_the_route():
    host, batch = make_host("bert"), inputs("bert")
    base = outputs(host, batch)
    put(host, "x", "bert", "Houlsby()")
    put(host, "y", "bert", "Houlsby()", 1)
    host.use(["x", "x", "x"])
    host.detach("x")
    assert torch.equal(outputs(host, batch), base)
    with pytest.raises(DeltatuneError, match="no adapter is called 'x'"):
        host.use("x")


@pytest.mark.parametrize("leaves", ["put", "attached"])
def test_adapters_that_stay_in_the_route_act_on_when_another_leaves(leaves):
    host, batch = make_host("bert"), inputs("bert")
    (put if leaves == "put" else attach_same)(host, "x", "bert", "LoRA()")
    put(host, "y", "bert", "LoRA()", 1)
    host.use([None, "y", "y"])
    wanted = outputs(host, batch)
    host.use(["x", "y", {"y": 1.0, "x": 0.5}])
    host.detach("x")
    assert_close(outputs(host, batch), wanted, "y after x has left")


def test_adapters_of_a_bank_are_not_stacked():
    """Those of one group act together, so that the second would not see what the first has changed."""
    host = make_host("bert")
    put(host, "x", "bert", "Houlsby(size=3)")
    attach_same(host, "a", "bert", "Houlsby(size=3)", 1)
    with pytest.raises(DeltatuneError, match="x cannot be stacked in the bank"):
        host.use([None, {"a": 1.0, "x": 1.0}], stacked=True)
    host.use(["a", "x"], stacked=True)  # each alone on its row


@pytest.mark.parametrize("text", ["LoRA(sites='*.attn.{q,k,v}')", "DoRA(r=3)", "UniPELT()", "Houlsby(size=3)"])
def test_a_copy_of_the_model_has_a_bank_of_its_own(text):
    host, batch = make_host("bert"), inputs("bert")
    for i in range(2):
        put(host, f"b{i}", "bert", text, i)
    host.use(["b0", None, "b1"])
    wanted = outputs(host, batch)
    copied = copy.deepcopy(host)
    assert torch.equal(outputs(copied, batch), wanted)
    copied.bank().remove("b1")
    assert torch.equal(outputs(host, batch), wanted)
    attach(host, "t", LoRA(sites="*.attn.{q,k,v}"))
    host.use(["t", None, "b1"])
    host.model(**batch)[0].sum().backward()
    copy.deepcopy(host.model)  # without the values of the last pass, which cannot be copied


def test_a_host_describes_what_is_in_its_bank_as_what_is_attached():
    banked, attached = make_host("bert"), make_host("bert")
    for text, name in (("LoRA()", "x"), ("Prefix(length=3)", "y")):
        put(banked, name, "bert", text)
        attach_same(attached, name, "bert", text)
    banked.use("x")
    attached.use("x")
    assert banked.describe() == attached.describe()


def test_weights_of_zero_and_below():
    host, batch = make_host("bert"), inputs("bert")
    base = outputs(host, batch)
    for text in ("LoRA()", "Prefix(length=3)", "IA3()"):
        put(host, "b", "bert", text)
        attach_same(host, "a", "bert", text)
        host.use([{"b": 0.0}, None, {"b": 0.0}])
        assert torch.equal(outputs(host, batch), base)
        host.use([{"b": -1.5}, None, {"b": 0.5}])
        in_bank = outputs(host, batch)
        host.use([{"a": -1.5}, None, {"a": 0.5}])
        assert_close(in_bank, outputs(host, batch), f"{text} with weights")
        for name in "ab":
            host.detach(name)


def test_norms_of_dora_are_those_of_the_base_alone():
    """Neither merged adapters nor trained weights that act at the moment get into them."""
    host, batch = make_host("bert"), inputs("bert")
    attach_same(host, "a", "bert", "DoRA(r=3)")
    attach(host, "full", parse("Full()"))
    host.use("full")
    put(host, "b", "bert", "DoRA(r=3)")
    assert host.route.names == {"full"}
    host.use("a")
    wanted = outputs(host, batch)
    host.use("b")
    assert_close(outputs(host, batch), wanted, "DoRA put while other weights act")
    host.use(None)
    host.attach("lora", LoRA())
    host.merge_("lora")
    with pytest.raises(DeltatuneError, match=r"lora is merged.*unmerge_"):
        put(host, "c", "bert", "DoRA(r=3)")


def test_places_of_fourierft_must_be_the_same_to_share_stacks():
    host, batch = make_host("bert"), inputs("bert")
    for name, text in (("a", "FourierFT(n=9)"), ("b", "FourierFT(n=9)"), ("c", "FourierFT(n=9, seed=3)")):
        put(host, name, "bert", text, seed=ord(name))
        attach_same(host, f"{name}0", "bert", text, seed=ord(name))
    assert groups(host) == [["a", "b"], ["c"]]
    host.use(["a", "c", "b"])
    in_bank = outputs(host, batch)
    host.use(["a0", "c0", "b0"])
    assert_close(in_bank, outputs(host, batch), "two groups of places")


@pytest.mark.parametrize("r", [2, 6, 8])
def test_pairs_of_loha_take_no_more_than_the_matrix(r):
    """From r² above a width on, the stacks hold the matrix itself, also where r is no power of two."""
    host, batch = make_host("bert"), inputs("bert")
    put(host, "b", "bert", f"LoHa(r={r}, sites='*.ffn.{{in,out}}')")
    attach_same(host, "a", "bert", f"LoHa(r={r}, sites='*.ffn.{{in,out}}')")
    host.use(["b", None, "b"])
    in_bank = outputs(host, batch)
    host.use(["a", None, "a"])
    assert_close(in_bank, outputs(host, batch), f"LoHa of rank {r}")


def test_projections_of_vera_are_kept_once():
    host = make_host("bert")
    for i in range(3):
        put(host, f"p{i}", "bert", "VeRA(r=16)")
    one = host.bank().bytes
    put(host, "other", "bert", "VeRA(r=16)", seed=5)
    assert groups(host) == [["p0", "p1", "p2"], ["other"]]
    assert host.bank().bytes == 2 * one


def test_a_write_that_fails_leaves_nothing(monkeypatch):
    host, batch = make_host("bert"), inputs("bert")
    base = outputs(host, batch)
    with monkeypatch.context() as patch:
        patch.setattr(TwoLayerBank, "write_maps_", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put(host, "y", "bert", "Pfeiffer(size=4)")
    assert not hasattr(host.model, "deltatune")
    put(host, "x", "bert", "Pfeiffer(size=4)")
    monkeypatch.setattr(TwoLayerBank, "write_maps_", lambda *given: 1 / 0)
    for text in ("Pfeiffer(size=4)", "Houlsby(size=40, norms=False)"):
        with pytest.raises(ZeroDivisionError):
            put(host, "y", "bert", text)
    assert groups(host) == [["x"]]
    assert list(host.adapters) == ["x"]
    host.use([None, None, None])
    assert torch.equal(outputs(host, batch), base)


@pytest.mark.parametrize("kind", ["gemma", "llama", "mobilebert", "bert"])
def test_norms_are_taken_apart_whatever_their_weight_means(kind):
    norms = [module for name, module in tiny(kind).named_modules() if "norm" in type(module).__name__.lower()]
    assert norms
    for norm in norms:
        plain = plain_norm(norm)
        assert plain is not None
        assert plain[1] == (1.0 if kind == "gemma" else 0.0)


class Squared(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) ** 2


@pytest.mark.parametrize(
    "norm", [Squared(8), nn.BatchNorm1d(8), nn.LayerNorm((2, 4)), nn.LayerNorm(8, elementwise_affine=False)]
)
def test_other_norms_are_not_held(norm):
    assert plain_norm(norm) is None


def test_rows_of_prefixes_of_several_groups_call_attention_once_each(monkeypatch):
    host, batch = make_host("llama"), inputs("llama")
    for i, length in enumerate((3, 17)):
        put(host, f"b{i}", "llama", f"Prefix(length={length})")
        attach_same(host, f"a{i}", "llama", f"Prefix(length={length})")
    host.use(["b0", "b1", "b0"])
    in_bank = outputs(host, batch)
    seen = []
    from deltatune.core import attention_call

    run = attention_call.AttentionCall.run
    monkeypatch.setattr(attention_call.AttentionCall, "run", lambda call: seen.append(len(call.q)) or run(call))
    outputs(host, batch)
    assert sum(seen) == 2 * len(batch["input_ids"])  # two layers
    host.use(["a0", "a1", "a0"])
    assert_close(in_bank, outputs(host, batch), "two groups of prefixes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["LoRA(r=3)", "Houlsby(size=3)", "IA3()", "Prefix(length=3)", "DoRA(r=3)", "ReFT(r=2)", "VeRA(r=4)"]
)
def test_a_compiled_model_takes_a_route_of_a_bank(text):
    host, batch = make_host("llama"), inputs("llama")
    for seed in range(3):
        put(host, f"b{seed}", "llama", text, seed)
    host.use(["b0", "b2", "b1"])
    wanted = outputs(host, batch)
    torch.compiler.reset()
    compiled = torch.compile(host.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(**batch)[0], wanted, f"{text}, compiled and eager", within=1e-5)
    host.use(["b2", None, "b0"])
    wanted = outputs(host, batch)
    with torch.no_grad():
        assert_close(compiled(**batch)[0], wanted, f"{text}, another route", within=1e-5)


SLOW = [
    pytest.param(f"{name}(sites='*.ffn.in')", marks=pytest.mark.slow)
    for name in ("LoHa", "LoKr", "VBLoRA", "FourierFT", "OFT", "BOFT")
]


@pytest.mark.parametrize("text", ["LoRA(r=3, sites='*.ffn.in')", "Houlsby(size=3)", "IA3()", "UniPELT()", *SLOW])
@pytest.mark.parametrize("autocast", [False, True])
def test_modules_that_see_tokens_as_rows(text, autocast):
    """OPT's FFN gets the tokens of all rows in one dimension; under autocast float32 stacks meet bfloat16."""
    host, batch = make_host("opt"), inputs("opt")
    for i in range(2):
        put(host, f"b{i}", "opt", text, i)
        attach_same(host, f"a{i}", "opt", text, i)
    results = []
    for name in "ba":
        host.use([f"{name}0", None, f"{name}1"])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append(outputs(host, batch).float())
    assert_close(*results, f"{text} in OPT", within=0.1 if autocast else 1e-5)


def test_steps_of_decoding_see_slots_that_change_between_them():
    """Rows that keep their slot keep their copy; a slot that is written again is copied again."""
    host = make_host("llama", "lm")
    texts = ["LoRA(r=3, sites='*.{attn.q,ffn.in}')", "Houlsby(size=3)", "Prefix(length=3)", "ReFT(r=2)"]
    for text in texts:
        for i in range(3):
            put(host, f"b{i}", "llama", text, i)
            attach_same(host, f"a{i}", "llama", text, i)
        for route in (["b0", "b2", "b1"], ["b0", "b1", "b1"], [None, "b1", "b2"]):
            host.use(route)
            in_bank = step_logits(host, prompt("llama"))
            host.use([name and name.replace("b", "a") for name in route])
            assert_close(in_bank, step_logits(host, prompt("llama")), f"{text}, {route}")
        host.bank().remove("b1")
        put(host, "b1", "llama", text, 7)
        host.detach("a1")
        attach_same(host, "a1", "llama", text, 7)
        host.use(["b0", "b1", "b2"])
        in_bank = step_logits(host, prompt("llama"))
        host.use(["a0", "a1", "a2"])
        assert_close(in_bank, step_logits(host, prompt("llama")), f"{text} after b1 was replaced")
        for name in list(host.adapters):
            host.detach(name)


APART = "does not keep the rows of a batch apart"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("deberta-v2", text) for text in ("LoRA(r=2)", "LoRA(sites='*.attn.k')", "OFT()", "LNTuning()", "BitFit()")),
        ("longformer", "LoRA(r=2)"),
        ("longformer", "LoRA(sites='*.attn.v')"),
        ("led", "LoRA(r=2)"),
    ],
)
@pytest.mark.parametrize("banked", [False, True])
def test_rows_that_a_model_does_not_keep_apart_have_the_same_adapters(kind, text, banked):
    host, batch = make_host(kind), inputs(kind, rows=4)
    for name, seed in (("a", 1), ("b", 2)):
        if banked and host.bank().can_hold(parse(text)):
            put(host, name, kind, text, seed)
        else:
            attach_same(host, name, kind, text, seed)
    for rows in (["a", "b", "a", "b"], ["a", None, None, None], [{"a": 0.5}, "a", "a", "a"]):
        before = host.route
        with pytest.raises(DeltatuneError, match=f"adapter 'a' acts at .*{APART}.*own batch"):
            host.use(rows)
        assert host.route is before
    host.use("a")
    alone = outputs(host, batch)
    host.use(["a"] * 4)
    assert torch.equal(outputs(host, batch), alone)
    host.use({"a": 0.5, "b": 0.5})
    outputs(host, batch)


@pytest.mark.parametrize("text", ["LoRA(r=2, sites='*.{attn.v,attn.o,ffn.in}')", "Parallel(size=4)"])
def test_rows_may_differ_at_the_other_sites_of_such_a_model(text):
    host, batch = make_host("deberta-v2"), inputs("deberta-v2", rows=4)
    for name, seed in (("a", 1), ("b", 2)):
        put(host, name, "deberta-v2", text, seed)
    host.use(["a", "b", None, "a"])
    mixed = outputs(host, batch)
    for name, rows in (("a", [0, 3]), ("b", [1]), (None, [2])):
        host.use(name)
        assert_close(mixed[rows], outputs(host, batch)[rows], f"rows of {name}")


@pytest.mark.parametrize(
    ("kind", "length"), [("deberta-v2", 7), ("deberta-v2", 16), ("longformer", 8), ("longformer", 3), ("led", 8)]
)
def test_what_is_parallel_to_such_an_attention_reads_its_input(kind, length):
    """Not what its maps read last: DeBERTa's 16 relative positions, or Longformer's (T, B, D)."""
    host = make_host(kind)
    attach(host, "a", parse("Bottleneck(size=4, form='parallel', sites='*.attn')"), seed=3)
    read, delta = {}, next(iter(host.adapters["a"].named_deltas()))[1]
    first = next(iter(host.adapters["a"].sites.values()))
    attention = host.model.get_submodule(first.read)
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: read.update(text=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    delta.register_forward_pre_hook(lambda module, args: read.update(delta=args[0]))
    outputs(host, inputs(kind, length=length))
    assert type(attention).__name__.endswith("SelfAttention")
    assert torch.equal(read["delta"], read["text"])
