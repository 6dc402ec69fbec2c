"""Folders of LoRAs for SGLang."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import hosted, logits, works

NAME = "SGLang: its folder, read by PEFT"
PACKAGES = ("peft",)
NOT_APPLICABLE = {
    "attach": "it serves what was trained",
    "train": "it serves what was trained",
    "reload": "it writes no adapters",
    "serve": "no server of it has loaded the folder; its rules are those of its sources",
}


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@works('deltatune.export(host, "mine", folder, "sglang")', but=("what no LoRA equals", "has no change of a weight"))
def test_save(refusal, tmp_path):
    """The folder, read by PEFT, gives the same outputs; other changes of weights become LoRAs."""
    import peft

    for method in ("LoRA(r=2)", "IA3()"):
        host = hosted(method=method)
        folder = tmp_path / method
        deltatune.export(host, "mine", folder, "sglang")
        again = peft.PeftModel.from_pretrained(models.tiny("llama", "lm", dropout=False), folder)
        torch.testing.assert_close(logits(again), logits(host.model), rtol=1e-4, atol=1e-4)
    with refusal():
        deltatune.export(hosted(method="Prefix(length=3)"), "mine", tmp_path / "out", "sglang")
    assert not (tmp_path / "out").exists()
