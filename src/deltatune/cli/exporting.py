"""`--export-for`: making sure before training that another library will open the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from deltatune.cli.options import OUTPUT, option
from deltatune.core.errors import DeltatuneError, nearest, raise_all

if TYPE_CHECKING:
    from torch import nn

    from deltatune.core.host import Host
    from deltatune.core.method import Method

PEERS = ("peft",)

ExportFor = Annotated[
    str | None,
    option(
        "--export-for",
        panel=OUTPUT,
        metavar="LIBRARY",
        help="peft: refuse before training what HF PEFT could not open; its files are in the adapter's folder.",
    ),
]


def check_peer(name: str | None) -> None:
    """Raise unless the library is one that adapters can be exported for."""
    if name is not None and name not in PEERS:
        raise DeltatuneError(
            f"--export-for {name}: adapters can be exported for {', '.join(PEERS)}{nearest(name, PEERS)}"
        )


def check_export(name: str | None, method: Method, host: Host, head: nn.Module | bool | None) -> list[str]:
    """Raise with every reason why the library could not hold this adapter; returns what is to be said otherwise."""
    if name is None:
        return []
    from deltatune.store.peft import left_out, obstacles

    found = obstacles(method, host, head)
    raise_all(found, f"{method!r} cannot be exported for {name}; nothing was trained:" if found else "")
    return left_out(head)
