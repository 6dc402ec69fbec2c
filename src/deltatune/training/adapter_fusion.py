"""Stage two of AdapterFusion: what trained adapters know, put together for a task of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.methods.adapters.fusion import AdapterFusion, load_members_


def fuse(host: Host, name: str, of: Sequence[str], *, head: nn.Module | bool | None = None, seed: int = 0) -> Adapter:
    """Attach an AdapterFusion of trained adapters, ready to be trained; they are copied and stay as they are.

    Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247. Raises DeltatuneError for adapters that are not attached,
    and for those that cannot be fused: unions, other methods than bottlenecks, other sites.
    """
    have = ", ".join(host.adapters) or "none"
    raise_all(
        [
            f"no adapter is called {one!r}{nearest(one, host.adapters)}; attached: {have}"
            for one in of
            if one not in host.adapters
        ]
    )
    members = [host.adapters[one] for one in of]
    before = host.route
    adapter = host.attach(name, AdapterFusion.of(members), head=head, seed=seed)
    try:
        load_members_(adapter, members)
    except DeltatuneError:
        host.detach(name)
        host.use(before)
        raise
    return adapter
