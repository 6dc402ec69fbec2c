"""ONNX: one graph of the model, the adapter and its head, on other shapes than it was traced with."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

import deltatune as dt
from deltatune.core.errors import DeltatuneError
from deltatune.models.processors import load_processor
from deltatune.store.exports.onnx import onnx_graph, onnx_target
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.testing.tiny_models import tiny
from support.media import save_vit, save_wav2vec2

onnxruntime = pytest.importorskip("onnxruntime")


def host_with(method, kind="bert", pooling="mean", head=None, outputs=3, task="classify", **extra):
    """A host with an adapter of random values, with a head for a pooling, or without one."""
    host = dt.Host(tiny(kind, head=head, dropout=False))
    made = Head(HeadConfig(pooling=pooling, outputs=outputs, width=host.model.config.hidden_size)) if pooling else False
    torch.manual_seed(0)
    adapter = host.attach("x", dt.parse(method), head=made, extra={"task": {"task": task, **extra}})
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return host


def run(folder, ids, mask):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": torch.zeros_like(ids).numpy()}
    values = session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})
    return {entry.name: torch.from_numpy(value) for entry, value in zip(session.get_outputs(), values, strict=True)}


@pytest.mark.slow
def test_a_classifier_runs_in_onnxruntime_alone(tmp_path, tiny_tokenizer):
    """The classes of onnxruntime and of the adapter are equal, on shapes that were not traced, with padding."""
    host = host_with("LoRA(r=3)", labels=["bad", "fair", "good"])
    (done,) = dt.export(host, "x", tmp_path / "out", "onnx", tokenizer=tiny_tokenizer)
    assert done.difference < 1e-5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {
        "0": "bad",
        "1": "fair",
        "2": "good",
    }
    assert (tmp_path / "out" / "tokenizer.json").exists()
    ids, mask = torch.randint(10, 90, (7, 21)), torch.ones(7, 21, dtype=torch.long)
    mask[3, 4:] = 0
    with torch.no_grad(), host.using("x", training=False):
        states = host.model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = host.adapters["x"].head(states, mask)
    found = run(tmp_path / "out", ids, mask)["logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not host.merged


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["Prefix(length=3)", "Prompt(length=3)", "Bottleneck(size=4)", "MAM()"])
def test_what_does_not_merge_is_in_the_graph_as_it_acts(method, kind, tmp_path):
    host = host_with(method, kind, pooling="last" if kind != "bert" else "cls")
    (done,) = dt.export(host, "x", tmp_path / "out", "onnx")
    assert "as it acts, unmerged" in done.notes[0]
    assert done.error < 1e-3
    ids, mask = torch.randint(10, 90, (4, 11)), torch.ones(4, 11, dtype=torch.long)
    mask[1, 6:] = 0
    logits = run(tmp_path / "out", ids, mask)["logits"]
    alone = run(tmp_path / "out", ids[1:2, :6], mask[1:2, :6])["logits"]
    torch.testing.assert_close(logits[1:2], alone, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pooling", "head", "task", "outputs", "names"),
    [
        ("bert", "none", None, "tag", 5, ["logits"]),
        ("bert", "none", None, "span", 2, ["start_logits", "end_logits"]),
        ("bert", "pooler", None, "classify", 3, ["logits"]),
        ("roberta", None, None, "", 3, ["last_hidden_state"]),
        ("llama", None, "lm", "lm", 3, ["logits"]),
        ("bert", None, "lm", "lm", 3, ["logits"]),
    ],
)
def test_outputs_are_named_as_optimum_names_them(kind, pooling, head, task, outputs, names, tmp_path):
    host = host_with("LoRA(r=2)", kind, pooling, head, outputs, task)
    dt.export(host, "x", tmp_path / "out", "onnx")
    ids = torch.randint(10, 90, (3, 9))
    found = run(tmp_path / "out", ids, torch.ones_like(ids))
    assert list(found) == names
    assert all(value.shape[0] == 3 for value in found.values())


@pytest.mark.slow
def test_images_are_inputs_too(tmp_path):
    host = dt.Host(AutoModelForImageClassification.from_config(tiny("vit", dropout=False).config).eval())
    host.attach("x", dt.LoRA(r=2))
    (done,) = dt.export(host, "x", tmp_path / "out", "onnx")
    assert done.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (entry,) = session.get_inputs()
    shape = [6, *entry.shape[1:]]
    assert session.run(None, {entry.name: np.zeros(shape, dtype=np.float32)})[0].shape[0] == 6


def test_what_no_graph_can_hold_is_named(tmp_path):
    with pytest.raises(DeltatuneError, match="T5ForConditionalGeneration is an encoder-decoder"):
        dt.export(host_with("LoRA(r=2)", "t5", None, "lm"), "x", tmp_path / "out", "onnx")
    host = host_with("LoRA(r=2)")
    host.model.to(torch.bfloat16)
    with pytest.raises(DeltatuneError, match="the model is in bfloat16, and the graph computes in float32"):
        dt.export(host, "x", tmp_path / "out", "onnx")
    with pytest.raises(DeltatuneError, match="float32"):
        dt.export(host_with("LoRA(r=2)"), "x", tmp_path / "out", "onnx", dtype="float16")
    model = tiny("bert", dropout=False)
    dt.quantize_(model, "nf4")
    quantized = dt.Host(model)
    quantized.attach("x", dt.LoRA(r=2), head=False)
    with pytest.raises(DeltatuneError, match="stored in nf4"):
        dt.export(quantized, "x", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    host = host_with("LoRA(r=2)")
    monkeypatch.setattr(onnx_target, "write_graph", lambda model, batch, outputs, file: file.write_bytes(b""))

    def wrong(file, batch):
        return [torch.ones(len(batch["input_ids"]), 3)]

    monkeypatch.setattr(onnx_target, "run_graph", wrong)
    with pytest.raises(DeltatuneError, match="outputs in onnxruntime differ by"):
        dt.export(host, "x", tmp_path / "out", "onnx")
    monkeypatch.setattr(onnx_target, "run_graph", lambda file, batch: [torch.ones(2, 3)])
    with pytest.raises(DeltatuneError, match="bound to the shape that it was traced with"):
        dt.export(host, "x", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    assert not host.merged


def test_without_the_packages_the_error_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(DeltatuneError, match=r'ONNX needs onnxscript: pip install "deltatune\[onnx\]"'):
        onnx_graph.check_packages()


@pytest.mark.slow
def test_what_the_tracer_cannot_follow_is_refused_with_its_reason(tmp_path):
    host = host_with("LoReFT()")  # its orthonormal rows come from a QR decomposition, which ONNX does not have
    with pytest.raises(DeltatuneError, match=r"torch.onnx cannot trace this model: .*linalg_qr"):
        dt.export(host, "x", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_gives_no_numbers_is_no_equal_one():
    mask = {"attention_mask": torch.ones(2, 3, dtype=torch.long)}
    right, wrong = torch.ones(2, 3, 4), torch.full((2, 3, 4), torch.nan)
    assert onnx_target._check([[right], [right]], [[right], [right]], [mask, mask]) == 0
    for found in ([[wrong], [right]], [[right], [wrong]]):
        with pytest.raises(DeltatuneError, match="differ by nan"):
            onnx_target._check([[right], [right]], found, [mask, mask])


@pytest.mark.slow
def test_a_head_on_images_is_in_the_graph_and_one_on_sounds_is_refused(tmp_path):
    folder = save_vit(tmp_path / "vit")
    host = dt.Host(AutoModel.from_pretrained(folder).eval())
    host.attach("x", dt.LoRA(r=2), head=Head(HeadConfig(outputs=3, width=host.model.config.hidden_size)))
    (done,) = dt.export(
        host, "x", tmp_path / "out", "onnx", tokenizer=load_processor("vit", str(folder), host.model, "image")
    )
    assert done.difference < 1e-4
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert "{'pixel_values': batch}" in done.usage[0]
    pixels = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    with torch.no_grad(), host.using("x", training=False):
        states = host.model(pixel_values=pixels).last_hidden_state
        expected = host.adapters["x"].head(states, torch.ones(states.shape[:2]), None)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)
    host = dt.Host(AutoModel.from_pretrained(save_wav2vec2(tmp_path / "waves")).eval())
    host.attach("x", dt.LoRA(r=2), head=Head(HeadConfig(outputs=3, width=host.model.config.hidden_size)))
    with pytest.raises(DeltatuneError, match="reads samples of sounds, and the graph would be bound to one length"):
        dt.export(host, "x", tmp_path / "sound", "onnx")
