"""`--init eva` and `--init loftq`, on the command line and in recipes: the values of the Python calls."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deltatune import DeltatuneError, LoRA, attach_eva, attach_loftq
from deltatune.core.delta import generator_for
from deltatune.data import read
from deltatune.store.adapter_folder import read_config
from deltatune.training import Settings
from deltatune.training.initial_values.start_values import check_init
from deltatune.training.job import Job, prepare
from deltatune.training.open_session import open_host
from support.command_line import QUICK, ran, review_folder

METHOD = "LoRA(r=4, sites='*.attn.{q,v}')"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


def tensors(adapter) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapter.state_dict().items() if "head" not in name}


def prepared(tiny_folder: Path, data: Path, init: str | None, quantize: str | None = None):
    settings = Settings(epochs=1, batch_size=16, precision="float32", seed=3)
    job = Job(str(tiny_folder), read(data), METHOD, task={"max_length": 32}, settings=settings, quantize=quantize)
    job = Job(**{**{name: getattr(job, name) for name in job.__dataclass_fields__}, "init": init})
    return prepare(job)


def test_eva_is_that_of_python(tiny_folder: Path, data: Path) -> None:
    ready = prepared(tiny_folder, data, "eva")
    host, _ = open_host(str(tiny_folder))
    rows = ready.encoded["train"]
    order = torch.randperm(len(rows), generator=generator_for(3, "init")).tolist()

    def batch(numbers):
        width = max(len(rows[n]["input_ids"]) for n in numbers)
        ids = torch.zeros(len(numbers), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, n in enumerate(numbers):
            ids[i, : len(rows[n]["input_ids"])] = torch.tensor(rows[n]["input_ids"])
            mask[i, : len(rows[n]["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask}

    batches = [batch(order[start : start + 16]) for start in range(0, len(rows), 16)]
    ours = attach_eva(host, "adapter", LoRA(r=4, sites="*.attn.{q,v}"), batches, seed=3, head=False)
    theirs = ready.session.adapter
    assert repr(ours.method) == repr(theirs.method)
    mine, found = tensors(ours), tensors(theirs)
    assert mine.keys() <= found.keys()
    for name, value in mine.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4)
    plain = tensors(prepared(tiny_folder, data, None).session.adapter)
    assert any(value.shape != plain[name].shape or not torch.equal(value, plain[name]) for name, value in mine.items())


def test_loftq_is_that_of_python(tiny_folder: Path, data: Path) -> None:
    ready = prepared(tiny_folder, data, "loftq", "nf4")
    host, _ = open_host(str(tiny_folder), quantize="nf4")
    ours = tensors(attach_loftq(host, "adapter", LoRA(r=4, sites="*.attn.{q,v}"), tiny_folder, seed=3, head=False))
    found = tensors(ready.session.adapter)
    for name, value in ours.items():
        assert torch.equal(found[name], value), name
    assert any(value.abs().max() > 0 for name, value in found.items() if ".B" in name)


@pytest.mark.parametrize("init", ["eva", pytest.param("loftq", marks=pytest.mark.slow)])
def test_the_command_and_the_recipe_train_the_same(init: str, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    quantize = ["--quantize", "nf4"] if init == "loftq" else []
    command = ("train", "--model", tiny_folder, "--data", data, "--method", METHOD, "--init", init, *QUICK, *quantize)
    done = ran(*command, "--out", tmp_path / "command")
    assert done.code == 0, done.err
    assert read_config(tmp_path / "command/adapter")["extra"]["init"] == init
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_folder}\ndata: {data}\nmethod: {METHOD}\ninit: {init}\ntask: {{max_length: 32}}\n"
        f"settings: {{epochs: 1, precision: float32}}\n" + ("quantize: nf4\n" if quantize else "")
    )
    done = ran("run", recipe, f"out={tmp_path / 'recipe'}")
    assert done.code == 0, done.err
    ours, theirs = (load_file(tmp_path / name / "adapter/adapter.safetensors") for name in ("command", "recipe"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    again = ran(*command, "--out", tmp_path / "command")
    assert "finished before" in again.out
    other = ran(*[word for word in command if word not in ("--init", init)], "--out", tmp_path / "command")
    assert other.code == 2, "other initial values are another run"
    assert "init" in other.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--init", "eav"), "init must be one of 'eva', 'loftq', did you mean 'eva'?"),
        (("--init", "eva", "--method", "Prefix()"), "EVA starts a LoRA, RsLoRA or DoRA, not Prefix("),
        (("--init", "loftq", "--method", "DoRA()", "--quantize", "nf4"), "LoftQ starts a LoRA or RsLoRA, not DoRA("),
        (
            ("--init", "loftq"),
            "LoftQ starts from what quantisation loses: quantise the plain model, such as --quantize",
        ),
        (("--init", "eva", "--method", "LoRA(r=16)", "--batch-size", "1"), "tokens in each batch"),
        (("--init", "eva", "--method", "PET()"), "--init eva"),
    ],
)
def test_what_cannot_start_so(
    options: tuple[str, ...], words: str, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    done = ran("train", "--model", tiny_folder, "--data", data, *QUICK, *options, "--out", tmp_path / "out")
    assert done.code == 2, done.out
    assert words in done.err
    assert not (tmp_path / "out").exists()


def test_from_has_values_already() -> None:
    with pytest.raises(DeltatuneError, match="goes on from the values of the adapter"):
        check_init("eva", "LoRA()", None, continued=True)
