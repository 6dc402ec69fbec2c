"""`deltatune serve` as a process of its own: started, watched and stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

STARTS = 120.0
"""Seconds within which a server must listen."""


class ServeCommand:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.process, self.address, self.log = process, address, log

    def memory(self) -> int:
        """Bytes in memory; 0 where the system does not tell."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return 1024 * int(found[1]) if found else 0

    def metrics(self) -> dict[str, float]:
        """The engine's numbers."""
        text = httpx.get(f"{self.address}/metrics", timeout=60, trust_env=False).text
        return {name: float(value) for name, value in re.findall(r"^deltatune_engine_(\w+) (\S+)$", text, re.M)}


@contextmanager
def serve_command(folder: Path, options: Sequence[str], threads: int = 2) -> Iterator[ServeCommand]:
    """Start `deltatune serve OPTIONS` on a free port and yield it once it listens; its log is in `folder`."""
    out, log = folder / "serve.out", folder / "serve.log"
    command = [sys.executable, "-m", "deltatune", "serve", "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env=environment)
    try:
        yield ServeCommand(process, address_in(out, log, process), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def address_in(out: Path, log: Path, process: subprocess.Popen[str]) -> str:
    """The address that the server prints. Raises RuntimeError with what it said if it ends instead."""
    until = time.monotonic() + STARTS
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"http://[\d.]+:\d+", out.read_text()):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {out.read_text()}{log.read_text()}")
