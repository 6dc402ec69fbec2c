"""Stage two of AdapterFusion: attention over trained adapters, for a new task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.route import unknown_adapters
from deltatune.core.trained_rows import rows_of_all
from deltatune.methods.adapters.fusion import AdapterFusion, load_members_


def fuse(host: Host, name: str, of: Sequence[str], *, head: nn.Module | bool | None = None, seed: int = 0) -> Adapter:
    """Attach an AdapterFusion of the adapters `of`, ready to be trained; it copies them and leaves them unchanged.

    Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247. Raises DeltatuneError for adapters that are not attached,
    and for those that cannot be fused: unions, other methods than bottlenecks, other sites.
    """
    raise_all(unknown_adapters(of, host.adapters))
    members = [host.adapters[member] for member in of]
    route = host.route
    adapter = host.attach(name, AdapterFusion.of(members), head=head, seed=seed)
    try:
        load_members_(adapter, members)
    except DeltatuneError:
        host.detach(name)
        host.use(route)
        raise
    adapter.trained_rows = rows_of_all(member.trained_rows for member in members)
    return adapter
