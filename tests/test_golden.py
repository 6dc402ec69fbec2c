"""Whole models with our methods, against numbers that implementations of others computed: see golden/README.md."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)

from deltatune import IA3, Adapter, Bottleneck, DoRA, Host, LoRA, Method, PiSSA, Prefix, Prompt, RsLoRA, VeRA
from deltatune.methods.compacter import Compacter
from deltatune.methods.unipelt import UniPELT
from golden_cases import FOLDER, PROVENANCE, Tensors, close, tensors

MODELS = {
    "bert": (BertModel, BertConfig),
    "gpt2": (GPT2Model, GPT2Config),
    "llama": (LlamaModel, LlamaConfig),
    "t5": (T5Model, T5Config),
}
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def base(kind: str) -> PreTrainedModel:
    """The tiny base of the whole-model cases, in eval mode."""
    cls, config = MODELS[kind]
    (settings,) = PROVENANCE[kind]["settings"].values()
    options = {"add_pooling_layer": False} if kind == "bert" else {}
    model = cls(config(**settings), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a tensor that the case leaves out is all zero
    missing, unexpected = model.load_state_dict(tensors(kind, "base."), strict=False)
    assert not unexpected
    assert all(name in TIED or name in PROVENANCE[kind]["formula"] for name in missing)
    return model.eval()


def run(model: nn.Module, case: str) -> torch.Tensor:
    """Last hidden state (B, T, D) for a case's input."""
    given = tensors(case, "input.")
    more = {"decoder_input_ids": given["decoder_ids"]} if "decoder_ids" in given else {}
    out: torch.Tensor = model(input_ids=given["ids"], attention_mask=given["mask"], **more).last_hidden_state
    return out


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


@pytest.mark.parametrize(("case", "method"), WHOLE, ids=[f"{case}-{method!r}" for case, method in WHOLE])
def test_whole_models(case, method):
    host = Host(base(PROVENANCE[case]["base"]))
    adapter = host.attach("a", method)
    given, mine = tensors(case, "adapter."), by_place(adapter)
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
    for name, gradient in tensors(case, "grad.").items():
        close(mine[name].grad.view_as(gradient), gradient, name)

    if out.shape[1] == run(base(PROVENANCE[case]["base"]), case).shape[1]:
        host.use(None)
        assert (run(host.model, case)[there] - expected["output"][there]).abs().max() > 0.05


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
