"""Every method on every family: it works in full, or it is refused in words; and docs/coverage.md says so."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from deltatune import BitFit, DeltatuneError, Host, LoRA, Prefix, Prompt, find_sites
from deltatune.cli.commands.sites import _show as show_sites
from deltatune.cli.commands.sites import sites as sites_command
from deltatune.cli.commands.sites import summarise
from deltatune.core.merging import verification_inputs
from deltatune.core.method import Method
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.testing.coverage import Family, cover, defaults, families
from support import models

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("families", ROOT / "docs/families.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)

QUICK = ["albert", "deberta-v2", "falcon-40b", "mixtral", "lfm2", "vit"]
"""One of each sort: the slow tests try them all."""


MINIMUM = json.loads((Path(__file__).parent / "coverage_minimum.json").read_text())
"""How many methods work on each family, at least. `make docs` does not write it: only a deliberate edit lowers it."""


def working(row):
    """Number of methods that work on a family, from its row of the page."""
    (count,) = re.match(r"\| \S+ \| \w+ \| (all|\d+)(?: of \d+)? \|", row).groups()
    return len(defaults()) if count == "all" else int(count)


def written(kind):
    return next(line for line in pages.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {kind} |"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in families()]
)
def test_a_family_takes_each_method_or_refuses_it(kind):
    row = pages.row(kind)
    assert working(row) >= MINIMUM[kind], f"fewer methods work on {kind} than before: {row}"
    assert row == written(kind), "docs/coverage.md is stale: run `make docs`"


def test_no_family_loses_methods():
    assert list(MINIMUM) == families()
    fewer = {kind: working(written(kind)) for kind in families() if working(written(kind)) < MINIMUM[kind]}
    assert not fewer, f"fewer methods work than tests/testing/coverage_minimum.json says: {fewer}"
    assert len(defaults()) >= max(MINIMUM.values())


def test_a_lost_method_is_seen():
    assert working("| bert | BertModel | all | – |") == len(defaults())
    assert working("| fnet | FNetModel | 19 of 34 | `LoRA`: no site |") == 19 == MINIMUM["fnet"]


def test_the_page_names_every_family_and_method():
    text = pages.PAGE.read_text(encoding="utf-8")
    assert text.startswith(pages.head()), "docs/coverage.md is stale: run `make docs`"
    rows = text.removeprefix(pages.head()).split("\n")[1:-1]
    assert [row.split("|")[1].strip() for row in rows] == families()


class _Broken(Method):
    """A method that attaches and does nothing, or fails in another way."""

    starts_as_base = True

    def pick(self, sites):
        return [sites["layers.0.attn.q"]]

    def build(self, site):
        raise RuntimeError("no such luck")


def test_what_fails_is_no_refusal():
    family = Family("bert")
    with pytest.raises(RuntimeError, match="no such luck"):
        family.try_(_Broken())
    assert family.try_(LoRA(r=2)) is None
    assert "has no biases" in Family("llama").try_(BitFit())


def test_a_method_that_changes_nothing_is_found_out(monkeypatch):
    family = Family("bert")
    with torch.no_grad():
        monkeypatch.setattr("deltatune.testing.coverage.attach", lambda host, name, method: host.attach(name, method))
        with pytest.raises(AssertionError, match="changes no output"):
            family.try_(LoRA(r=2))


def test_a_tensor_out_of_reach_is_found_out(monkeypatch):
    family = Family("bert")
    site = family.host.sites["pooler"]
    family.host.model.pooler = None  # sites still name it
    with pytest.raises((AssertionError, AttributeError)):
        family.try_(LoRA(r=2, sites=site.name))


@pytest.mark.parametrize("kind", ["vit", "swin", "dinov3_vit", "wav2vec2", "whisper", "audio-spectrogram-transformer"])
def test_models_of_images_and_sounds_merge_on_probes_of_their_own(kind):
    host = Host(models.tiny(kind))
    batch = verification_inputs(host.model, host.sites.facts)
    assert set(batch) == set(models.inputs(kind))
    adapter = host.attach("a", LoRA(r=2))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.2)
        live = host.model(**batch)[0]
        assert 0 < host.merge_("a") < 1e-3  # measured, not assumed
        assert torch.allclose(host.model(**batch)[0], live, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        ("vit", Prompt(length=2), "this ViTModel has no token embeddings"),
        ("whisper", Prompt(length=2), "this WhisperModel has no token embeddings in its encoder"),
        ("gptj", Prefix(length=2), "no site of this GPTJModel matches '\\*.kv', as its attention does not run through"),
        ("longt5", Prefix(length=2), "as its attention does not run through transformers' AttentionInterface"),
        ("fnet", Prefix(length=2), "no site of this FNetModel matches '\\*.kv'\n"),
        ("deepseek_v3", LoRA(), "linear maps without a role .*kv_a_proj_with_mqa"),
    ],
)
def test_refusals_name_what_is_missing(kind, method, message):
    host = Host(models.tiny(kind))
    with pytest.raises(DeltatuneError, match=message):
        host.attach("a", method)
    assert not host.adapters


def test_clip_that_pools_at_the_largest_id_takes_no_prompt():
    """With eos_token_id 2 CLIP reads the output at the largest token id, which would be a virtual one."""
    sites = find_sites(models.tiny("clip_text_model", eos_token_id=2))
    assert "embed" not in sites
    assert "embed" in find_sites(models.tiny("clip_text_model"))


def test_rows_of_images_keep_their_routes():
    """Windowed attention makes many rows of one image; each image still meets its own adapter."""
    for kind in ("vit", "swin"):
        host, batch = Host(models.tiny(kind, dropout=False)), models.inputs(kind)
        host.attach("a", Prefix(length=2))
        host.attach("b", Bottleneck(size=4) + LoRA(r=2))
        with torch.no_grad():
            for adapter in host.adapters.values():
                for parameter in adapter.parameters():
                    parameter.normal_(std=0.3)
            alone = []
            for name in ("a", "b", None):
                host.use(name)
                alone.append(host.model(**batch)[0])
            host.use(["a", "b", None])
            mixed = host.model(**batch)[0]
        for row, wanted in enumerate(alone):
            assert torch.allclose(mixed[row], wanted[row], atol=1e-5), (kind, row)


def test_there_are_methods_and_families():
    assert len(families()) >= 60
    assert len(defaults()) >= 12
    assert set(cover("bert").values()) == {None}


def test_the_table_of_sites_tells_what_only_some_layers_have(capsys):
    model = models.tiny("lfm2", "lm")
    found = summarise(model, find_sites(model), "lfm2")
    assert found["uneven"]["layers.*.attn.q"] == [1, 2]
    assert "layers.*.ffn" not in found["uneven"]
    show_sites(found)
    shown = capsys.readouterr().out
    assert "In 1 of 2 layers only: layers.*.attn.q," in shown
    assert "Matrices without a name: model.layers.*.conv.in_proj" in shown
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "matrix's input" in rows["layers.*.ffn.act"]
    assert "residual stream" in rows["layers.*.residual"]
    assert "matrix, tied" in rows["lm_head"]
    order = [name for name in rows if name.startswith(("embed", "layers", "norm", "lm_head"))]
    assert order.index("embed") < order.index("layers.*.attn.q") < order.index("layers.*.ffn") < order.index("lm_head")


@pytest.mark.parametrize("kind", ["vit", "whisper", "mixtral", "falcon-40b"])
def test_sites_are_shown_for_any_family(kind, tmp_path, capsys):
    models.tiny(kind).config.save_pretrained(tmp_path)
    sites_command(str(tmp_path))
    shown = capsys.readouterr().out
    name = "WhisperEncoder" if kind == "whisper" else type(models.tiny(kind)).__name__  # sounds are read by the encoder
    assert name in shown
    assert all(name in shown for name in ("attn.q", "attn.heads", "ffn", "residual"))
