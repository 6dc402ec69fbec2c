"""PEFT's further types in both directions: equal outputs, and training that goes on alike from a folder of theirs."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_peft import opened, outputs_of, randomize_, saved

from deltatune import DeltatuneError, Host, parse
from deltatune.store.peft import peft_obstacles
from support import models
from support.peft_training import losses

pytestmark = [
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),  # PEFT takes the nearest divisor
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),  # PEFT of norms
]
LLAMA = ["q_proj", "v_proj", "down_proj"]

OURS = [
    ("bert", "LoHa(r=3)", "classify"),
    ("llama", "LoHa(r=4, alpha=3, sites=('*.attn.*', '*.ffn.*'), ranks=(('*.ffn.*', 2),))", "lm"),
    ("gpt_neox", "LoHa(r=2, sites=('*.attn.{q,v}', '*.ffn.in'), ranks=(('*.attn.q', 3),))", "lm"),  # slices
    ("t5", "LoHa(r=3, sites='*.{attn,cross}.{q,v}')", "lm"),
    ("bert", "LoKr(r=2)", "classify"),
    ("llama", "LoKr(r=3, alpha=5, sites=('*.attn.*', '*.ffn.*'), ranks=(('*.ffn.*', 2),))", "lm"),
    ("llama", "LoKr(r=2, decompose='both', factor=16, sites='*.ffn.{in,out}')", "lm"),
    ("llama", "LoKr(r=3, decompose='both', factor=12, sites='*.ffn.{in,out}')", "lm"),
    ("bert", "LoKr(r=8, factor=2, init='second')", None),
    ("gpt_neox", "LoKr(r=2, sites='*.attn.qkv')", "lm"),
    ("t5", "LoKr(r=2, factor=4)", "lm"),
    ("bert", "OFT(block=8)", "classify"),
    ("llama", "OFT(block=32, terms=0, sites=('*.attn.*', '*.ffn.*'))", "lm"),  # 48 at ffn.out, which 32 does not divide
    ("t5", "OFT(block=5, blocks='shared', terms=7)", "lm"),
    ("bert", "FourierFT(n=50)", "classify"),
    ("gpt2", "FourierFT(n=600, seed=5, init='normal', sites=('*.attn.{qkv,o}', '*.ffn.in'))", "lm"),
    ("llama", "FourierFT(alpha=10.0)", "lm"),  # 1000 of q's coefficients, and all 512 of v's
    ("bert", "LNTuning()", "classify"),
    ("gpt2", "LNTuning(sites='*.norm.1')", "lm"),
    ("t5", "LNTuning()", "lm"),
    ("bert", "VBLoRA(vectors=9)", "classify"),
    ("gpt2", "VBLoRA(vectors=9, r=2, k=3, length=8, sites=('*.attn.qkv', '*.ffn.{in,out}'))", "lm"),
    ("t5", "VBLoRA(vectors=2, k=5, length=16)", "lm"),
    ("bert", "BOFT()", "classify"),
    ("llama", "BOFT(block=8, sites=('*.attn.*', '*.ffn.*'))", "lm"),
    ("llama", "BOFT(block=4, factors=3, sites=('*.attn.*', '*.ffn.*'))", "lm"),
]
THEIRS = [
    ("bert", "classify", peft.LoHaConfig(r=3, alpha=5, target_modules=["query", "value"], task_type="SEQ_CLS")),
    ("llama", "lm", peft.LoHaConfig(
        r=4, target_modules=LLAMA, rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 5})),
    ("t5", "lm", peft.LoHaConfig(r=3, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")),
    ("bert", "classify", peft.LoKrConfig(r=2, alpha=3, target_modules=["query", "value"], task_type="SEQ_CLS")),
    ("llama", "lm", peft.LoKrConfig(r=8, target_modules="all-linear")),  # whole factors
    ("llama", "lm", peft.LoKrConfig(
        r=3, target_modules=LLAMA, decompose_both=True, decompose_factor=12, rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 5})),
    # A product with more parameters than its matrix
    ("llama", "lm", peft.LoKrConfig(r=7, target_modules=["down_proj"], decompose_factor=3, init_weights="lycoris")),
    ("t5", "lm", peft.LoKrConfig(r=3, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")),
    ("bert", "classify", peft.OFTConfig(oft_block_size=8, target_modules=["query", "value"], task_type="SEQ_CLS")),
    ("llama", "lm", peft.OFTConfig(oft_block_size=0, r=4, target_modules=["q_proj", "down_proj"])),  # blocks of 8, 12
    ("llama", "lm", peft.OFTConfig(
        oft_block_size=8, target_modules=["q_proj", "down_proj"], use_cayley_neumann=False, block_share=True)),
    ("llama", "lm", peft.OFTConfig(
        oft_block_size=20, target_modules=LLAMA, num_cayley_neumann_terms=3, coft=True, eps=2.0)),
    ("t5", "lm", peft.OFTConfig(oft_block_size=16, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")),
    ("bert", "classify", peft.FourierFTConfig(n_frequency=50, target_modules=["query"], task_type="SEQ_CLS")),
    ("gpt2", "lm", peft.FourierFTConfig(
        n_frequency=70, scaling=20, random_loc_seed=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    ("llama", "lm", peft.FourierFTConfig(
        n_frequency=1000, target_modules=["q_proj", "v_proj"], n_frequency_pattern={"v_proj": 512}, init_weights=True)),
    ("bert", "classify", peft.LNTuningConfig(target_modules=["LayerNorm"], task_type="SEQ_CLS")),
    ("llama", "lm", peft.LNTuningConfig(task_type="CAUSAL_LM")),
    ("t5", "lm", peft.LNTuningConfig(task_type="SEQ_2_SEQ_LM")),
    ("bert", "classify", peft.VBLoRAConfig(
        num_vectors=9, vector_length=16, target_modules=["query", "value"], task_type="SEQ_CLS")),
    ("gpt2", "lm", peft.VBLoRAConfig(
        r=2, topk=3, num_vectors=9, vector_length=8, target_modules=["c_attn"], fan_in_fan_out=True, vblora_dropout=0.1,
        save_only_topk_weights=True)),
    ("llama", "lm", peft.VBLoRAConfig(num_vectors=7, vector_length=8, target_modules="all-linear")),
    ("bert", "classify", peft.BOFTConfig(target_modules=["query", "value"], task_type="SEQ_CLS")),
    ("llama", "lm", peft.BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=["q_proj"])),
    ("llama", "lm", peft.BOFTConfig(boft_block_size=8, target_modules=LLAMA)),
    ("llama", "lm", peft.BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=4, target_modules=LLAMA)),
]  # fmt: skip


class BlockDiagonal:
    """PEFT's CUDA kernel for BOFT in torch: without it PEFT has one factor, and tries to compile it each time."""

    @staticmethod
    def forward(blocks):  # (factors, blocks, n, n)
        return [torch.stack([torch.block_diag(*each) for each in blocks])]

    @staticmethod
    def backward(gradient, blocks):
        n = blocks.shape[-1]
        parts = gradient.unflatten(1, (-1, n)).unflatten(3, (-1, n))  # (factors, blocks, n, blocks, n)
        return [parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)]


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch):
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", BlockDiagonal)


def named(cases, kind_of):
    """The cases with names; the first of each kind is quick."""
    seen, params = set(), []
    for number, case in enumerate(cases):
        kind = kind_of(case)
        marks = [pytest.mark.slow] if kind in seen else []
        seen.add(kind)
        params.append(pytest.param(*case, id=f"{kind}-{case[0]}-{number}", marks=marks))
    return params


def method_name(case):
    return case[1].partition("(")[0]


def config_name(case):
    return type(case[2]).__name__


@pytest.mark.parametrize(("kind", "method", "head"), named(OURS, method_name))
def test_peft_reads_our_folder(kind, method, head, tmp_path):
    host = Host(models.tiny(kind, head))
    adapter = host.attach("a", parse(method))
    randomize_(host, "a")
    mine = outputs_of(host.model, kind, head, "right")
    assert peft_obstacles(adapter.method, host) == []
    host.save("a", tmp_path / "a")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword")  # every key of our config is one of its own
        theirs = opened(kind, head, tmp_path / "a")
    torch.testing.assert_close(outputs_of(theirs, kind, head, "right"), mine, rtol=1e-4, atol=1e-5)
    host.use(None)
    assert (outputs_of(host.model, kind, head, "right") - mine).abs().max() > 1e-3

    # Read back from PEFT's files alone, it computes the same.
    for file in ("adapter.json", "adapter.safetensors"):
        (tmp_path / "a" / file).unlink()
    again = Host(models.tiny(kind, head))
    again.load(tmp_path / "a")
    torch.testing.assert_close(outputs_of(again.model, kind, head, "right"), mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "head", "config"), named(THEIRS, config_name))
def test_we_read_their_folder(kind, head, config, tmp_path):
    theirs = saved(kind, head, config, tmp_path / "a")
    host = Host(models.tiny(kind, head))
    adapter = host.load(tmp_path / "a")
    expected = outputs_of(theirs, kind, head, "right")
    torch.testing.assert_close(outputs_of(host.model, kind, head, "right"), expected, rtol=1e-4, atol=1e-5)
    assert adapter.extra["origin"]["peft_type"] == config.peft_type.value
    host.use(None)
    assert (outputs_of(host.model, kind, head, "right") - expected).abs().max() > 1e-3


TRAINED = [case for i, case in enumerate(THEIRS) if i in (0, 3, 4, 8, 10, 13, 14, 16, 17, 19, 21, 22, 25)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head", "config"), named(TRAINED, config_name))
def test_training_goes_on_as_theirs(kind, head, config, tmp_path):
    theirs = saved(kind, head, config, tmp_path / "a")
    host = Host(models.tiny(kind, head))
    host.load(tmp_path / "a", name="a")
    # Without dropout: PEFT draws numbers of its own for each module.
    mine = losses(host.model, [p for _, p in host.trainable("a")], kind, head, steps=10, dropout=False)
    expected = losses(theirs, [p for p in theirs.parameters() if p.requires_grad], kind, head, steps=10, dropout=False)
    assert max(expected) - min(expected) > 0.05  # it learned something
    assert max(abs(a - b) for a, b in zip(mine, expected, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        ("gpt2", "LoHa(sites='layers.1.attn.q')", "h.1.attn.c_attn is a Conv1D, which PEFT's LoHa does not take"),
        ("gpt2", "LoKr(sites='layers.1.ffn.in')", "is a Conv1D, which PEFT's LoKr does not take"),
        ("gpt_neox", "LoKr(sites='layers.1.attn.q')", "is a slice of"),
        ("gpt2", "OFT(sites='layers.1.attn.o')", "is a Conv1D, which PEFT's OFT does not take"),
        (
            "bert",
            "BOFT(block=10, sites='layers.1.attn.q')",
            "has blocks of 8 here, and would have blocks of 10 in PEFT's BOFT",
        ),
    ],
)
def test_obstacles_are_named(kind, method, words):
    (reason,) = peft_obstacles(parse(method), Host(models.tiny(kind, "lm")))
    assert words in reason


CHANGES = [
    (peft.LoHaConfig(r=3, target_modules=["query"]), {"r": 4}, "r is 4 for encoder.layer.0.attention.self.query"),
    (peft.LoHaConfig(r=3, target_modules=["query"]), {"alpha": "8"}, "alpha is '8', it must be a number"),
    (peft.LoHaConfig(r=3, target_modules=["query"]), {"bias": "all"}, "changed the base's biases"),
    (peft.LoKrConfig(r=2, target_modules=["query"]), {"decompose_factor": 0}, "factor must be at least 1"),
    (peft.LoKrConfig(r=2, target_modules=["query"]), {"decompose_factor": 2}, r"shape \(4, 4\), not \(2, 2\)"),
    (peft.LoKrConfig(r=2, target_modules=["query"]), {"rank_pattern": {"query": 3}}, "r is 3 for"),
    (peft.OFTConfig(oft_block_size=8, target_modules=["query"]), {"peft_version": "0.17.1"}, "before 0.18"),
    (peft.OFTConfig(oft_block_size=8, target_modules=["query"]), {"oft_block_size": None}, "oft_block_size"),
    (peft.OFTConfig(oft_block_size=8, target_modules=["query"]), {"num_cayley_neumann_terms": 1}, "no rotation"),
    (peft.OFTConfig(oft_block_size=8, target_modules=["query"]), {"block_share": True}, r"\(1, 28\)"),
    (peft.BOFTConfig(target_modules=["query"]), {"bias": "boft_only"}, "changed the base's biases"),
    (peft.FourierFTConfig(n_frequency=50, target_modules=["query"]), {"n_frequency": 60}, "n_frequency is 60 for"),
    (peft.FourierFTConfig(n_frequency=50, target_modules=["query"]), {"random_loc_seed": None}, "random_loc_seed"),
    (peft.FourierFTConfig(n_frequency=50, target_modules=["query", "value"], n_frequency_pattern={"value": 60}), {},
        "FourierFT has one n"),
    (peft.FourierFTConfig(n_frequency=50, target_modules=["query"]), {"n_frequency_pattern": {"(a+)+$": 3}},
        "may take without end"),
    (peft.VBLoRAConfig(num_vectors=9, vector_length=16, target_modules=["query"]), {"topk": 0}, "k must be at least 1"),
    (peft.VBLoRAConfig(num_vectors=9, vector_length=16, target_modules=["query"]), {"r": 3}, r"\(4, 2, 9\)"),
    (peft.LNTuningConfig(target_modules=["query"]), {}, "query, which is not a norm site"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "changes", "words"), CHANGES)
def test_what_does_not_fit_is_named(config, changes, words, tmp_path):
    saved("bert", None, config, tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    host = Host(models.tiny("bert"))
    with pytest.raises(DeltatuneError, match=words):
        host.load(tmp_path / "a")
    assert host.adapters == {}


@pytest.mark.parametrize(
    ("config", "suffix", "words"),
    [
        (peft.LoHaConfig(r=3, target_modules=["query"]), "hada_w2_a", "required are hada_w1_a, hada_w1_b"),
        (peft.LoKrConfig(r=2, target_modules=["query"]), "lokr_w2_b", "lokr_w1, lokr_w2_a; required are"),
        (peft.OFTConfig(oft_block_size=8, target_modules=["query"]), "oft_R.weight", "it has no tensors oft_R.weight"),
        (peft.BOFTConfig(target_modules=["query"]), "boft_s", "has tensors boft_R; required are boft_R, boft_s"),
        (peft.VBLoRAConfig(num_vectors=9, vector_length=16, target_modules=["query"]), "vector_bank", "it has no bank"),
        (peft.LNTuningConfig(target_modules=["LayerNorm"]), "bias", "has no tensor|missing"),
    ],
)
def test_missing_tensors_are_named(config, suffix, words, tmp_path):
    saved("bert", None, config, tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if not key.endswith(suffix)}, path)
    with pytest.raises(DeltatuneError, match=words):
        Host(models.tiny("bert")).load(tmp_path / "a")


def test_embeddings_of_oft_are_refused(tmp_path):
    config = peft.OFTConfig(oft_block_size=8, target_modules=["word_embeddings"])
    saved("bert", None, config, tmp_path / "a")
    with pytest.raises(DeltatuneError, match="embeddings are no sites of OFT"):
        Host(models.tiny("bert")).load(tmp_path / "a")


def test_blocks_of_several_widths_are_refused(tmp_path):
    saved("bert", None, peft.OFTConfig(oft_block_size=8, target_modules=["query"]), tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.encoder.layer.1.attention.self.query.oft_R.weight"] = torch.zeros(2, 120)
    save_file(tensors, path)
    with pytest.raises(DeltatuneError, match=r"its blocks have the widths (8|16) at encoder\S+, (8|16) at encoder"):
        Host(models.tiny("bert")).load(tmp_path / "a")
