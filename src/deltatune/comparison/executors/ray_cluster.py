"""Connection to a Ray cluster: a new one on this machine, the one that runs here, or one at an address."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import socket
from typing import Any

from deltatune.core.errors import DeltatuneError, first_line

ANSWER_SECONDS = 5.0
"""How long an address may take to accept a connection."""
CLIENT_TRIES = 2
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
        try:
            if address is None:
                self._init("auto", "local")
            else:  # a client server starts a process for each client, which on a busy machine may take too long once
                self._init(*[address] * (CLIENT_TRIES if address.startswith("ray://") else 1))
        except Exception as error:  # of many kinds: versions that differ, a session of another user, no memory
            reason = first_line(error)
            raise DeltatuneError(
                f"cannot use the Ray cluster{f' at {address}' if address else ''}: {reason}"
            ) from error

    def _init(self, *places: str) -> None:
        """Connect to the first place that lets itself be connected to."""
        for number, place in enumerate(places, 1):
            more = {"include_dashboard": False} if place == "local" else {}
            try:
                self.ray.init(place, log_to_driver=False, logging_level=logging.ERROR, **more)
                return
            except BaseException as error:
                with contextlib.suppress(Exception):  # of a connection that is half made
                    self.ray.shutdown()
                if number == len(places) or not isinstance(error, ConnectionError):
                    raise

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
