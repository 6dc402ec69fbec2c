"""HF PEFT in both directions: it reads our folders with equal outputs, we read its folders, or both refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2ForTokenClassification,
)

from deltatune import DeltatuneError, Host, parse
from deltatune.store.peft import peft_obstacles
from deltatune.store.peft.peft_folder import READS, WRITES, save
from support import models
from support.command_line import QUICK, ran, review_folder

TASKS = {"classify": "SEQ_CLS", "lm": None, None: None}


def randomize_(host: Host, name: str, scale: float = 0.1) -> None:
    """Randomize an adapter, as if it were trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in host.trainable(name):
            parameter += scale * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def outputs_of(model: nn.Module, kind: str, head: str | None, padding: str) -> torch.Tensor:
    """The outputs at real tokens, as many from the end as a row has; all outputs of a classifier or a decoder."""
    batch = models.inputs(kind, head, padding=padding)
    output = model(**batch)
    values = output["logits"] if "logits" in output else output["last_hidden_state"]
    if values.dim() == 2 or "decoder_input_ids" in batch:
        return values
    mask = batch["attention_mask"].bool()
    return values[:, -mask.shape[1] :][mask]  # without the outputs at virtual tokens


def opened(kind: str, head: str | None, folder) -> nn.Module:
    """Open our folder with PEFT."""
    return peft.PeftModel.from_pretrained(models.tiny(kind, head), str(folder)).eval()


LORA = [
    ("bert", "LoRA(r=4, sites=('*.attn.{q,v}', 'pooler'))", "classify"),
    ("gpt2", "LoRA(r=4)", "lm"),
    ("gpt2", "LoRA(r=4, sites='*.attn.qkv')", "lm"),
    ("llama", "LoRA(r=4, sites=('*.attn.*', '*.ffn.*'), ranks=(('*.ffn.*', 2), ('layers.0.attn.k', 6)))", "lm"),
    ("gpt2", "LoRA(r=4, sites=('*.attn.{q,v}', '*.ffn.in'), ranks=(('*.attn.q', 2),))", "lm"),
    ("llama", "LoRA(r=4, sites=('embed', '*.attn.q'))", "lm"),
    ("llama", "LoRA(r=4, sites=('lm_head', '*.attn.q'))", "lm"),
    ("t5", "LoRA(r=4, sites='*.{attn,cross}.{q,v}')", "lm"),
    ("t5", "LoRA(r=4, sites='encoder.embed')", "lm"),
    ("gpt2", "LoRA(r=4, sites=('embed', 'lm_head'))", "lm"),
    ("bart", "LoRA(r=4, sites=('encoder.embed', '*.cross.k'))", "lm"),
    ("bert", "RsLoRA(r=4)", "classify"),
    ("gpt_neox", "RsLoRA(r=4, sites=('*.attn.{q,v}', '*.ffn.in'), ranks=(('*.ffn.*', 2),))", "lm"),
]  # fmt: skip
DORA = [
    ("bert", "DoRA(r=4)", "classify"),
    ("gpt2", "DoRA(r=4)", "lm"),
    ("llama", "DoRA(r=4, sites=('*.attn.*', '*.ffn.*'), ranks=(('*.ffn.*', 2),))", "lm"),
    ("t5", "DoRA(r=4)", "lm"),
]
PISSA = [
    ("bert", "PiSSA(r=4)", "classify"),
    ("gpt2", "PiSSA(r=4, alpha=6)", "lm"),
    ("llama", "PiSSA(r=4, sites=('*.attn.*', '*.ffn.*'))", "lm"),
    ("t5", "PiSSA(r=4)", "lm"),
]
SCALING = [
    ("bert", "IA3()", "classify"),
    ("bert", "IA3(sites=('*.attn.{k,v}', '*.ffn.act', '*.attn.heads'))", None),
    ("gpt2", "IA3()", "lm"),
    ("gpt2", "IA3(sites=('*.attn.qkv', '*.attn.k', '*.ffn.act'))", "lm"),
    ("llama", "IA3()", "lm"),
    ("t5", "IA3()", "lm"),
]
VERA = [
    ("bert", "VeRA(r=9)", "classify"),
    ("gpt2", "VeRA(r=9, sites=('*.attn.qkv', '*.ffn.{in,out}'))", "lm"),
    ("llama", "VeRA(r=9, sites=('*.attn.*', '*.ffn.*'))", "lm"),
    ("llama", "VeRA(r=9, save_projection=False)", "lm"),
    ("t5", "VeRA(r=9)", "lm"),
]
PROMPTS = [
    ("bert", "Prompt(length=5)", None),
    ("bert", "Prompt(length=5)", "classify"),
    ("gpt2", "Prompt(length=5)", "lm"),
    ("llama", "Prompt(length=5)", "lm"),
    ("t5", "Prompt(length=5)", "lm"),
    ("bart", "Prompt(length=5)", "lm"),
    ("roberta", "Prompt(length=5)", "lm"),
    ("gpt2", "PTuning(length=5)", "lm"),
    ("bert", "PTuning(length=5, encoder='mlp')", "classify"),
    ("t5", "PTuning(length=5)", "lm"),
    ("gpt_neox", "Prompt(length=5)", "lm"),
]
PREFIXES = [
    ("bert", "Prefix(length=5)", None),
    ("bert", "Prefix(length=5, mlp=7)", "classify"),
    ("gpt2", "Prefix(length=5)", "lm"),
    ("llama", "Prefix(length=5)", "lm"),
    ("llama", "Prefix(length=5)", "classify"),
    ("gpt2", "Prefix(length=5)", None),
    ("roberta", "Prefix(length=5)", None),
    ("gpt_neox", "Prefix(length=5)", "lm"),
]


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("kind", "method", "head"), [*LORA, *DORA, *PISSA, *SCALING, *VERA, *PROMPTS, *PREFIXES])
def test_peft_reads_our_folder(kind, method, head, tmp_path):
    host = Host(models.tiny(kind, head))
    adapter = host.attach("a", parse(method))
    randomize_(host, "a")
    # PEFT puts a prompt in front of the padding of a row, so that padding at the left changes its outputs
    both = kind not in models.ENCODER_DECODERS and not method.startswith(("Prompt", "PTuning"))
    paddings = ["right", "left"] if both else ["right"]
    mine = [outputs_of(host.model, kind, head, padding) for padding in paddings]
    host.save("a", tmp_path / "a")
    assert peft_obstacles(adapter.method, host) == []
    theirs = opened(kind, head, tmp_path / "a")
    for found, padding in zip(mine, paddings, strict=True):
        torch.testing.assert_close(outputs_of(theirs, kind, head, padding), found, rtol=1e-4, atol=1e-5)
    host.use(None)
    assert (outputs_of(host.model, kind, head, "right") - mine[0]).abs().max() > 1e-3


def saved(kind: str, head: str | None, config: peft.PeftConfig, folder) -> nn.Module:
    """Save a PEFT model with random values in every adapter tensor, and return it."""
    theirs = peft.get_peft_model(models.tiny(kind, head), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(str(folder))
    return theirs


LORA_CONFIGS = [
    ("bert", "classify", {"target_modules": ["query", "value"]}, "LoRA"),
    ("bert", None, {"target_modules": "all-linear"}, "LoRA"),
    ("gpt2", "lm", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}, "LoRA"),
    ("llama", "lm", {"target_modules": "all-linear", "use_rslora": True}, "RsLoRA"),
    ("llama", "lm", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}, "LoRA"),
    (
        "llama",
        "lm",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 5},
        },
        "LoRA",
    ),
    ("gpt_neox", "lm", {"target_modules": ["query_key_value"]}, "LoRA"),
    ("llama", "lm", {"target_modules": ["q_proj", "embed_tokens"]}, "LoRA"),
    ("t5", "lm", {"target_modules": ["q", "v", "wo"], "task_type": "SEQ_2_SEQ_LM"}, "LoRA"),
    ("opt", "lm", {"target_modules": ["q_proj", "lm_head"]}, "LoRA"),  # a tied head
    ("bert", "classify", {"target_modules": ["query", "value"], "use_dora": True}, "DoRA"),
    ("gpt2", "lm", {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}, "DoRA"),
    (
        "llama",
        "lm",
        {
            "target_modules": ["q_proj", "down_proj"],
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"down_proj": 7},
        },
        "DoRA",
    ),
]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("kind", "head", "options", "name"), LORA_CONFIGS)
def test_a_peft_lora_is_read(kind, head, options, name, tmp_path):
    options = {"task_type": TASKS[head], **options}
    config = peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, lora_dropout=0.1, **options)
    theirs = saved(kind, head, config, tmp_path / "a")
    host = Host(models.tiny(kind, head))
    adapter = host.load(tmp_path / "a")
    torch.testing.assert_close(
        outputs_of(host.model, kind, head, "right"), outputs_of(theirs, kind, head, "right"), rtol=1e-4, atol=1e-5
    )
    assert type(adapter.method).__name__ == name
    assert adapter.method.dropout == 0.1
    assert adapter.extra["origin"]["peft_type"] == "LORA"


@pytest.mark.parametrize(
    ("kind", "head", "config"),
    [
        ("bert", "classify", peft.IA3Config(task_type="SEQ_CLS", init_ia3_weights=False)),
        ("bert", None, peft.IA3Config()),
        ("gpt2", "lm", peft.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True)),
        ("llama", "lm", peft.IA3Config(task_type="CAUSAL_LM")),
        ("t5", "lm", peft.IA3Config(task_type="SEQ_2_SEQ_LM")),
        ("bert", "classify", peft.VeraConfig(task_type="SEQ_CLS", r=9, target_modules=["query", "value", "dense"])),
        ("gpt2", "lm", peft.VeraConfig(r=9, target_modules=["c_attn"], fan_in_fan_out=True)),
        ("llama", "lm", peft.VeraConfig(r=9, target_modules="all-linear")),
        ("t5", "lm", peft.VeraConfig(task_type="SEQ_2_SEQ_LM", r=9, target_modules=["q", "v", "wi"])),
        ("llama", "lm", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
        ("bert", "classify", peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)),
        ("t5", "lm", peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)),
        ("gpt2", "lm", peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
        (
            "llama",
            "lm",
            peft.PromptEncoderConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=5,
                encoder_reparameterization_type="LSTM",
                encoder_hidden_size=9,
            ),
        ),
        ("t5", "lm", peft.PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)),
        ("bert", "classify", peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)),
        ("bert", None, peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5)),
        ("gpt2", "lm", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
        (
            "llama",
            "lm",
            peft.PrefixTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7
            ),
        ),
    ],
)  # fmt: skip
def test_other_peft_types_are_read(kind, head, config, tmp_path):
    theirs = saved(kind, head, config, tmp_path / "a")
    host = Host(models.tiny(kind, head))
    host.load(tmp_path / "a")
    torch.testing.assert_close(
        outputs_of(host.model, kind, head, "right"), outputs_of(theirs, kind, head, "right"), rtol=1e-4, atol=1e-5
    )
    host.use(None)
    bare = outputs_of(host.model, kind, head, "right")
    assert (bare - outputs_of(theirs, kind, head, "right")).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A and vera_B")
def test_vera_matrices_are_generated_from_their_key(tmp_path):
    config = peft.VeraConfig(r=9, target_modules=["q_proj", "v_proj"], save_projection=False, projection_prng_key=7)
    theirs = saved("llama", "lm", config, tmp_path / "a")
    host = Host(models.tiny("llama", "lm"))
    host.load(tmp_path / "a")
    torch.testing.assert_close(
        outputs_of(host.model, "llama", "lm", "right"), outputs_of(theirs, "llama", "lm", "right"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "head", "method", "words"),
    [
        ("bert", None, "LoRA() + Prefix()", "several methods at once"),
        ("bert", None, "Bottleneck()", "PEFT has no Bottleneck; it has: "),
        ("bert", None, "Prefix(shift_positions=False)", "PEFT shifts the positions"),
        ("bert", None, "Prefix(sites='layers.1.attn.kv')", "PEFT prefixes every attention"),
        ("t5", "lm", "Prefix()", "reach only the decoder's self attention"),
        ("t5", "lm", "Prefix(sites='decoder.*.attn.kv')", "reach only the decoder's self attention"),
        ("roberta", "classify", "Prefix()", "bypass the head"),
        ("distilbert", "classify", "Prefix()", "bypass the head"),
        ("distilbert", None, "Prefix()", "takes no past_key_values"),
        ("roberta", "lm", "Prefix()", "takes no past_key_values"),
        ("t5", "classify", "Prompt()", "does not take"),
        ("llama", "classify", "Prompt()", "from padding"),
        ("gpt2", None, "VeRA(r=9, sites='layers.1.attn.q')", "use sites='*.attn.qkv'"),
        ("gpt2", None, "DoRA(r=3, sites='layers.1.attn.{q,qkv}')", "which DoRA also changes as a whole"),
        ("bert", None, "IA3(sites=('*.ffn.act', 'layers.1.ffn.out'))", "at its input and at its output"),
        ("gpt2", "classify", "Prompt()", "from padding"),
    ],
)
def test_obstacles_are_known_before_training(kind, head, method, words, tmp_path):
    host = Host(models.tiny(kind, head))
    wanted = parse(method)
    (reason,) = peft_obstacles(wanted, host)
    assert words in reason
    host.attach("a", wanted)
    with pytest.raises(DeltatuneError, match="cannot be exported for PEFT"):
        save(host, "a", tmp_path / "theirs", {})
    host.save("a", tmp_path / "a")
    assert not (tmp_path / "a/adapter_config.json").exists()


def test_a_folder_with_peft_files_only(tmp_path):
    host = Host(models.tiny("bert"))
    host.attach("a", parse("LoRA(r=4)"))
    randomize_(host, "a")
    save(host, "a", tmp_path / "a", {})
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    again = Host(models.tiny("bert"))
    again.load(tmp_path / "a")
    assert torch.equal(outputs_of(again.model, "bert", None, "right"), outputs_of(host.model, "bert", None, "right"))


@pytest.mark.parametrize(
    ("kind", "head", "config", "words"),
    [
        ("t5", "lm", peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5), "half of the layers"),
        (
            "llama",
            "classify",
            peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5),
            "from padding",
        ),
        ("bert", None, peft.LoraConfig(target_modules=["query"], init_lora_weights="pissa"), "base's weights"),
        ("bert", None, peft.LoraConfig(target_modules=["query"], bias="lora_only"), "biases"),
        ("bert", None, peft.HRAConfig(target_modules=["query"]), "its type is HRA; supported types: LORA"),
        (
            "bert",
            None,
            peft.LoraConfig(target_modules=["query"], modules_to_save=["pooler.dense"]),
            "pooler.dense.weight is a trained copy",
        ),
        ("bert", None, peft.LoraConfig(target_modules=["position_embeddings"]), "not a linear site"),
    ],
)
def test_unsupported_folders_are_not_read(kind, head, config, words, tmp_path):
    saved(kind, head, config, tmp_path / "a")
    host = Host(models.tiny(kind, head))
    with pytest.raises(DeltatuneError, match=words):
        host.load(tmp_path / "a")
    assert host.adapters == {}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pissa_that_peft_converted_is_a_lora_here(tmp_path):
    """PEFT's own conversion: [A; A0], [B, -B0] for the original base, of rank 2r and alpha 2·alpha."""
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(models.tiny("llama", "lm"), config).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter += 0.05
    expected = outputs_of(theirs, "llama", "lm", "right")
    theirs.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    host = Host(models.tiny("llama", "lm"))
    adapter = host.load(tmp_path / "a")
    assert (adapter.method.r, adapter.method.alpha) == (6, 12)
    torch.testing.assert_close(outputs_of(host.model, "llama", "lm", "right"), expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_of_another_shape_is_not_read(tmp_path):
    saved("llama", "lm", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), tmp_path / "a")
    with pytest.raises(DeltatuneError, match=r"has shape \(5, 64\), \(5, 128\) would fit"):
        Host(models.tiny("gpt2", "lm")).load(tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_virtual_tokens": 4}))
    with pytest.raises(DeltatuneError, match=r"\(4, 64\) would fit"):
        Host(models.tiny("llama", "lm")).load(tmp_path / "a")


@pytest.mark.parametrize(
    ("maker", "kind", "method"),
    [
        (BertForTokenClassification, "bert", "LoRA(r=4)"),
        (BertForTokenClassification, "bert", "Prompt(length=5)"),
        (GPT2ForTokenClassification, "gpt2", "Prefix(length=5)"),
        (BertForQuestionAnswering, "bert", "IA3()"),
    ],
)
def test_heads_of_other_tasks_are_included(maker, kind, method, tmp_path):
    sizes = {"vocab_size": models.VOCABULARY, "num_labels": 2, "pad_token_id": 0, **models.CONFIGS[kind]}
    start = maker(AutoConfig.for_model(kind, **sizes)).eval()
    hosts = [Host(copy.deepcopy(start)) for _ in range(2)]
    hosts[0].attach("a", parse(method))
    randomize_(hosts[0], "a")
    save(hosts[0], "a", tmp_path / "a", {})
    hosts[1].load(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(start), str(tmp_path / "a")).eval()
    batch = models.inputs(kind, padding="none")
    with torch.no_grad():
        mine, again, there, bare = (model(**batch)[0] for model in (hosts[0].model, hosts[1].model, theirs, start))
    last = batch["input_ids"].shape[1]
    torch.testing.assert_close(there, mine, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, mine)
    assert (mine[:, -last:] - bare).abs().max() > 1e-3


def test_training_for_peft_is_refused_before_it_begins(tiny_folder, tmp_path):
    out = tmp_path / "out"
    data = review_folder(tmp_path / "data")
    options = ("--model", tiny_folder, "--data", data, "--out", out, "--export-for")
    done = ran("train", *options, "peft", "--method", "LoRA(r=2) + Prefix(length=3)", *QUICK)
    assert done.code == 2
    assert "cannot be exported for peft; nothing was trained" in done.err
    assert "several methods at once" in done.err
    assert not out.exists()
    done = ran("train", *options, "pefd", *QUICK)
    assert done.code == 2
    assert "did you mean 'peft'" in done.err
    done = ran("train", *options, "peft", "--method", "LoRA(r=2)", "--lr", "1e-2", *QUICK)
    assert done.code == 0, done.err
    assert "the head of the task is not exported" in " ".join(done.out.split())
    bases = [AutoModel.from_pretrained(tiny_folder, add_pooling_layer=False).eval() for _ in range(2)]
    host = Host(bases[0])
    host.load(out / "adapter", name="a")
    theirs = peft.PeftModel.from_pretrained(bases[1], str(out / "adapter")).eval()
    torch.testing.assert_close(
        outputs_of(theirs, "bert", None, "right"), outputs_of(host.model, "bert", None, "right"), rtol=1e-4, atol=1e-5
    )


def test_the_page_has_every_type():
    page = (Path(__file__).parents[2] / "docs/interchange.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [method for method in WRITES if not any(row.startswith(f"| `{method}` |") for row in rows)] == []
    assert [kind for kind in READS if not any(kind in row.split("|")[2] for row in rows)] == []
