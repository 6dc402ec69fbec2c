"""Connection to a Ray cluster: a new one on this machine, the one that runs here, or one at an address."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import socket
from typing import Any

from deltatune.core.errors import DeltatuneError

ANSWER_SECONDS = 5.0
"""How long an address may take to accept a connection."""
ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[^\s/:\[\]]+):(?P<port>\d{1,5})")

_connected: list[str | None] = []
"""The address of the connection that was made here, if there is one."""


class RayCluster:
    """A connection to a cluster, which several objects may share, and whether it was made here."""

    def __init__(self, address: str | None) -> None:
        """Connect: None is the cluster that runs on this machine, or a new one if none does.

        A program that is connected to Ray already stays connected to its cluster. Raises DeltatuneError without Ray,
        for an address that cannot be read or does not answer, and for a cluster that refuses the connection.
        """
        if importlib.util.find_spec("ray") is None:
            raise DeltatuneError('Ray is not installed. Install it: pip install "deltatune[ray]"')
        if address is not None:
            check_answers(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning about a change to come
        import ray

        self.ray: Any = ray
        if not ray.is_initialized():
            _connected.clear()
        elif _connected and _connected != [address]:
            self.disconnect()
        if not ray.is_initialized():
            self._connect(address)
            _connected.append(address)

    def _connect(self, address: str | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is not None:
                self.ray.init(address, **options)
                return
            try:
                self.ray.init("auto", **options)
            except ConnectionError:
                self.ray.init("local", include_dashboard=False, **options)
        except DeltatuneError:
            raise
        except Exception as error:  # of many kinds: versions that differ, a session of another user, no memory
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DeltatuneError(
                f"cannot use the Ray cluster{f' at {address}' if address else ''}: {reason}"
            ) from error

    @property
    def slots(self) -> int:
        """Works that can run at once: one a GPU if the cluster has any, else one a core. At least 1."""
        resources = self.ray.cluster_resources()
        return max(1, int(resources.get("GPU", 0) or resources.get("CPU", 0)))

    @property
    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""
        return bool(self.ray.cluster_resources().get("GPU", 0) >= 1)

    def disconnect(self) -> None:
        """Leave the cluster as it was found; one that was started here ends."""
        if _connected:
            _connected.clear()
            with contextlib.suppress(Exception):  # it may be gone
                self.ray.shutdown()


def check_answers(address: str) -> None:
    """Raise DeltatuneError unless something listens at an address such as `ray://host:10001` or `host:6379`."""
    read = ADDRESS.fullmatch(address)
    if read is None or not 0 < int(read["port"]) < 65536:
        raise DeltatuneError(
            f"cannot read the address {address!r} of a Ray cluster; write ray://host:10001, or host:6379 on one of its "
            "nodes"
        )
    try:
        socket.create_connection((read["host"].strip("[]"), int(read["port"])), ANSWER_SECONDS).close()
    except (OSError, UnicodeError) as error:
        start = "ray start --head --ray-client-server-port" if read["client"] else "ray start --head --port"
        raise DeltatuneError(
            f"no Ray cluster answers at {address} ({error}); start one on that machine: {start}={read['port']}, or "
            "give the address of a running one"
        ) from None
