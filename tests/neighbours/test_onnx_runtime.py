"""Models for ONNX Runtime."""

import numpy as np
import pytest

import deltatune
from support import models
from support.neighbours import hosted, logits, works

NAME = "ONNX Runtime"
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
NOT_APPLICABLE = {
    "attach": "it runs what was trained",
    "train": "it runs what was trained",
    "reload": "it writes no adapters",
}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what torch's exporter imports


@works('deltatune.export(host, "mine", folder, "onnx")')
def test_save(tmp_path):
    host = hosted()
    folder = tmp_path / "out"
    deltatune.export(host, "mine", folder, "onnx")
    assert (folder / "model.onnx").is_file()


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)"])
@works()
def test_serve(method, tmp_path):
    import onnxruntime

    host = hosted(method=method)
    deltatune.export(host, "mine", tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    batch = {name: tensor.numpy() for name, tensor in models.inputs("llama").items()}
    given = {each.name: batch[each.name] for each in session.get_inputs()}
    (out,) = session.run(["logits"], given)
    real = batch["attention_mask"].astype(bool)
    np.testing.assert_allclose(out[real], logits(host.model).numpy()[real], rtol=1e-3, atol=1e-4)
