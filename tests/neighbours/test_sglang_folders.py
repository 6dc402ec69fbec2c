"""Folders of LoRAs for SGLang."""

import pytest

import deltatune
from support.neighbours import NO_LORA, ONLY_SERVES, assert_peft_reads, hosted, works

NAME = "SGLang: its folder, read by PEFT"
PACKAGES = ("peft",)
NOT_APPLICABLE = {
    **ONLY_SERVES,
    "serve": "no server of it has loaded the folder; its rules are those of its sources",
}


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@works('deltatune.export(host, "mine", folder, "sglang")', but=NO_LORA)
def test_save(refusal, tmp_path):
    """The folder, read by PEFT, gives the same outputs; other changes of weights become LoRAs."""
    for method in ("LoRA(r=2)", "IA3()"):
        host = hosted(method=method)
        folder = tmp_path / method
        deltatune.export(host, "mine", folder, "sglang")
        assert_peft_reads(folder, host)
    with refusal():
        deltatune.export(hosted(method="Prefix(length=3)"), "mine", tmp_path / "out", "sglang")
    assert not (tmp_path / "out").exists()
