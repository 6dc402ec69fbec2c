"""FourierFT: few and many tokens give the same, places are PEFT's and are saved, coefficients are at most all."""

import peft
import pytest
import torch
from safetensors.torch import load_file

from deltatune import DeltatuneError, FourierFT, Host, parse
from support import models


@torch.no_grad()
def test_few_and_many_tokens_are_transformed_alike():
    adapter = Host(models.tiny("bert")).attach("a", FourierFT(n=70, init="normal", sites="*.ffn.in"))
    delta = next(adapter.entries())[2]
    x = torch.randn(64, 32)
    h = torch.zeros(64, 48)
    many = delta(x, h)  # made from the matrix
    few = torch.cat([delta(part, h[:8]) for part in x.split(8)])
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-4)
    assert delta(x.bfloat16(), h.bfloat16()).dtype == torch.bfloat16
    half = delta(x[:8].bfloat16(), h[:8].bfloat16())
    torch.testing.assert_close(half.float(), many[:8], rtol=2e-2, atol=2e-2 * float(many.abs().max()))


@torch.no_grad()
def test_the_matrix_is_that_of_peft():
    config = peft.FourierFTConfig(n_frequency=50, scaling=100, target_modules=["query", "dense"], random_loc_seed=5)
    theirs = peft.get_peft_model(models.tiny("bert"), config).base_model.model
    host = Host(models.tiny("bert"))
    adapter = host.attach("a", FourierFT(n=50, seed=5, init="normal", sites=("*.attn.q", "*.ffn.{in,out}")))
    for _, site, delta in adapter.entries():
        layer = theirs.get_submodule(site.module)
        layer.fourierft_spectrum["default"].copy_(delta.c)
        merged = delta.merge({"weight": torch.zeros(site.width_out, site.width_in)})["weight"]
        torch.testing.assert_close(merged, layer.get_delta_weight("default"), rtol=1e-4, atol=1e-5)


def test_places_are_the_same_for_one_shape_and_in_the_file(tmp_path):
    host = Host(models.tiny("bert"))
    adapter = host.attach("a", FourierFT(n=40, sites=("*.attn.{q,v}", "layers.0.ffn.in")), seed=3)
    host.save("a", tmp_path / "a")
    stored = load_file(tmp_path / "a/adapter.safetensors")
    places = {name: t for name, t in stored.items() if name.startswith("shared.")}
    assert {name: len(t) for name, t in places.items()} == {
        "shared.fourierft.32x32": 40,
        "shared.fourierft.48x32": 40,
    }
    expected = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(777))[:40]
    assert torch.equal(places["shared.fourierft.32x32"], expected)
    assert adapter.count == 5 * 40


def test_a_small_matrix_has_all_its_coefficients():
    sites = Host(models.tiny("llama")).sites
    assert FourierFT(n=1000).count(sites) == 2 * (1000 + 16 * 32)
    assert FourierFT().limit(sites) == 32 * 32


def test_the_first_coefficients():
    adapter = Host(models.tiny("bert")).attach("a", FourierFT(n=1000, init="normal", sites="layers.0.attn.q"))
    (coefficients,) = (delta.c for _, _, delta in adapter.entries())
    assert coefficients.detach().std() == pytest.approx(1, abs=0.1)
    assert FourierFT().starts_as_base
    assert not FourierFT(init="normal").starts_as_base
    for text in ("FourierFT(n=0)", "FourierFT(seed=-1)", f"FourierFT(seed={2**63})"):
        with pytest.raises(DeltatuneError, match="must be"):
            parse(text)
