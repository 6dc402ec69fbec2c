"""LoftQ: LoRA beside a quantised base that starts from what quantisation has lost.

Li et al. 2023, https://arxiv.org/abs/2310.08659. The paper alternates Q ← q(W − B A) and B A ← SVD_r(W − Q). Here the
base's codes stay as they are, Q = q(W), which is its first round: s·B A is the best rank-r part of W − Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.quantization.stored_weights import weight_of
from deltatune.core.sites.base_weights import BaseWeights
from deltatune.core.sites.site import Site
from deltatune.methods.low_rank.dora import DoRA
from deltatune.methods.low_rank.lora import LoRA, LowRank
from deltatune.methods.low_rank.pissa import svd
from deltatune.models.quantization.weight_files import file_tensors

MOST_LOST = 0.5
"""Share of a weight's norm that quantisation may have lost, far above that of 4 bits (about 0.1); beyond, it is another
weight."""


def attach_loftq(
    host: Host,
    name: str,
    method: LoRA,
    original: nn.Module | str | Path,
    *,
    seed: int = 0,
    head: nn.Module | bool | None = None,
) -> Adapter:
    """Attach a LoRA to a quantised base that starts from the best rank-r part of what quantisation has lost.

    original: the model before quantisation, or its folder with safetensors, of which one weight at a time is read.
    Raises DeltatuneError for other methods, sites that are not quantised, and weights that are missing or of another
    shape; then nothing is attached.
    """
    if not isinstance(method, LoRA) or isinstance(method, DoRA):  # DoRA's magnitudes are those of the base
        raise DeltatuneError(f"LoftQ starts a LoRA or RsLoRA, not {method!r}")
    picked = method.pick(host.sites)
    problems = [f"{site.name} is not quantised, so that nothing is lost there" for site in picked if not site.quantized]
    problems += [
        f"{site.name} has {min(site.width_in, site.width_out)} singular values, fewer than its rank {method.rank(site)}"
        for site in picked
        if method.rank(site) > min(site.width_in, site.width_out)
    ]
    raise_all(problems[:8], f"LoftQ cannot start {method!r}:" if problems else "")
    starts = _starts(host, method, picked, original)
    adapter = host.attach(name, method, seed=seed, head=head)
    with torch.no_grad():
        for _, site, delta in adapter.entries():
            if site.name in starts and isinstance(delta, LowRank):
                A, B = starts[site.name]
                delta.A.copy_(A)
                delta.B.copy_(B)
    return adapter


@torch.no_grad()
def _starts(
    host: Host, method: LoRA, picked: Sequence[Site], original: nn.Module | str | Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, in) and B (out, r) of each site: √(S/s) Vᵀ and U √(S/s) of the first r singular values of W − Q."""
    weights = _Originals(original, host)
    starts, problems = {}, []
    for site in picked:
        module = host.model.get_submodule(site.module)
        base, whole = BaseWeights(module, site), weight_of(module)
        try:
            W = weights.like(site.module, whole)
        except DeltatuneError as error:
            problems.append(str(error))
            continue
        r, wide = method.rank(site), torch.promote_types(whole.dtype, torch.float32)
        U, S, Vh = svd(base.oriented(W.to(wide), "weight") - base.weight.to(wide), r)
        root = (S / method.scale(r)).sqrt()
        starts[site.name] = root.unsqueeze(1) * Vh, U * root
    raise_all(problems[:8], f"LoftQ cannot start {method!r}:" if problems else "")
    return starts


class _Originals:
    """The weights of a model before quantisation."""

    def __init__(self, original: nn.Module | str | Path, host: Host) -> None:
        self.modules = dict(original.named_modules()) if isinstance(original, nn.Module) else {}
        self.tensors = {} if isinstance(original, nn.Module) else file_tensors(str(original))
        self.prefix = f"{getattr(host.model, 'base_model_prefix', '')}."
        """What a model with a head puts before the names of the body's modules, in files or in the model."""

    def like(self, path: str, quantised: Tensor) -> Tensor:
        """The weight of a module, turned as the quantised one. Raises DeltatuneError for a missing or another one."""
        for key in (path, path.removeprefix(self.prefix), self.prefix + path):
            if key in self.modules:
                W = weight_of(self.modules[key])
                break
            if f"{key}.weight" in self.tensors:
                W = self.tensors[f"{key}.weight"][...]
                break
        else:
            raise DeltatuneError(f"the original has no {path}.weight")
        # bitsandbytes turns the maps of GPT-2, which hold (in, out)
        W = W.detach().to(quantised.device)
        turned = [candidate for candidate in (W, W.T) if candidate.dim() == 2 and candidate.shape == quantised.shape]
        if not turned:
            raise DeltatuneError(
                f"{path}.weight of the original has the shape {tuple(W.shape)}, not the quantised one's"
            )
        wide = torch.promote_types(quantised.dtype, torch.float32)
        lost = [
            float((candidate.to(wide) - quantised.to(wide)).norm() / candidate.to(wide).norm()) for candidate in turned
        ]
        if not min(lost) < MOST_LOST:
            raise DeltatuneError(
                f"{path}.weight of the original differs by {min(lost):.0%} from the quantised one: it is another weight"
            )
        return turned[lost.index(min(lost))]
