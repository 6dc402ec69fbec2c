"""GGUF: models and adapters that llama.cpp computes exactly, with the tokenizer, for every family that is offered."""

import json

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

import deltatune as dt
from deltatune.core.errors import DeltatuneError
from deltatune.store.exports.gguf import gguf_package as package
from deltatune.store.exports.gguf.gguf_families import FAMILIES, family_obstacles, rotation_factors, turned_rows
from deltatune.store.exports.gguf.gguf_files import adapter_tensors, read_tensors
from deltatune.store.exports.gguf.gguf_target import NOT_READ
from deltatune.store.exports.gguf.gguf_tokenizer import _LLAMA3, _QWEN2, cut_name, tokenizer_metadata, tokenizer_rules
from deltatune.store.exports.lora_factors import lora_factors
from support.byte_tokenizer import TEXTS, byte_tokenizer

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": 304, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
CONFIGS = {
    "LlamaForCausalLM": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "MistralForCausalLM": MistralConfig(**SIZES, sliding_window=None),
    "Qwen2ForCausalLM": Qwen2Config(**SIZES),
    "Qwen3ForCausalLM": Qwen3Config(**SIZES, head_dim=16),
    "GPT2LMHeadModel": GPT2Config(
        vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
}


def host_of(kind, method="LoRA(r=3)"):
    """A host of a family with an adapter of random values; no two numbers of the base are alike."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    host = dt.Host(model)
    adapter = host.attach("x", dt.parse(method), head=False)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return host


def logits(model):
    ids = torch.arange(40).view(2, 20) + 5
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    "kind", ["LlamaForCausalLM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(FAMILIES)[1:])]
)
def test_transformers_reads_the_same_model_and_tokenizer(kind, tmp_path):
    host, tokenizer = host_of(kind), byte_tokenizer()
    (done,) = dt.export(host, "x", tmp_path / "out", "gguf", merge=True, tokenizer=tokenizer)
    config = AutoConfig.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    for field in NOT_READ & set(vars(host.model.config)):
        setattr(config, field, getattr(host.model.config, field))
    place = {"gguf_file": "model.gguf", "config": config, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **place).eval()
    host.use("x")
    torch.testing.assert_close(logits(model), logits(host.model), rtol=0, atol=2e-5)
    assert done.difference < 2e-5
    if kind in ("LlamaForCausalLM", "GPT2LMHeadModel"):  # whose tokenizers transformers makes from the file alone
        again = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
        assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.01), ("bfloat16", 0.1), ("q8_0", 0.3)])
def test_smaller_types_cost_what_they_say(dtype, bound, tmp_path):
    host = host_of("LlamaForCausalLM")
    (done,) = dt.export(host, "x", tmp_path / "out", "gguf", merge=True, tokenizer=byte_tokenizer(), dtype=dtype)
    full = dt.export(host, "x", tmp_path / "full", "gguf", merge=True, tokenizer=byte_tokenizer())[0]
    assert full.difference < done.difference < bound
    assert (tmp_path / "out" / "model.gguf").stat().st_size < (tmp_path / "full" / "model.gguf").stat().st_size
    assert bool(done.notes) == (dtype == "q8_0")


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_adapter_alone_changes_the_file_of_its_base_as_it_changes_the_base(kind, tmp_path):
    host = host_of(kind, "LoRA(r=3, alpha=5.0)")
    (done,) = dt.export(host, "x", tmp_path / "out", "gguf")
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == FAMILIES[kind].arch
    scale = fields["adapter.lora.alpha"] / done.rank
    stored = read_tensors(tmp_path / "out" / "adapter.gguf")
    changes = {name.removesuffix(".lora_a"): name for name in stored if name.endswith(".lora_a")}
    config, factors = host.model.config, lora_factors(host, "x")
    assert stored.keys() == adapter_tensors(kind, config, factors).keys()
    by_name = dict(zip(changes, factors.pairs, strict=True))
    for target, path in by_name.items():
        a, b = factors.pairs[path]
        plain = factors.scale * b @ a  # ΔW (out, in) of the module in transformers' layout
        heads = config.num_attention_heads if path.endswith("q_proj") and FAMILIES[kind].turned else 0
        moved = turned_rows(plain, heads) if heads else plain
        if not path.endswith("k_proj"):
            torch.testing.assert_close(scale * stored[f"{target}.lora_b"] @ stored[f"{target}.lora_a"], moved)


def test_rows_of_a_rotation_stand_side_by_side():
    rows = torch.arange(8.0)[:, None]  # two heads of width 4
    assert turned_rows(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_frequencies_of_longer_texts_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }  # fmt: skip
    config = LlamaConfig(**{**SIZES, "hidden_size": 128, "max_position_embeddings": 4096}, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 32, 2) / 32)
    divisors = torch.from_numpy(rotation_factors("LlamaForCausalLM", config))
    torch.testing.assert_close(plain / divisors, theirs, rtol=1e-5, atol=0)
    assert len(divisors.unique()) > 2


@pytest.mark.parametrize(
    ("cut", "rules", "name"),
    [
        (None, {}, "gpt-2"),
        (Regex(_LLAMA3), {"ignore_merges": True}, "llama-bpe"),
        (Regex(_QWEN2), {}, "qwen2"),
        ("digits", {}, "smollm"),
    ],
)
def test_ways_of_cutting_are_found_by_their_rules(cut, rules, name):
    steps = None
    if cut == "digits":
        steps = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    elif cut is not None:
        split = pre_tokenizers.Split(cut, "isolated")
        steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    assert cut_name(tokenizer_rules(byte_tokenizer(steps, **rules))) == name


@pytest.mark.parametrize(
    ("cut", "rules", "why"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), {}, "a space in front of every text"),
        (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), {}, "ByteLevel"),
        (None, {"ignore_merges": True}, "whole words from its vocabulary"),
    ],
)
def test_other_ways_of_cutting_are_refused(cut, rules, why):
    with pytest.raises(DeltatuneError, match=f"no tokenizer that cuts texts as this one does.*{why}"):
        cut_name(tokenizer_rules(byte_tokenizer(cut, **rules)))


@pytest.mark.parametrize(("behavior", "invert"), [("removed", False), ("isolated", True)])
def test_a_known_pattern_that_cuts_otherwise_is_refused(behavior, invert):
    split = pre_tokenizers.Split(Regex(_QWEN2), behavior, invert=invert)
    steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    with pytest.raises(DeltatuneError, match="no tokenizer that cuts texts as this one does"):
        cut_name(tokenizer_rules(byte_tokenizer(steps)))


def test_tokens_and_their_kinds():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    values = tokenizer_metadata(tokenizer, 304)
    assert [values["token_type"][i] for i in (0, 1, 2, len(tokenizer) - 1, 303)] == [3, 3, 1, 4, 5]
    assert values["tokens"][len(tokenizer) - 1] == "<tool>"
    assert values["bos_token_id"] == 0
    assert values["padding_token_id"] == 1
    assert not values["add_bos_token"]
    with pytest.raises(DeltatuneError, match="the model's embeddings have 200 rows"):
        tokenizer_metadata(tokenizer, 200)


def sentencepiece_tokenizer(normalizer=None, cut=None, suffix=None, alone=()):
    """A BPE of SentencePiece's kind, as Llama 2 has it: bytes as a fallback, spaces as tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdet"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "b"), ("b", "e"), ("▁a", "b"), ("▁", "ab"), ("e", "d")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges), *alone]))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if normalizer is not None:
        made.normalizer = normalizers.Sequence([normalizer, made.normalizer])
    if cut is not None:
        made.pre_tokenizer = cut
    if suffix is not None:
        made.model.end_of_word_suffix = suffix
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_scores_of_pieces_are_the_order_of_their_merges():
    values = tokenizer_metadata(sentencepiece_tokenizer(), 300)
    assert (values["model"], values["pre"], values["add_space_prefix"]) == ("llama", "default", True)
    score = dict(zip(values["tokens"], values["scores"], strict=True))
    assert score["▁a"] > score["ab"] > score["▁b"] > score["be"] > score["▁ab"] > score["ed"]
    kinds = dict(zip(values["tokens"], values["token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"], kinds["ab"]) == (2, 3, 6, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": normalizers.Lowercase()}, "its normalizer Lowercase changes texts first"),
        ({"normalizer": normalizers.Replace("a", "b")}, "its normalizer Replace changes texts first"),
        ({"cut": pre_tokenizers.Digits()}, "its Digits cuts texts first"),
        ({"suffix": "</w>"}, "has end_of_word_suffix="),
        ({"alone": ["abe"]}, "1 token of the tokenizer comes from no merge: 'abe'"),
    ],
)
def test_pieces_that_llama_cpp_would_read_otherwise_are_refused(change, reason):
    with pytest.raises(DeltatuneError, match=reason):
        tokenizer_metadata(sentencepiece_tokenizer(**change), 300)
    assert tokenizer_metadata(sentencepiece_tokenizer(cut=pre_tokenizers.Metaspace()), 300)["add_space_prefix"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "positions are of type yarn"),
        ({"mlp_bias": True}, "mlp_bias is True"),
    ],
)
def test_configs_that_llama_cpp_computes_otherwise_are_refused(change, reason):
    config = LlamaConfig(**SIZES)
    for field, value in change.items():
        setattr(config, field, value)
    assert reason in " ".join(family_obstacles("LlamaForCausalLM", config))


def test_other_families_are_sent_to_llama_cpps_converter():
    (problem,) = family_obstacles("OPTForCausalLM", None)
    assert "there are: LlamaForCausalLM" in problem
    assert "convert_hf_to_gguf.py" in problem


def test_what_an_adapter_file_cannot_hold_is_named(tmp_path):
    host = host_of("LlamaForCausalLM", "LoRA(r=2, sites='embed')")
    with pytest.raises(DeltatuneError, match="embed_tokens: a LoRA on embeddings"):
        dt.export(host, "x", tmp_path / "out", "gguf")
    with pytest.raises(DeltatuneError, match="give tokenizer="):
        dt.export(host_of("LlamaForCausalLM"), "x", tmp_path / "out", "gguf", merge=True)
    with pytest.raises(DeltatuneError, match="Bottleneck acts on activations"):
        dt.export(host_of("LlamaForCausalLM", "Bottleneck(size=4)"), "x", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(DeltatuneError, match=r'pip install "deltatune\[gguf\]"'):
        package.gguf_package()


@pytest.mark.slow
def test_llama_cpp_computes_the_same(tmp_path):
    """Also run by benchmarks/other_programs.py, in an environment of llama.cpp's own."""
    pytest.importorskip("llama_cpp")
    from benchmarks import other_programs

    model = AutoModelForCausalLM.from_config(CONFIGS["LlamaForCausalLM"])
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    other_programs.write(str(tmp_path / "base"), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "expected.json").read_text())["adapters"]
    assert other_programs.check_llama(str(tmp_path / "out")) == 0


def test_the_end_token_of_the_tokenizer_may_be_another_than_the_configs(tmp_path):
    (done,) = dt.export(
        host_of("LlamaForCausalLM"), "x", tmp_path / "out", "gguf", merge=True, tokenizer=sentencepiece_tokenizer()
    )
    assert done.difference < 2e-5
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
