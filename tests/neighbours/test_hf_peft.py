"""HF PEFT: its models and its folders."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import hosted, logits, randomize_, refused, works

NAME = "PEFT"
PACKAGES = ("peft",)
NOT_APPLICABLE = {"train": "each library trains its own adapters"}
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own


def theirs(model=None):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model or models.tiny("llama", "lm", dropout=False), config)


@refused("PEFT has put adapters of its own on this model")
def test_attach(refusal):
    model = theirs()
    with refusal():
        deltatune.Host(model)
    host = deltatune.Host(model.unload())
    host.attach("mine", deltatune.LoRA(r=2))


@works()
def test_save(tmp_path):
    """Our folder is PEFT's too, where PEFT has the method."""
    import peft

    host = hosted()
    host.save("mine", tmp_path / "out")
    again = peft.PeftModel.from_pretrained(models.tiny("llama", "lm", dropout=False), tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(host.model))


@works("host.load(folder)")
def test_reload(tmp_path):
    model = theirs()
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load(folder)
    torch.testing.assert_close(logits(host.model), logits(model))


@pytest.mark.slow
@works()
def test_serve(tmp_path):
    """Folders of PEFT beside others in one batch: each row equals PEFT's."""
    model = theirs()
    model.save_pretrained(tmp_path / "theirs")
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load(tmp_path / "theirs", name="theirs")
    host.attach("other", deltatune.Bottleneck(size=4))
    randomize_(host, "other")
    rows = len(models.inputs("llama")["input_ids"])
    host.use(["theirs"] + ["other"] * (rows - 1))
    torch.testing.assert_close(logits(host.model)[0], logits(model)[0])
