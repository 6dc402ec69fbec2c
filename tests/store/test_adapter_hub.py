"""Adapters on the hub, against a local server: uploaded with a card, loaded by name at a revision, and verified."""

import json

import pytest
import torch
import yaml

import deltatune
from deltatune import LoRA
from deltatune.core.errors import DeltatuneError
from support import models
from support.hub_server import hub_server
from support.language_models import lm_host, randomize_


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "cache") as repositories:
        yield repositories


@torch.no_grad()
def logits(host):
    return host.model.eval()(**models.inputs("llama")).logits


def bare():
    return deltatune.Host(models.tiny("llama", "lm", dropout=False))


def files_of(repository, branch="main"):
    return repository.commits[repository.branches[branch]]


def test_an_adapter_goes_to_the_hub_and_comes_back(hub):
    host = lm_host("llama")
    url = host.push_to_hub("me/german")
    files = files_of(hub["me/german"])
    assert url.endswith(f"/me/german/commit/{hub['me/german'].branches['main']}")
    assert {"adapter.json", "adapter.safetensors", "manifest.json", "adapter_config.json", "README.md"} <= files.keys()
    assert not [name for name in files if name.startswith(("model", "config"))], "nothing of the base"
    again = bare()
    again.load("me/german")
    assert list(again.adapters) == ["german"]
    assert torch.equal(logits(again), logits(host))


@pytest.mark.slow
def test_the_models_own_call_does_the_same(hub):
    host = lm_host("llama")
    host.model.push_to_hub("me/german", commit_message="Trained", max_shard_size="5GB")
    again = bare()
    again.load("me/german", name="mine")
    assert torch.equal(logits(again), logits(host))
    with pytest.raises(DeltatuneError, match=r"host\.push_to_hub\('me/german'\)"):
        host.model.save_pretrained("german", push_to_hub=True, repo_id="me/german")


@pytest.mark.slow
def test_a_revision_is_kept(hub):
    host = lm_host("llama")
    host.push_to_hub("me/german")
    first, wanted = hub["me/german"].branches["main"], logits(host)
    with torch.no_grad():
        for _, parameter in host.trainable("a"):
            parameter.mul_(-0.5)
    host.push_to_hub("me/german", revision="second")
    newer = logits(host)
    assert not torch.equal(newer, wanted)
    for revision, outputs in ((None, wanted), (first, wanted), ("main", wanted), ("second", newer)):
        again = bare()
        again.load("me/german", revision=revision)
        assert torch.equal(logits(again), outputs)
    with pytest.raises(DeltatuneError, match="as a name on the hub at revision 'third' it cannot be loaded"):
        bare().load("me/german", revision="third")


@pytest.mark.slow
def test_another_method_replaces_the_files_of_the_first(hub):
    host = lm_host("llama")
    host.push_to_hub("me/german")
    host.detach("a")
    host.attach("a", deltatune.Bottleneck(size=4), head=False)
    randomize_(host)
    host.push_to_hub("me/german")
    assert "adapter_config.json" not in files_of(hub["me/german"]), "PEFT has no bottleneck"
    again = bare()
    again.load("me/german")
    assert torch.equal(logits(again), logits(host))


def test_the_card_says_what_is_known_and_stays_when_the_author_has_written(hub):
    host = lm_host("llama")
    host.model.config._name_or_path = "someone/tiny-llama"
    host.adapters["a"].extra.update(
        task={"task": "classify", "labels": ["good | `x`\nbad", "fine"]},
        data="reviews.csv",
        scores={"accuracy": 0.91234},
    )
    host.push_to_hub("me/german", tags=["demo"])
    text = files_of(hub["me/german"])["README.md"].decode()
    meta = yaml.safe_load(text.split("---")[1])
    assert meta["library_name"] == "deltatune"
    assert meta["base_model"] == "someone/tiny-llama"
    assert meta["tags"] == ["deltatune", "adapter", "demo"]
    assert meta["pipeline_tag"] == "text-classification"
    assert "license" not in meta
    assert "`LoRA(r=4)`" in text
    assert "| Score: accuracy | 0.9123 |" in text
    assert "reviews.csv" in text
    assert "`good / 'x' bad`, `fine`" in text
    assert 'host.load("me/german")' in text
    hub["me/german"].commit("main", {"README.md": b"by the author"})
    host.push_to_hub("me/german")
    assert files_of(hub["me/german"])["README.md"] == b"by the author"


@pytest.mark.slow
def test_a_local_path_of_the_base_is_no_name_on_the_hub(hub, tmp_path):
    host = lm_host("llama")
    host.model.config._name_or_path = str(tmp_path)
    host.push_to_hub("me/german")
    assert "base_model" not in yaml.safe_load(files_of(hub["me/german"])["README.md"].decode().split("---")[1])


@pytest.mark.slow
def test_damaged_files_on_the_hub_are_refused(hub):
    lm_host("llama").push_to_hub("me/german")
    hub["me/german"].commit("main", {"adapter.safetensors": b"x"})
    host = bare()
    with pytest.raises(DeltatuneError, match=r"adapter\.safetensors was changed or damaged"):
        host.load("me/german")
    assert not host.adapters


@pytest.mark.slow
def test_another_base_is_refused(hub):
    lm_host("llama").push_to_hub("me/german")
    other = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.1)
    with pytest.raises(DeltatuneError, match="other weights"):
        other.load("me/german")


@pytest.mark.slow
def test_code_and_pickles_are_not_fetched(hub, tmp_path):
    lm_host("llama").push_to_hub("me/german")
    hub["me/german"].commit("main", {"modeling.py": b"raise SystemExit", "optimizer.pt": b"x", "weights.bin": b"x"})
    bare().load("me/german")
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert "adapter.json" in fetched
    assert not fetched & {"modeling.py", "optimizer.pt", "weights.bin"}


def test_names_that_are_not_there_say_both_places(hub):
    with pytest.raises(DeltatuneError, match=r"no folder here is called 'me/nothing'.*as a name on the hub"):
        bare().load("me/nothing")


@pytest.mark.slow
def test_what_the_hub_refuses_is_said(hub):
    host = lm_host("llama")
    with pytest.raises(DeltatuneError, match="the hub did not take 'a' as forbidden/german"):
        host.push_to_hub("forbidden/german")
    with pytest.raises(DeltatuneError, match="push_to_hub has no option 'privat', did you mean 'private'"):
        host.push_to_hub("me/german", privat=True)
    assert "me/german" not in hub


@pytest.mark.slow
def test_one_of_several_adapters_must_be_chosen(hub):
    host = lm_host("llama")
    host.attach("b", LoRA(r=2), head=False)
    with pytest.raises(DeltatuneError, match="choose an adapter with name=; attached: a, b"):
        host.push_to_hub("me/german")
    host.push_to_hub("me/german", name="b", private=True)
    assert json.loads(files_of(hub["me/german"])["adapter.json"])["text"] == "LoRA(r=2)"


def test_a_folder_is_never_looked_up_on_the_hub(tmp_path, monkeypatch):
    """Without a server: a folder wins over a name, and paths that are no names are not asked for."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    host = lm_host("llama")
    monkeypatch.chdir(tmp_path)
    host.save("a", "me/german")
    assert bare().load("me/german").method == LoRA(r=4)
    for path in ("./me/nothing", "/me/nothing", "nothing", "a/b/c", "../x", "~/x"):
        with pytest.raises(DeltatuneError, match="no adapter folder"):
            bare().load(path)
    with pytest.raises(DeltatuneError, match="only names on the hub have revisions"):
        bare().load("me/german", revision="main")


def test_without_the_network_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DeltatuneError, match=r"as a name on the hub it cannot be loaded: .*(offline|cached)"):
        bare().load("me/nothing")
