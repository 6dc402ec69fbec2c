"""The page "From PEFT": both columns of its table on the same weights, compared."""

import re
from pathlib import Path

import pytest
import torch

import deltatune
from deltatune import LoRA
from support import models

peft = pytest.importorskip("peft")
PAGE = Path(__file__).parents[2] / "docs" / "from_peft.md"


@torch.no_grad()
def logits(model, **more):
    return model.eval()(**models.inputs("bert"), **more).logits


@pytest.fixture
def pair(tmp_path):
    """PEFT's model with LoRAs `a` and `b` of random values, and a host with the same ones."""
    theirs = peft.get_peft_model(models.tiny("bert", "classify"), config(), adapter_name="a")
    theirs.add_adapter("b", config(r=2))
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            seed = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.data = torch.randn(parameter.shape, generator=seed) * 0.2
    theirs.save_pretrained(tmp_path / "theirs")
    host = deltatune.Host(models.tiny("bert", "classify"))
    for name in ("a", "b"):
        host.load(tmp_path / "theirs" / name)
    host.use("a")
    torch.testing.assert_close(logits(host.model), logits(theirs))
    return theirs, host


def config(**options):
    return peft.LoraConfig(**{"r": 4, "target_modules": ["query", "value"]} | options)


def same(theirs, ours):
    torch.testing.assert_close(logits(ours), logits(theirs))


def attach(theirs, host, tmp_path):
    before = host.adapters["a"].tensors().keys()
    host.detach("a")
    host.attach("a", LoRA(r=4), head=False)
    assert host.adapters["a"].tensors().keys() == before


def from_pretrained(theirs, host, tmp_path):
    host.detach("a")
    host.load(tmp_path / "theirs" / "a")
    host.use("a")
    same(theirs, host.model)


def add_adapter(theirs, host, tmp_path):
    theirs.add_adapter("c", config())
    theirs.set_adapter("c")
    host.attach("c", LoRA(r=4), head=False)
    host.use("c")
    same(theirs, host.model)  # a new adapter changes nothing, here as there


def load_adapter(theirs, host, tmp_path):
    theirs.load_adapter(str(tmp_path / "theirs" / "b"), "c")
    theirs.set_adapter("c")
    host.load(tmp_path / "theirs" / "b", name="c")
    host.use("c")
    same(theirs, host.model)


def set_adapter(theirs, host, tmp_path):
    theirs.set_adapter("b")
    host.use("b")
    same(theirs, host.model)


def disable_adapter(theirs, host, tmp_path):
    with theirs.disable_adapter(), host.disabled():
        same(theirs, host.model)
    same(theirs, host.model)


def delete_adapter(theirs, host, tmp_path):
    theirs.delete_adapter("b")
    host.detach("b")
    assert list(host.adapters) == list(theirs.peft_config) == ["a"]
    same(theirs, host.model)


def unload(theirs, host, tmp_path):
    plain = theirs.unload()
    host.detach("a")
    host.detach("b")
    same(plain, host.model)
    assert host.model.state_dict().keys() == plain.state_dict().keys()


def merge_adapter(theirs, host, tmp_path):
    theirs.merge_adapter()
    assert host.merge_("a") < 1e-4
    same(theirs, host.model)


def unmerge_adapter(theirs, host, tmp_path):
    merge_adapter(theirs, host, tmp_path)
    theirs.unmerge_adapter()
    host.unmerge_("a")
    same(theirs, host.model)


def merge_and_unload(theirs, host, tmp_path):
    plain, ours = theirs.merge_and_unload(), host.merge_and_unload()
    same(plain, ours)
    assert plain.state_dict().keys() == ours.state_dict().keys()


def add_weighted_adapter(theirs, host, tmp_path):
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "ab", "cat")
    theirs.set_adapter("ab")
    host.use({"a": 0.7, "b": 0.3})
    same(theirs, host.model)


def save_pretrained(theirs, host, tmp_path):
    host.save("a", tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(models.tiny("bert", "classify"), tmp_path / "ours")
    same(again, host.model)


def adapter_names(theirs, host, tmp_path):
    names = ["a", "__base__", "b"]
    host.use(["a", None, "b"])
    torch.testing.assert_close(logits(host.model), logits(theirs, adapter_names=names))


def configured(theirs, ours, tmp_path):
    """PEFT's config and our method change the same modules with as many parameters."""
    model = peft.get_peft_model(models.tiny("bert", "classify"), theirs)
    model.save_pretrained(tmp_path / "configured")
    host = deltatune.Host(models.tiny("bert", "classify"))
    read, built = host.load(tmp_path / "configured"), host.attach("ours", ours, head=False)
    shapes = [{key: tensor.shape for key, tensor in adapter.tensors().items()} for adapter in (read, built)]
    assert shapes[0] == shapes[1]


def target_modules(theirs, host, tmp_path):
    configured(config(), LoRA(r=4, sites="*.attn.{q,v}"), tmp_path)


def rank_pattern(theirs, host, tmp_path):
    pattern = config(rank_pattern={"layer.0.attention.self.query": 2})
    configured(pattern, LoRA(r=4, ranks=(("layers.0.attn.q", 2),)), tmp_path)


def modules_to_save(theirs, host, tmp_path):
    model = peft.get_peft_model(models.tiny("bert", "classify"), config(modules_to_save=["classifier"]))
    model.save_pretrained(tmp_path / "with_head")
    ours = deltatune.Host(models.tiny("bert", "classify"))
    read, built = ours.load(tmp_path / "with_head"), ours.attach("ours", LoRA(r=4))
    assert read.tensors().keys() == built.tensors().keys()
    assert any(key.startswith("head.") for key in read.tensors())


ELSEWHERE = {
    "print_trainable_parameters": "tests/core/test_host_calls.py",
    "push_to_hub": "tests/store/test_adapter_hub.py",
    "init_lora_weights": "tests/training/initial_values/test_initial_values.py",
    "replace_lora_weights_loftq": "tests/training/initial_values/test_initial_values.py",
    "LoHaConfig": "tests/store/test_peft_types.py",
}
"""Rows that other files test; they name PEFT's call, or its part that does the same."""
ROWS = {
    "get_peft_model": attach,
    "PeftModel.from_pretrained": from_pretrained,
    **{
        test.__name__: test
        for test in (
            add_adapter,
            load_adapter,
            set_adapter,
            disable_adapter,
            delete_adapter,
            unload,
            merge_adapter,
            unmerge_adapter,
            merge_and_unload,
            add_weighted_adapter,
            save_pretrained,
            adapter_names,
            target_modules,
            rank_pattern,
            modules_to_save,
        )
    },
}


def rows_of_the_page():
    """What each row calls: `model.set_adapter("b")` -> set_adapter, `LoraConfig(rank_pattern=...)` -> its option."""
    table = PAGE.read_text(encoding="utf-8").partition("## Save calls")[0]
    calls = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    names = []
    for call in calls:
        option = re.match(r"LoraConfig\((\w+)=", call) or re.search(r"\*\*batch, (\w+)=", call)
        names.append(option[1] if option else call.partition("(")[0].removeprefix("model."))
    return names


def test_every_row_of_the_page_is_tested():
    assert sorted(rows_of_the_page()) == sorted([*ROWS, *ELSEWHERE])
    root = PAGE.parents[1]
    for name, file in ELSEWHERE.items():
        assert name.removeprefix("replace_lora_weights_") in (root / file).read_text(encoding="utf-8")


QUICK = ("adapter_names", "add_weighted_adapter", "merge_and_unload")
SOME = [row if row in QUICK else pytest.param(row, marks=pytest.mark.slow) for row in ROWS]


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("row", SOME)
def test_both_columns_give_the_same(row, pair, tmp_path):
    ROWS[row](*pair, tmp_path)
