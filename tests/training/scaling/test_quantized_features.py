"""What a frozen base computed is cached by its contents: one base's features never serve another's."""

from __future__ import annotations

import torch

from deltatune.core.host import Host
from deltatune.models.loading import load_backbone
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.training.scaling.feature_cache import key_of


def key(tiny_folder, scheme=None, factor=None):
    model = load_backbone(str(tiny_folder))[0]
    weight = next(module for module in model.modules() if isinstance(module, torch.nn.Linear)).weight
    if factor is not None:
        with torch.no_grad():
            weight.mul_(factor)
    if scheme is not None:
        quantize_(model, scheme)
    return key_of(Host(model), "block 1", [b"a row"])


def test_every_way_to_store_a_base_has_its_own_key(tiny_folder):
    schemes = (None, "nf4", "NF4(double=False)", "fp4", "int8", "NF4(block=128)")
    keys = {scheme: key(tiny_folder, scheme) for scheme in schemes}
    assert len(set(keys.values())) == len(schemes)
    assert keys == {scheme: key(tiny_folder, scheme) for scheme in schemes}, "the same in every process"


def test_equal_codes_with_other_scales_have_another_key(tiny_folder):
    """Twice the weights have the codes of the weights."""
    for scheme in ("nf4", "int8"):
        assert key(tiny_folder, scheme) != key(tiny_folder, scheme, factor=2.0)
