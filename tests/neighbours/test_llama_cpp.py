"""GGUF files for llama.cpp."""

import deltatune
from support.neighbours import NO_LORA, ONLY_SERVES, hosted, works

NAME = "llama.cpp: its file, read by gguf"
PACKAGES = ("gguf",)
NOT_APPLICABLE = {
    **ONLY_SERVES,
    "serve": "in an environment of its own: `benchmarks/other_programs.py`",
}


@works('deltatune.export(host, "mine", folder, "gguf")', but=NO_LORA)
def test_save(refusal, tmp_path):
    import gguf

    host = hosted()
    folder = tmp_path / "out"
    deltatune.export(host, "mine", folder, "gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(folder / "adapter.gguf").tensors}
    assert names == {f"blk.{i}.attn_{which}.weight.lora_{part}" for i in (0, 1) for which in "qv" for part in "ab"}
    with refusal():
        deltatune.export(hosted(method="Prefix(length=3)"), "mine", tmp_path / "prefix", "gguf")
