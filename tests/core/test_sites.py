"""Sites: found in every family under the same names, right by behaviour, and selected with errors that teach."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    T5EncoderModel,
    T5ForTokenClassification,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune import DeltatuneError, Host, LoRA, Prompt, find_sites, parse
from deltatune.core.delta import Delta
from deltatune.core.method import Method
from deltatune.core.sites.blocks import find_blocks
from deltatune.core.sites.discovery import uneven
from deltatune.core.sites.fused_projections import put, take
from deltatune.core.sites.site import Slice, expand, generic
from deltatune.testing.tiny_configs import DECODERS, FAMILIES
from support import models

SPLIT = {"attn.q", "attn.k", "attn.v", "attn.o", "attn", "ffn", "ffn.in", "ffn.out", "norm.0", "norm.1"}
SPLIT |= {"attn.heads", "ffn.act", "residual"}
KV, FUSED, GATED = {"attn.kv"}, {"attn.qkv"}, {"ffn.gate"}
CROSS = {"cross", "cross.q", "cross.k", "cross.v", "cross.o", "cross.kv", "cross.heads", "norm.2"}

BLOCKS: dict[str, dict[str, set[str]]] = {
    "bert": {"": SPLIT | KV},
    "roberta": {"": SPLIT | KV},
    "distilbert": {"": SPLIT | KV},
    "mpnet": {"": SPLIT},  # its attention does not dispatch through the interface
    "gpt2": {"": SPLIT | KV | FUSED},
    "llama": {"": SPLIT | KV | GATED},
    "mistral": {"": SPLIT | KV | GATED},
    "qwen2": {"": SPLIT | KV | GATED},
    "gpt_neox": {"": SPLIT | KV | FUSED},
    "opt": {"": SPLIT | KV},
    "t5": {"encoder.": SPLIT | KV, "decoder.": SPLIT | KV | CROSS},
    "bart": {"encoder.": SPLIT | KV, "decoder.": SPLIT | KV | CROSS},
}
"""Sites of each block by family and stack."""

OUTSIDE: dict[str, set[str]] = {
    "bert": {"embed", "embed.norm", "pooler"},
    "roberta": {"embed", "embed.norm", "pooler"},
    "distilbert": {"embed", "embed.norm"},
    "mpnet": {"embed", "embed.norm", "pooler"},
    "t5": {"encoder.embed", "decoder.embed", "encoder.norm", "decoder.norm"},
    "bart": {"encoder.embed", "decoder.embed", "encoder.embed.norm", "decoder.embed.norm"},
}
POST_NORM = {"bert", "roberta", "distilbert", "mpnet", "bart"}

NO_SEAM = {"attn.kv", "cross.kv"}
PARTS = {"attn.q", "attn.k", "attn.v"}
WHOLE_FFN = {"ffn.in", "ffn.out", "ffn.act"}
LACKS: dict[str, set[str]] = {
    **dict.fromkeys(("deberta", "deberta-v2", "rembert", "megatron-bert", "roformer", "longformer"), NO_SEAM),
    **dict.fromkeys(("gpt_neo", "gptj", "bloom", "falcon-7b", "falcon-40b", "falcon-rw", "mpt"), NO_SEAM),
    **dict.fromkeys(("led", "prophetnet", "longt5"), NO_SEAM),
    "codegen": NO_SEAM | PARTS,
    "fnet": NO_SEAM | PARTS | {"attn", "attn.o", "attn.heads"},  # Fourier transforms in place of attention
    "mobilebert": {"residual"},  # wider than its sublayers
    "olmo": {"norm.0", "norm.1"},  # norms without weights
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), WHOLE_FFN),
    "deepseek_v3": NO_SEAM | PARTS | {"attn"},  # queries, keys and values through narrow maps of their own
}
"""What blocks of further families do not have of what BERT's have."""
UNEVEN = {
    "lfm2": {"attn", "attn.q", "attn.k", "attn.v", "attn.o", "attn.kv", "attn.heads"},
    "switch_transformers": WHOLE_FFN,
    "deepseek_v3": WHOLE_FFN | {"ffn.gate"},
}
"""What only some of their blocks have."""
NORMED = {"gemma3_text", "qwen3", "qwen3_moe", "olmo2", "lfm2", "persimmon"}
"""Families with a norm behind the projections to q and k."""
SCALED = {"opt", "opt-350m", "esm", "whisper"}
UNNAMED = {
    "deberta": ("encoder.layer.*.attention.self.pos_proj", "encoder.layer.*.attention.self.pos_q_proj"),
    "longformer": tuple(f"encoder.layer.*.attention.self.{part}_global" for part in ("key", "query", "value")),
    "led": tuple(
        f"encoder.layers.*.self_attn.longformer_self_attn.{part}_global" for part in ("key", "query", "value")
    ),
    "lfm2": ("layers.*.conv.in_proj", "layers.*.conv.out_proj"),
    "opt-350m": ("decoder.project_out",),
    "prophetnet": ("decoder.layers.*.self_attn.relative_pos_embeddings",),
    "swin": ("encoder.layers.*.downsample.reduction",),
}
"""Linear maps without a role, of some families in full."""


def batch_for(model):
    ids = torch.arange(5, 17).view(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "decoder_input_ids": ids} if model.config.is_encoder_decoder else batch


@pytest.mark.parametrize("kind", FAMILIES)
def test_further_families_have_the_same_names(kind):
    """Each block has all of BERT's names, or what it lacks is written above; nothing is missing in some blocks only."""
    sites = find_sites(models.tiny(kind))
    stacks = {site.name.partition("layers.")[0] for site in sites.values() if site.layer is not None}
    assert stacks == ({"encoder.", "decoder."} if kind in models.ENCODER_DECODERS else {""})
    for stack in stacks:
        wanted = (SPLIT | KV | (CROSS - {"norm.2"} if stack == "decoder." else set())) - LACKS.get(kind, set())
        for name in wanted - UNEVEN.get(kind, set()):
            found = sorted(site for site in sites if generic(site) == f"{stack}layers.*.{generic(name)}")
            layers = {site.split("layers.")[1].split(".")[0] for site in found}
            assert len(layers) == max(sites[site].depth for site in found), f"{stack}layers.*.{name}: {found}"
    have = {generic(name).rpartition("layers.*.")[2] for name in sites}
    assert not have & {name for name in LACKS.get(kind, set()) if "norm" not in name} - UNEVEN.get(kind, set())
    assert {name.rpartition("layers.*.")[2] for name in uneven(sites)} == UNEVEN.get(kind, set())
    if kind in UNNAMED:
        assert sites.unnamed == UNNAMED[kind]
    elif kind not in ("mobilebert", "deepseek_v3", "qwen2_moe", "switch_transformers", "esm", "siglip_vision_model"):
        assert sites.unnamed == ()


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_family_has_the_same_names(kind):
    sites = find_sites(models.tiny(kind))
    wanted = set(OUTSIDE.get(kind, {"embed", "norm"}))
    for stack, names in BLOCKS[kind].items():
        wanted |= {f"{stack}layers.{layer}.{name}" for layer in range(2) for name in names}
    assert set(sites) == wanted
    assert sites.unnamed == ()


@pytest.mark.parametrize("kind", BLOCKS)
def test_widths_and_counts_are_the_modules_own(kind):
    model = models.tiny(kind)
    sites = find_sites(model)
    counted = set()
    for site in sites.values():
        module = model.get_submodule(site.module)
        if site.kind == "linear" and site.slice is None:
            shape = module.weight.T.shape if site.transposed else module.weight.shape
            assert (site.width_out, site.width_in) == tuple(shape)
            assert site.bias == (module.bias is not None)
        if site.kind in ("linear", "norm", "embed") and site.slice is None:
            assert site.params == sum(p.numel() for p in module.parameters())
            counted |= {id(p) for p in module.parameters()}
        if site.name.endswith((".ffn.in", ".ffn.gate")):
            assert (site.width_in, site.width_out) == (32, 48)
        if site.name.endswith(".kv"):
            assert site.width_out == (16 if kind in ("llama", "mistral", "qwen2") else 32)
    assert sites.base_params == sum(p.numel() for p in model.parameters())
    forgotten = {n for n, p in model.named_parameters() if id(p) not in counted}
    assert all("position" in name or "type" in name or "relative" in name or "wpe" in name for name in forgotten)


@pytest.mark.parametrize("kind", [*BLOCKS, *sorted(set(FAMILIES) - {"mobilebert"})])
def test_a_post_norm_is_what_leaves_the_block(kind):
    """Where a sublayer names a LayerNorm, the block's output is that norm's output; elsewhere it is no norm's."""
    model = models.tiny(kind)
    sites, blocks, outputs = find_sites(model), find_blocks(model), {}

    def remember(module, args, output):
        outputs[module] = output[0] if isinstance(output, tuple) else output

    for module in model.modules():
        module.register_forward_hook(remember)
    with torch.no_grad():
        model(**models.inputs(kind))
    for block in blocks:
        out = outputs[model.get_submodule(block.path)]
        assert sites[f"{block.name}.residual"].width_out == out.shape[-1]
        inside = [site for site in sites.values() if site.name.startswith(block.name + ".norm.")]
        last = [s.module for s in inside if torch.equal(outputs[model.get_submodule(s.module)], out)]
        norm = sites[f"{block.name}.ffn"].norm
        assert last == ([] if norm is None else [norm])
        assert kind not in BLOCKS or (norm is not None) == (kind in POST_NORM)


class One(Delta):
    reads = "output"

    def forward(self, x, h):
        return torch.ones_like(h)


@dataclass(frozen=True)
class _AddOne(Method):
    sites: str = "*"

    def build(self, site):
        return One()


@pytest.fixture
def attention_inputs():
    """A list that collects (q, k, v) of every attention of a model switched to `spy`."""
    seen = []

    def spy(module, q, k, v, mask, **options):
        seen.append((q.clone(), k.clone(), v.clone()))
        options.pop("softcap", None)  # Gemma 2
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **options)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield seen
    del ALL_ATTENTION_FUNCTIONS._global_mapping["spy"], ALL_MASK_ATTENTION_FUNCTIONS._global_mapping["spy"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize(
    "kind", sorted({*BLOCKS, *FAMILIES} - {"mpnet"} - {k for k, v in LACKS.items() if v & NO_SEAM})
)
def test_a_part_is_what_the_attention_sees(kind, part, attention_inputs):
    """Adding 1 at `attn.q` moves every head's q of that layer, and neither k nor v: also through a fused projection."""
    model = models.tiny(kind)
    model.set_attn_implementation("spy")
    stack = "encoder." if model.config.is_encoder_decoder else ""
    host, batch = Host(model), models.inputs(kind, padding="none")
    layer = 1 if kind == "lfm2" else 0
    with torch.no_grad():
        model(**batch)
        before = attention_inputs[0]
        attention_inputs.clear()
        host.attach("a", _AddOne(f"{stack}layers.{layer}.attn.{part}"))
        model(**batch)
    moved = {name: new - old for name, new, old in zip("qkv", attention_inputs[0], before, strict=True)}
    for name in {"q", "k", "v"} - {part}:
        assert not moved[name].any(), f"{name} moved"
    lengths = moved[part].norm(dim=-1)
    if part != "v" and kind in NORMED:
        assert (lengths > 0).all()
        return
    # Rotations keep the length of a head's vector, and OPT and others multiply q by 1/sqrt(K) beforehand.
    wanted = 1.0 if kind in SCALED and part == "q" else moved[part].shape[-1] ** 0.5
    assert torch.allclose(lengths, torch.full_like(lengths, wanted), atol=1e-4)


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["bloom", "falcon-7b", "falcon-40b", "falcon-rw", "gpt_neo", "gptj", "mpt"])
def test_a_part_is_what_the_cache_keeps(kind, part):
    """Where attention is out of reach: 1 added at `attn.v` moves all cached values by 1, `attn.k` the keys alone."""
    model = models.tiny(kind)
    host, batch = Host(model), models.inputs(kind, padding="none")

    @torch.no_grad()
    def run():
        found = model(**batch, use_cache=True)
        layer = found.past_key_values.layers[0]
        return found[0], layer.keys.clone(), layer.values.clone()

    before = run()
    host.attach("a", _AddOne(f"layers.0.attn.{part}"))
    out, keys, values = (new - old for new, old in zip(run(), before, strict=True))
    assert torch.allclose(values, torch.full_like(values, float(part == "v")), atol=1e-5)
    assert (keys.norm(dim=-1) > 0).all() if part == "k" else not keys.any()
    assert out.any() or (part == "k" and kind in ("bloom", "mpt", "falcon-rw", "gpt_neo"))  # softmax takes a shift away


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["deberta", "deberta-v2"])
def test_a_part_is_what_weighs_the_values(kind, part):
    """Weights sum to 1, so that 1 added to all values comes out as 1, and 1 added to all keys not at all."""
    model = models.tiny(kind, relative_attention=False)
    host, batch, seen = Host(model), models.inputs(kind, padding="none"), []
    site = host.sites["layers.0.attn.o"]
    model.get_submodule(site.module).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        model(**batch)
        host.attach("a", _AddOne(f"layers.0.attn.{part}"))
        model(**batch)
    moved = seen[1] - seen[0]
    if part == "q":
        assert (moved.abs() > 1e-4).any()
    else:
        assert torch.allclose(moved, torch.full_like(moved, float(part == "v")), atol=1e-5)


def test_an_unknown_order_of_a_fused_projection_gets_no_parts():
    """CodeGen stores q, v, k in four runs: adapting it as if it were q, k, v would be silently wrong."""
    sizes = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    sites = find_sites(AutoModel.from_config(AutoConfig.for_model("codegen", vocab_size=50, **sizes)))
    assert "layers.0.attn.qkv" in sites
    assert "layers.0.attn.q" not in sites


@pytest.mark.parametrize("cut", [None, Slice(2, 3), Slice(1, 2, groups=2)])
def test_put_replaces_what_take_takes(cut):
    h = torch.arange(16.0).view(2, 8)
    assert torch.equal(put(h, cut, take(h, cut)), h)
    changed = put(h, cut, take(h, cut) + 100)
    assert int((changed != h).sum()) == take(h, cut).numel()
    assert torch.equal(take(changed, cut), take(h, cut) + 100)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.attn.{q,v}", {"layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q", "layers.1.attn.v"}),
        ("layers.1.attn.?", {f"layers.1.attn.{part}" for part in "qkvo"}),
        ("*.ffn", {"layers.0.ffn", "layers.1.ffn"}),
        ("layers.0.*.o", {"layers.0.attn.o"}),
        ("embed", {"embed"}),
        (("*.0.ffn.in", "pooler"), {"layers.0.ffn.in", "pooler"}),
    ],
)
def test_globs_match_whole_components(pattern, wanted):
    assert {site.name for site in find_sites(models.tiny("bert")).match(pattern)} == wanted


def test_alternatives_expand_and_numbers_become_stars():
    assert expand("*.{attn,cross}.{q,v}") == ["*.attn.q", "*.attn.v", "*.cross.q", "*.cross.v"]
    assert generic("encoder.layers.12.attn.q") == "encoder.layers.*.attn.q"


def test_every_alternative_must_match():
    sites = find_sites(models.tiny("bert"))
    with pytest.raises(DeltatuneError) as error:
        sites.match("*.attn.{q,valu}")
    message = str(error.value)
    for part in ("BertModel", "'*.attn.valu'", "did you mean 'layers.*.attn.v'", "layers.*.ffn.in"):
        assert part in message
    assert "'*.attn.q'" not in message


@pytest.mark.parametrize(
    ("family", "pattern", "names"),
    [
        ("llama", "q_proj", "it is '*.attn.q' here"),
        ("llama", "model.layers.*.self_attn.v_proj", "it is '*.attn.v' here"),
        ("bert", "query", "it is '*.attn.q' here"),
        ("bert", "q_proj", "it is '*.attn.q' here"),  # another family's name
        ("bert", "up_proj", "it is '*.ffn.in' here"),
        ("t5", "EncDecAttention.q", "matches 'EncDecAttention.q'\n"),  # `q` is a site's name
        ("llama", "o_proj", "it is '*.attn.o' here"),
    ],
)
def test_a_modules_name_is_answered_with_the_sites(family, pattern, names):
    with pytest.raises(DeltatuneError) as error:
        find_sites(models.tiny(family)).match(pattern, kinds=("linear",))
    assert names in str(error.value), error.value


@pytest.mark.parametrize("text", ["LoRA(sites=())", "VeRA(sites=())", "Prefix(sites=())", "LoRA(r=2) + IA3(sites=())"])
def test_no_glob_at_all_is_no_choice(text):
    with pytest.raises(DeltatuneError, match=r"sites=\(\) names no site; sites of this model: .*layers"):
        Host(models.tiny("llama")).attach("a", parse(text))


def test_kinds_are_kept_apart():
    sites = find_sites(models.tiny("bert"))
    with pytest.raises(DeltatuneError, match=r"'\*\.ffn'"):
        sites.match("*.ffn", kinds=("linear",))


class OwnBlock(nn.Module):
    """A decoder block with names of its own; `my_v` is in no table."""

    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_proj", "k_proj", "my_v", "o_proj")})


class OwnModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = AutoConfig.for_model("bert", hidden_size=8)
        self.layers = nn.ModuleList(OwnBlock() for _ in range(2))


def test_roles_name_what_no_table_knows():
    sites = find_sites(OwnModel())
    assert sites.unnamed == ("layers.*.attn.my_v",)
    with pytest.raises(DeltatuneError, match=r"roles=\{'leaf': 'attn.q'\}\): layers\.\*\.attn\.my_v"):
        sites.match("*.attn.v")
    sites = find_sites(OwnModel(), roles={"my_v": "attn.v"})
    assert sites["layers.1.attn.v"].module == "layers.1.attn.my_v"
    assert sites.unnamed == ()
    with pytest.raises(DeltatuneError, match="'my_w', but no linear map"):
        find_sites(OwnModel(), roles={"my_w": "attn.v"})


def test_no_blocks_is_an_error_that_lists_what_was_seen():
    with pytest.raises(DeltatuneError, match=r"no transformer blocks found in Sequential; modules seen: .*Linear"):
        find_sites(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", BLOCKS)
def test_task_heads_belong_to_adapters_and_lm_heads_do_not(kind):
    classify = find_sites(models.tiny(kind, "classify"))
    heads = [site for site in classify.values() if site.kind == "head"]
    usual = "classification_head" if kind in models.ENCODER_DECODERS else "score"
    usual = "classifier" if kind in models.ENCODERS else usual
    assert {site.module for site in heads} == {usual} | ({"pre_classifier"} if kind == "distilbert" else set())
    assert not any(path.startswith(tuple(s.module for s in heads)) for path in classify.weights)
    assert not [s for s in find_sites(models.tiny(kind, "lm")).values() if s.kind == "head"]


def test_an_adapter_owns_the_classifier_and_the_base_keeps_its_own():
    model = models.tiny("bert", "classify")
    before = model.classifier.weight.clone()
    adapter = Host(model).attach("a", LoRA(r=2))
    assert adapter.head_count == sum(p.numel() for p in model.classifier.parameters())
    assert not model.classifier.weight.requires_grad
    with torch.no_grad():
        next(p for n, p in adapter.named_parameters() if "head" in n).add_(1.0)
    assert torch.equal(model.classifier.weight, before)


def test_a_stack_of_its_own_embedding_is_where_prompts_go():
    """T5's encoder calls a table of its own, tied to the one that the model hands out."""
    config = models.tiny("t5").config
    for maker in (T5EncoderModel, T5ForTokenClassification):
        model = maker(config).eval()
        host = Host(model)
        assert host.sites["embed"].module.endswith("encoder.embed_tokens")
        batch = {"input_ids": torch.arange(5, 13)[None]}
        with torch.no_grad():
            bare = model(**batch)[0]
            host.attach("a", Prompt(length=3))
            assert model(**batch)[0].shape[1] == bare.shape[1] + 3


@pytest.mark.parametrize("kind", [*BLOCKS, *FAMILIES])
def test_decoders_are_known(kind):
    decoders = {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "opt", *DECODERS}  # CLIP's text is never generated
    assert find_sites(models.tiny(kind)).facts.decoder == (kind in decoders)


def test_bert_for_generation_decodes_only_if_told_to():
    for is_decoder in (True, False):
        made = AutoConfig.for_model("bert-generation", **models.CONFIGS["bert"], is_decoder=is_decoder)
        assert find_sites(AutoModel.from_config(made)).facts.decoder == is_decoder


@pytest.mark.parametrize(
    ("kind", "auto", "heads"),
    [
        ("whisper", AutoModelForAudioClassification, ("projector", "classifier")),
        ("wav2vec2", AutoModelForAudioClassification, ("projector", "classifier")),
        ("vit", AutoModelForImageClassification, ("classifier",)),
        ("swin", AutoModelForImageClassification, ("classifier",)),
        ("t5", AutoModelForTokenClassification, ("classifier",)),
        ("deberta-v2", AutoModelForMaskedLM, ()),
        ("whisper", AutoModelForSpeechSeq2Seq, ()),
    ],
)
def test_heads_of_other_tasks_are_found(kind, auto, heads):
    sites = find_sites(auto.from_config(models.tiny(kind).config))
    assert sites.heads == heads
    assert not any(name.startswith(heads) for name in sites.unnamed if heads)
    one = {site.name.partition("layers.")[0] for site in sites.values() if site.layer is not None}
    assert sites.facts.encoder_decoder == (one == {"encoder.", "decoder."})
