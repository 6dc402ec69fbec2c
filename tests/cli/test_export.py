"""`deltatune export`: folders and stores, several at once, JSON, and errors before anything is written."""

import json
import shutil
from contextlib import ExitStack

import pytest
import torch

import deltatune as dt
from deltatune.testing.tiny_models import tiny
from support.command_line import ran


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Llama's folder and two adapters of it, in folders and in a store."""
    from support.models import tiny_tokenizer

    place = tmp_path_factory.mktemp("exports")
    tiny("llama", head="lm", dropout=False).save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    from transformers import AutoModelForCausalLM

    host = dt.Host(AutoModelForCausalLM.from_pretrained(place / "base"))
    for name, method in {"german": "LoRA(r=2)", "legal": "DoRA(r=2)", "prefix": "Prefix(length=2)"}.items():
        adapter = host.attach(name, dt.parse(method), head=False)
        for parameter in adapter.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        host.save(name, place / name)
    assert ran("store", "add", place / "german", place / "legal", "--store", place / "store").code == 0
    return place


def test_an_adapter_is_exported_with_the_line_that_serves_it(place, tmp_path):
    done = ran("export", place / "german", "--for", "vllm", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert f"--lora-modules german={tmp_path / 'out'}" in done.out.replace("\n", "")
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_adapters_of_a_store_fill_a_folder_each(place, tmp_path):
    words = ["--store", place / "store", "--for", "sglang", "--out", tmp_path / "out", "--json"]
    done = ran("export", "german", "legal", *words)
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert [(one["name"], one["rank"]) for one in content["adapters"]] == [("german", 2), ("legal", 32)]
    assert all((tmp_path / "out" / name / "adapter_config.json").exists() for name in ("german", "legal"))


def test_folders_of_one_name_are_all_exported(place, tmp_path):
    """A number that makes a name unique is not that of another folder."""
    from deltatune.cli.commands.export import _folders

    paths = [tmp_path / "a" / "mine-2", tmp_path / "b" / "mine", tmp_path / "c" / "mine"]
    for path in paths:
        shutil.copytree(place / "german", path)
    folders = _folders([str(path) for path in paths], None, tmp_path / "out", ExitStack())
    assert list(folders) == ["mine-2", "mine", "mine-3"]
    assert [folder.resolve() for folder in folders.values()] == paths


def test_what_the_program_cannot_take_is_named(place, tmp_path):
    done = ran("export", place / "prefix", "--for", "vllm", "--out", tmp_path / "out")
    assert done.code == 2
    assert "Prefix acts on activations" in done.err
    assert not (tmp_path / "out").exists()
    assert "did you mean 'gguf'" in ran("export", place / "german", "--for", "ggfu", "--out", tmp_path / "out").err
    assert "German" in ran("export", "German", "--store", place / "store", "--for", "vllm", "--out", tmp_path / "o").err
    assert "no store" in ran("export", "x", "--store", place / "none", "--for", "vllm", "--out", tmp_path / "o").err
    assert "no adapter folder" in ran("export", place / "none", "--for", "vllm", "--out", tmp_path / "out").err
    assert "holds no adapter" in ran("export", place / "base", "--for", "vllm", "--out", tmp_path / "out").err
    over = ran("export", place / "german", "--for", "vllm", "--out", place / "german")
    assert over.code == 2
    assert (place / "german" / "adapter.json").exists()


def test_a_whole_model_is_written_with_merge(place, tmp_path):
    words = ["--merge", "--weight", "0.5", "--dtype", "bfloat16", "--for", "tgi", "--out", tmp_path / "out", "--quiet"]
    assert ran("export", place / "legal", *words).code == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["form"] == "model"
    assert (tmp_path / "out" / "model.safetensors").exists()
