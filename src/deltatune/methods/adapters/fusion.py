"""AdapterFusion: frozen adapters of several tasks, and attention by which each token selects among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.capabilities import TrainingHints
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method, View
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.adapters.bottleneck import Bottleneck


class TrainedAdapter(Protocol):
    """The part of `deltatune.Adapter` that fusion needs."""

    method: Method

    def entries(self) -> Iterable[tuple[str, Site, Delta]]:
        """(key, site, delta) of each of its Deltas."""
        ...


class Fusion(Delta):
    """`Δ = Σ_i softmax_i((Q x + b)·K u_i) V u_i`, u_i the change of the i-th member; members are not trained.

    Keys have no bias: b_k would add the same to the scores of all members, which the softmax cancels.
    """

    hints = TrainingHints(frozen=("members",))

    def __init__(self, width_in: int, width_out: int, members: Sequence[Delta]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.Q, self.b = nn.Parameter(torch.empty(width_out, width_in)), nn.Parameter(torch.empty(width_out))
        self.K = nn.Parameter(torch.empty(width_out, width_out))
        self.V = nn.Parameter(torch.empty(width_out, width_out))
        self.reads = members[0].reads

    @property
    def parts(self) -> Sequence[Delta]:
        return [member for member in self.members if isinstance(member, Delta)]

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        for i, member in enumerate(self.parts):
            member.base = self.base
            member.init_(lambda name, i=i: rng(f"members.{i}.{name}"), base)  # type: ignore[misc]
        nn.init.normal_(self.Q, std=0.02, generator=rng("Q"))
        nn.init.normal_(self.K, std=0.02, generator=rng("K"))
        nn.init.zeros_(self.b)
        self.V.fill_(1e-6).fill_diagonal_(1.0)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        u = torch.stack([member(x, h) for member in self.members], dim=-2)  # (..., N, D)
        query = F.linear(x, self.Q.to(x.dtype), self.b.to(x.dtype))
        # q·K u_i is Kᵀq·u_i, and Σ p_i V u_i is V Σ p_i u_i: two products per token instead of two per member.
        projected = query @ self.K.to(x.dtype)  # (..., D)
        p = torch.softmax((u @ projected.unsqueeze(-1)).squeeze(-1), dim=-1)  # (..., N); no 1/√D, as in the paper
        return F.linear((p.unsqueeze(-2) @ u).squeeze(-2), self.V.to(x.dtype))

    def penalty(self) -> Tensor:
        """`0.01 ‖V − I‖²`, which the paper adds to the loss so that members keep their meaning."""
        identity = torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)
        return 0.01 * (self.V - identity).square().sum()


_MEMBER = Bottleneck(size=48, form="pfeiffer", init="small")


@dataclass(frozen=True)
class AdapterFusion(Method):
    """h ← h + Σ_i softmax_i(Q x · K u_i) V u_i, u_i = U_i f(D_i x + b_i) + b′_i

    Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247. The members are trained adapters, each for its own
    task; they are copied into the fusion and stay fixed, while Q, K and V are trained. Members that were never trained
    are random, so fusing them is useless: see `AdapterFusion.of` and `load_members_`.
    """

    members: tuple[Method, ...] = (_MEMBER, _MEMBER)
    """The methods of the adapters to fuse: bottlenecks of one form, at the same sites."""

    learning_rate: ClassVar[float] = 5e-5
    view: ClassVar[View] = View("Σ softmax(Q x · K u_i) V u_i", "sequential", "output of the FFN", "add")

    @classmethod
    def of(cls, adapters: Sequence[TrainedAdapter]) -> AdapterFusion:
        """The fusion of some adapters; attach it, then `load_members_`."""
        return cls(members=tuple(adapter.method for adapter in adapters))

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether no member changes anything before it is trained."""
        return all(member.starts_as_base for member in self.members)

    def check(self) -> None:
        if len(self.members) < 2:
            raise DeltatuneError(f"AdapterFusion fuses two members or more, not {len(self.members)}")
        wrong = [member for member in self.members if len(member.parts) > 1]
        if wrong:
            raise DeltatuneError(
                f"AdapterFusion cannot fuse the union {wrong[0]!r}; give bottlenecks such as Pfeiffer()"
            )

    def pick(self, sites: Sites) -> list[Site]:
        picked = [member.pick(sites) for member in self.members]
        problems = []
        for member, sites_of_member in zip(self.members, picked, strict=True):
            other = sorted({site.kind for site in sites_of_member if site.kind != "sublayer"})
            if other:
                problems.append(f"{member!r} changes more than sublayers ({', '.join(other)})")
            elif member.share(sites_of_member) is not None:
                problems.append(f"the layers of {member!r} share parameters")
            elif [site.name for site in sites_of_member] != [site.name for site in picked[0]]:
                problems.append(f"{member!r} and {self.members[0]!r} have other sites")
        reads = {m.build(p[0]).reads for m, p in zip(self.members, picked, strict=True) if not problems}
        if len(reads) > 1:
            problems.append(f"members read different inputs: {', '.join(sorted(reads))}")
        raise_all(
            [f"AdapterFusion: {problem}; fuse bottlenecks of one form, at the same sites" for problem in problems]
        )
        return picked[0]

    def build(self, site: Site) -> Delta:
        return Fusion(site.width_in, site.width_out, [member.build(site) for member in self.members])

    def cost(self, site: Site) -> int:
        return site.width_out * (site.width_in + 2 * site.width_out + 1)


@torch.no_grad()
def load_members_(fused: TrainedAdapter, adapters: Sequence[TrainedAdapter]) -> None:
    """Copy the tensors of trained adapters into an attached fusion of them, in the order of its members.

    Raises DeltatuneError listing what does not fit, and then copies nothing.
    """
    fusions = [(site.name, delta) for _, site, delta in fused.entries() if isinstance(delta, Fusion)]
    if not fusions or any(len(delta.parts) != len(adapters) for _, delta in fusions):
        raise DeltatuneError(
            f"{fused.method!r} is not a fusion of {len(adapters)} adapters; make it with AdapterFusion.of"
        )
    sources = [{site.name: delta for _, site, delta in adapter.entries()} for adapter in adapters]
    problems, copies = [], []
    for name, fusion in fusions:
        for adapter, source, member in zip(adapters, sources, fusion.parts, strict=True):
            trained = source[name].state_dict() if name in source else {}
            target = member.state_dict()
            if {key: t.shape for key, t in target.items()} != {key: t.shape for key, t in trained.items()}:
                problems.append(f"at {name}, {adapter.method!r} has no tensors that fit its member of the fusion")
            copies += [(tensor, trained.get(key)) for key, tensor in target.items()]
    raise_all(problems)
    for tensor, given in copies:
        assert given is not None
        tensor.copy_(given)
