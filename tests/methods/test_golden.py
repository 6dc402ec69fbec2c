"""Whole models with our methods, against numbers that implementations of others computed: see golden/README.md."""

import pytest
import torch

from deltatune import IA3, Adapter, Bottleneck, DoRA, Host, LoRA, Method, PiSSA, Prefix, Prompt, RsLoRA, VeRA
from deltatune.methods.adapters.adapterdrop import AdapterDrop
from deltatune.methods.adapters.compacter import Compacter
from deltatune.methods.adapters.fusion import AdapterFusion
from deltatune.methods.combinations.unipelt import UniPELT
from deltatune.methods.representations.reft import ReFT
from support.golden_cases import FOLDER, MODELS, PROVENANCE, Tensors, base, close, run, tensors

# ---- the folder


def test_every_case_is_there_as_described():
    assert {file.stem for file in FOLDER.glob("*.safetensors")} == set(PROVENANCE)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_500_000
    for case, facts in PROVENANCE.items():
        assert {name: list(t.shape) for name, t in tensors(case).items()} == facts["tensors"], case
        assert facts["source"], case
        assert facts["used"], case


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_the_bases_are_the_same_here(kind):
    real = tensors(kind, "input.")["mask"].bool() if kind != "t5" else slice(None)
    close(run(base(kind), kind)[real], tensors(kind)["output"][real])


# ---- whole models

FFN = Bottleneck(size=4, form="houlsby", sites="*.ffn")
PARALLEL = Bottleneck(size=4, form="parallel", scale=4.0)
PFEIFFER = Bottleneck(size=4, form="pfeiffer")
REPARAMETRISED = Prefix(length=3, mlp=6, shift_positions=False)
UNSHIFTED = Prefix(length=3, shift_positions=False)

WHOLE: list[tuple[str, Method]] = [
    ("bert_lora", LoRA(r=4, alpha=6)),
    ("bert_peft_lora", LoRA(r=4, alpha=6, sites=("*.attn.{q,v}", "*.ffn.in"))),
    ("bert_peft_rslora", RsLoRA(r=4, alpha=6)),
    ("bert_peft_dora", DoRA(r=4, alpha=6, sites=("*.attn.{q,v}", "*.ffn.out"))),
    ("bert_peft_pissa", PiSSA(r=4, alpha=6)),
    ("bert_peft_vera", VeRA(r=4, sites=("*.attn.q", "*.ffn.out"))),
    ("bert_peft_ia3", IA3()),
    ("bert_ia3", IA3(sites="*.attn.{k,v}")),
    # The library multiplies before the FFN's activation, the paper after it.
    ("bert_ia3_ffn", IA3(sites=("*.attn.{k,v}", "*.ffn.in"))),
    ("bert_houlsby", Bottleneck(size=4, form="houlsby", activation="swish")),
    ("bert_pfeiffer", PFEIFFER),
    ("bert_parallel", PARALLEL),
    ("bert_adapterdrop", AdapterDrop(size=4, drop=1)),
    ("bert_adapterdrop", Bottleneck(size=4, form="pfeiffer", sites="layers.1.ffn")),
    ("bert_compacter", Compacter(size=8, activation="gelu", norms=False)),
    # The library's Compacter++ reads what Pfeiffer's adapter reads, the paper's own code the FFN's output.
    ("bert_compacter_plusplus", Compacter(size=8, form="pfeiffer", activation="gelu", norms=False)),
    ("gpt2_houlsby_ffn", FFN),
    # In blocks that normalise first nothing is normalised after the FFN, and `pfeiffer` reads its output.
    ("gpt2_houlsby_ffn", PFEIFFER),
    ("t5_houlsby_ffn", FFN),
    ("bert_prefix", UNSHIFTED),
    ("bert_prefix_mlp", REPARAMETRISED),
    ("bert_peft_prefix", Prefix(length=3)),
    ("gpt2_prefix", UNSHIFTED),
    ("gpt2_peft_prefix", Prefix(length=3)),
    ("t5_prefix", Prefix(length=3)),
    ("bert_peft_prompt", Prompt(length=3)),
    ("gpt2_peft_prompt", Prompt(length=3)),
    ("bert_mam", REPARAMETRISED + PARALLEL),
    ("bert_loreft", ReFT(r=2, first=2, last=1, tied=False)),
    # Under a gate the library's LoRA has no factor: α/r is 1.
    ("bert_unipelt", UniPELT(REPARAMETRISED + LoRA(r=4, alpha=4) + PFEIFFER)),
]


def by_place(adapter: Adapter) -> Tensors:
    """An adapter's parameters as the cases name them: `layers.0.attn.q.A`, and `trunk.` for a prefix's shared part."""
    found: Tensors = {}
    for name, parameter in adapter.named_parameters():
        owner, path = name.removeprefix("deltas.").replace("/", ".").split(".", 1)
        place = f"trunk.{path.split('.', 1)[1]}" if owner == "shared" else path.replace(".inner.", ".")
        assert place not in found
        found[place] = parameter
    return found


def check(case: str, host: Host, given: Tensors, gradients: Tensors) -> None:
    """The attached adapter "a", filled with the given tensors, has the case's output and gradients."""
    adapter = host.adapters["a"]
    mine = by_place(adapter)
    assert given.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(given[name].view_as(parameter) if ".gate." in name else given[name])
        for name, tensor in tensors(case, "shared.").items():
            next(iter(adapter.shared.values())).get_buffer(name).copy_(tensor)

    out, expected = run(host.model, case), tensors(case)
    weight = expected["cotangent"]
    there = weight != 0  # not the padding of decoders
    close(out[there], expected["output"][there])

    (out * weight).sum().backward()
    loose = 20.0 if "pissa" in case else 1.0  # its frozen factors are singular vectors, which differ by processor
    for name, gradient in gradients.items():
        close(mine[name].grad.view_as(gradient), gradient, name, loose)

    host.use(None)
    bare = run(host.model, case)
    assert bare.shape != out.shape or (bare[there] - expected["output"][there]).abs().max() > 0.05


@pytest.mark.parametrize(("case", "method"), WHOLE, ids=[f"{case}-{method!r}" for case, method in WHOLE])
def test_whole_models(case, method):
    host = Host(base(PROVENANCE[case]["base"]))
    host.attach("a", method)
    check(case, host, tensors(case, "adapter."), tensors(case, "grad."))


def test_fusion():
    host = Host(base("bert"))
    host.attach("a", AdapterFusion(members=(PFEIFFER, PFEIFFER)))
    names = {"fusion.query.weight": "Q", "fusion.query.bias": "b", "fusion.key.weight": "K", "fusion.value.weight": "V"}

    def ours(given: Tensors) -> Tensors:
        found = {}
        for name, tensor in given.items():
            if name.endswith("fusion.key.bias"):
                continue  # the same for all members, so that a softmax does not see it
            if name[0] in "ab":  # the members
                place, leaf = name[2:].rsplit(".", 1)
                found[f"{place}.members.{'ab'.index(name[0])}.{leaf}"] = tensor
            else:
                place, leaf = name.split(".fusion.")
                found[f"{place}.{names[f'fusion.{leaf}']}"] = tensor
        return found

    gradients = tensors("bert_fusion", "grad.")
    assert all(t.abs().max() < 1e-4 for name, t in gradients.items() if name.endswith("key.bias"))
    check("bert_fusion", host, ours(tensors("bert_fusion", "adapter.")), ours(gradients))


def test_pissa_starts_from_the_same_factors():
    mine = by_place(Host(base("bert")).attach("a", PiSSA(r=4, alpha=6)))
    theirs = tensors("bert_peft_pissa", "start.")
    assert mine.keys() == theirs.keys()
    for name in (name for name in mine if name.endswith(".A")):
        sign = (mine[name] * theirs[name]).sum(1).sign()  # a pair of singular vectors may be turned around
        close(sign[:, None] * mine[name], theirs[name], name)
        name = f"{name[:-1]}B"
        close(mine[name] * sign, theirs[name], name)


@torch.no_grad()
def test_dropped_layers():
    host = Host(base("bert"))
    mine, given = by_place(host.attach("a", PFEIFFER)), tensors("bert_adapterdrop", "adapter.")
    for name, parameter in mine.items():
        parameter.copy_(given.get(name, torch.randn_like(parameter)))
    host.drop_("a", 1)
    close(run(host.model, "bert_adapterdrop"), tensors("bert_adapterdrop")["output"])
