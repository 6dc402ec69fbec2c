"""LoRA folders for servers: exact conversions, one rank for all, a lint that comes before anything is written."""

import json
from importlib.metadata import EntryPoint

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import deltatune as dt
from deltatune.core.errors import DeltatuneError
from deltatune.store.exports import export_target, lora_folder
from deltatune.store.exports.export_target import ExportedFiles
from deltatune.store.exports.lora_factors import lora_factors
from deltatune.store.exports.vllm_architectures import SERVED
from deltatune.store.peft import peft_folder
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.testing.tiny_models import tiny

EXACT = [
    "LoRA(r=3)",
    "RsLoRA(r=4)",
    "LoRA(sites='*')",
    "PiSSA(r=2)",
    "VBLoRA()",
    "LoRA(r=2, ranks=(('layers.0.attn.q', 4),))",
]
CONVERTED = [
    "DoRA(r=2)",
    "LoHa(r=2)",
    "LoKr()",
    "FourierFT()",
    "OFT()",
    "IA3()",
    "VeRA()",
    "Embeddings()",
    "LoRA(r=2) + IA3()",
]


def host_with(method, kind="llama", name="x", head="lm", seed=0):
    """A host with an adapter of random values."""
    host = dt.Host(tiny(kind, head=head, dropout=False))
    host.model.config.architectures = None
    add(host, method, name, seed)
    return host


def add(host, method, name, seed=0):
    adapter = host.attach(name, dt.parse(method), head=False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter


def logits(host, route):
    ids = torch.arange(10, 30).view(2, 10)
    with torch.no_grad(), host.using(route, training=False):
        return host.model(ids).logits


@pytest.mark.parametrize(
    "method",
    [
        method
        if method in ("LoRA(r=3)", "PiSSA(r=2)", "DoRA(r=2)", "LoRA(r=2) + IA3()")
        else pytest.param(method, marks=pytest.mark.slow)
        for method in [*EXACT, *CONVERTED]
    ],
)
def test_every_low_rank_change_becomes_one_plain_lora(method, tmp_path):
    host = host_with(method)
    (done,) = dt.export(host, "x", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {t.shape[0] for key, t in tensors.items() if key.endswith(("lora_A.weight", "embedding_A"))}
    assert ranks == {config["r"]} == {done.rank}
    assert not {"rank_pattern", "alpha_pattern"} & config.keys()
    assert not config["use_dora"]
    assert not config["use_rslora"]
    assert config["modules_to_save"] is None
    assert done.difference < 2e-5
    assert done.error < 1e-4
    assert bool(done.notes) == (method in CONVERTED)
    peft_folder.load(host, tmp_path / "out", "again", True, None)
    torch.testing.assert_close(logits(host, "again"), logits(host, "x"), rtol=0, atol=2e-5)
    assert (logits(host, "x") - logits(host, None)).abs().max() > 1e-2


def test_factors_of_one_scale_keep_their_bits(tmp_path):
    host = host_with("LoRA(r=3, alpha=5.0)")
    factors = lora_factors(host, "x")
    for _, site, delta in host.adapters["x"].entries():
        a, b = factors.pairs[site.module]
        assert torch.equal(a, delta.A)
        assert torch.equal(b, delta.B)
    assert factors.scale == pytest.approx(5 / 3)
    assert factors.error == 0


def test_modules_are_named_by_their_last_names_where_these_select_exactly_them(tmp_path):
    dt.export(host_with("LoRA(sites='*.attn.{q,v}')"), "x", tmp_path / "all")
    dt.export(host_with("LoRA(sites='layers.0.attn.q')"), "x", tmp_path / "one")
    read = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())["target_modules"] for name in ("all", "one")
    ]
    assert read == [["q_proj", "v_proj"], ["model.layers.0.self_attn.q_proj"]]


def test_a_negative_weight_is_folded(tmp_path):
    host = host_with("DoRA(r=2)")
    dt.export(host, "x", tmp_path / "out", weight=-0.5)
    peft_folder.load(host, tmp_path / "out", "again", True, None)
    torch.testing.assert_close(logits(host, "again"), logits(host, {"x": -0.5}), rtol=0, atol=2e-5)


def test_a_fused_projection_takes_the_lora_of_its_slices(tmp_path):
    host = host_with("LoRA(r=2)", kind="gpt2")
    (done,) = dt.export(host, "x", tmp_path / "out", "tgi")
    assert done.rank == 4  # q and v beside each other in c_attn
    peft_folder.load(host, tmp_path / "out", "again", True, None)
    torch.testing.assert_close(logits(host, "again"), logits(host, "x"), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "kind", "reasons"),
    [
        ("Prefix(length=2)", "llama", ["Prefix acts on activations", "cannot be merged either", "deltatune serve"]),
        ("Bottleneck(size=4)", "llama", ["Bottleneck acts on activations"]),
        ("LNTuning()", "llama", ["layers.0.norm.0", "a vector of the base is changed", "--merge"]),
        ("LoRA()", "gpt2", ["no LoRA for GPT2LMHeadModel", "--merge"]),
        ("LoRA(sites='embed')", "gpt2", ["transformer.wte shares its weight"]),
        ("IA3()", "gpt2", ["changes a bias"]),
        ("LoRA()", "t5", ["T5ForConditionalGeneration is an encoder-decoder, which vLLM does not serve", "deltatune"]),
        ("LoRA()", "bert", ["vLLM does not serve BertForMaskedLM", "`deltatune serve`"]),
        ("LoRA(r=4) + Prefix(length=2)", "llama", ["Prefix acts on activations"]),
    ],
)  # fmt: skip
def test_the_lint_says_why_and_what_to_do(method, kind, reasons, tmp_path):
    with pytest.raises(DeltatuneError) as error:
        dt.export(host_with(method, kind), "x", tmp_path / "out", "vllm")
    assert all(reason in str(error.value) for reason in reasons), str(error.value)
    assert not (tmp_path / "out").exists()
    if "does not serve" in str(error.value):
        assert "--merge" not in str(error.value)
        with pytest.raises(DeltatuneError, match="does not serve"):
            dt.export(host_with(method, kind), "x", tmp_path / "out", "vllm", merge=True)
        assert not (tmp_path / "out").exists()


def test_what_a_server_does_not_serve_is_not_merged_for_it(tmp_path):
    host = dt.Host(tiny("bert", dropout=False))
    task = {"task": "span", "text": ["question", "context"], "label": "answers"}
    head = Head(HeadConfig(pooling="none", outputs=2, width=host.model.config.hidden_size))
    host.attach("spans", dt.LoRA(r=2), head=head, extra={"task": task})
    for server in ("vllm", "sglang", "tgi"):
        with pytest.raises(DeltatuneError, match=r"does not serve BertForQuestionAnswering.*`deltatune merge`"):
            dt.export(host, "spans", tmp_path / "out", server, merge=True)
    assert not (tmp_path / "out").exists()


def test_the_prompt_of_label_words_is_no_part_of_the_files(tmp_path):
    host = host_with("LoRA(r=2)")
    host.adapters["x"].extra["scores"] = {"prompts": ["'{text} It was {mask}.' with bad: bad, good: good"]}
    for merge in (False, True):
        (done,) = dt.export(host, "x", tmp_path / str(merge), merge=merge)
        assert [note for note in done.notes if "It was {mask}" in note] == [done.notes[-1]]


def test_ranks_beyond_what_is_allowed_are_named(tmp_path):
    with pytest.raises(
        DeltatuneError, match=r"DoRA has a rank of up to 32 \(2 of 4 modules\), and --rank .* allows 16"
    ):
        dt.export(host_with("DoRA()"), "x", tmp_path / "out", rank=16)
    host = host_with("LoRA(r=2)")
    server = export_target.read_target("vllm")
    assert server.ranks[-1] == 512
    assert server._limit(9) == 16
    assert "--max-lora-rank 8 " in dt.export(host, "x", tmp_path / "o")[0].usage[0]


def test_a_bound_lets_a_conversion_lose_something(tmp_path):
    host = host_with("DoRA(r=2)")
    with pytest.raises(DeltatuneError, match="allows 24"):
        dt.export(host, "x", tmp_path / "out", rank=24)
    (done,) = dt.export(host, "x", tmp_path / "out", rank=24, bound=0.2)
    assert done.rank <= 24
    assert 1e-3 < done.error < 0.5
    assert "losing 0." in done.notes[0]


def test_heads_are_named(tmp_path):
    host = dt.Host(tiny("llama", head="classify", dropout=False))
    host.attach("own", dt.LoRA(r=2))
    host.attach("new", dt.LoRA(r=2), head=nn.Linear(32, 2))
    with pytest.raises(DeltatuneError, match=r"own copy of score, which is no LoRA \(modules_to_save\)"):
        dt.export(host, "own", tmp_path / "out")
    with pytest.raises(DeltatuneError, match="a Linear for its task, which is no LoRA") as raised:
        dt.export(host, "new", tmp_path / "out")
    assert "if transformers' class for it computes the same from the head" in str(raised.value)


def test_a_body_whose_folder_holds_a_language_model_is_named(tmp_path):
    host = dt.Host(tiny("llama", dropout=False))
    host.model.config.architectures = ["LlamaForCausalLM"]
    host.attach("x", dt.LoRA(r=2), head=False)
    with pytest.raises(DeltatuneError, match="on LlamaModel, and the base's folder says LlamaForCausalLM"):
        dt.export(host, "x", tmp_path / "out")


def test_several_adapters_fill_a_folder_each_or_none(tmp_path):
    host = host_with("LoRA(r=2)", name="german")
    add(host, "RsLoRA(r=4)", "legal", seed=1)
    add(host, "Prefix(length=2)", "prefix")
    done = dt.export(host, ["german", "legal"], tmp_path / "out", "sglang")
    assert [each.folder for each in done] == [tmp_path / "out" / "german", tmp_path / "out" / "legal"]
    assert f"legal={tmp_path / 'out' / 'legal'}" in done[1].usage[0]
    assert json.loads((tmp_path / "out" / "legal" / "export.json").read_text())["method"].startswith("RsLoRA")
    with pytest.raises(DeltatuneError, match="prefix: Prefix acts on activations"):
        dt.export(host, ["german", "prefix"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_host_is_as_before(tmp_path):
    host = host_with("DoRA(r=2)")
    host.use({"x": 0.25})
    before = logits(host, host.route)
    dt.export(host, "x", tmp_path / "out")
    dt.export(host, "x", tmp_path / "merged", merge=True)
    assert list(host.adapters) == ["x"]
    assert not host.merged
    assert torch.equal(logits(host, host.route), before)


def test_a_merged_model_is_written_where_there_is_no_lora(tmp_path):
    host = host_with("LNTuning()")
    (done,) = dt.export(host, "x", tmp_path / "out", merge=True)
    assert done.form == "model"
    assert done.usage == (f"vllm serve {tmp_path / 'out'}",)
    model = type(host.model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(10, 30).view(2, 10)).logits, logits(host, "x"), rtol=0, atol=2e-5)
    dt.export(host, "x", tmp_path / "out", merge=True)  # its own folder is replaced


def test_a_folder_that_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    host = host_with("LoRA(r=2)")
    written = lora_folder.write_tensors
    monkeypatch.setattr(
        lora_folder, "write_tensors", lambda path, tensors: written(path, {k: 1.5 * t for k, t in tensors.items()})
    )
    with pytest.raises(DeltatuneError, match="read back, differs by"):
        dt.export(host, "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(host.adapters) == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "y"}, "no adapter 'y'"),
        ({"name": ["x", "x"]}, "'x' is named twice"),
        ({"target": "vlm"}, "did you mean 'vllm'"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"bound": 2.0}, "bound must be between 0 and 1"),
    ],
)
def test_wrong_calls_are_named(options, message, tmp_path):
    arguments = {"name": "x", "target": "vllm", **options}
    with pytest.raises(DeltatuneError, match=message):
        dt.export(host_with("LoRA(r=2)"), folder=tmp_path / "out", **arguments)


class Plain:
    """A target of another package."""

    forms = ("lora",)
    dtypes = ("float32",)

    def prepare(self, request):
        def write(folder):
            (folder / "name.txt").write_text(request.name)
            return ExportedFiles(folder, "plain", "lora", 0.0)

        return write


def test_other_packages_add_targets(tmp_path, monkeypatch):
    point = EntryPoint("plain", f"{__name__}:PLAIN", "deltatune.exports")
    monkeypatch.setattr(export_target, "entry_points", lambda group: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Plain())
    dt.export(host_with("LoRA(r=2)"), "x", tmp_path / "out", "plain")
    assert (tmp_path / "out" / "name.txt").read_text() == "x"
    with pytest.raises(DeltatuneError, match="plain takes adapters alone"):
        dt.export(host_with("LoRA(r=2)"), "x", tmp_path / "out", "plain", merge=True)


def test_the_architectures_of_vllm_are_told_apart():
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM", "Gemma3ForCausalLM"} <= SERVED
    assert not {"GPT2LMHeadModel", "T5ForConditionalGeneration", "BertForSequenceClassification"} & SERVED


def test_values_that_are_not_finite_are_named_before_anything_is_written(tmp_path):
    host = host_with("LoRA(r=3)")
    with pytest.raises(DeltatuneError, match=r"q_proj, .*beyond the range of float16; choose another dtype or weight"):
        dt.export(host, "x", tmp_path / "out", weight=1e30, dtype="float16")
    with pytest.raises(DeltatuneError, match="beyond the range of float32"):
        dt.export(host, "x", tmp_path / "out", weight=1e39)
    for method in ("LoRA(r=3)", "DoRA(r=2)"):
        host = host_with(method)
        next(iter(host.adapters["x"].parameters())).data[0] = float("nan")
        with pytest.raises(DeltatuneError, match="not finite: NaN"):
            dt.export(host, "x", tmp_path / "out")
    assert not list(tmp_path.iterdir())
