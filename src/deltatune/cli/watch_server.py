"""The local server of `deltatune watch`: a page that follows a run, and the reports in its folder, read only.

It listens on 127.0.0.1 alone, answers GET alone, and only requests that name it so: a page of another site that has its
name point to this machine is refused. No file outside the run's folder is served, whatever links are in it.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from deltatune.comparison.report.watch_page import FILES, watch_content, watch_page
from deltatune.comparison.results.run_state import StateReader
from deltatune.core.errors import DeltatuneError

HOST = "127.0.0.1"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".jsonl": "text/plain; charset=utf-8",
}
"""Kinds of files that are served."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'"
"""Of reports, besides their own stricter one: they load nothing and ask for nothing."""


class WatchServer(ThreadingHTTPServer):
    """Serves one run folder. `serve_forever` blocks; `shutdown` ends it from another thread."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Listen; port 0 is any free one. Raises DeltatuneError for a port that cannot be had."""
        self.reader, self.guard = StateReader(folder), threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise DeltatuneError(f"--port {port}: {error.strerror}; leave --port out to take a free one") from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def names(self) -> set[str]:
        """What requests may call it."""
        return {f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"}

    def state(self) -> Any:
        """The state of the run now."""
        with self.guard:
            return self.reader.read()

    def file(self, name: str) -> Path | None:
        """A served file of the folder by its path in it; None for any other."""
        folder = self.reader.folder.resolve()
        if "\0" in name or Path(name).suffix not in TYPES:
            return None
        try:
            path = (folder / name.lstrip("/")).resolve()
            return path if path.is_relative_to(folder) and path.is_file() and path.suffix in TYPES else None
        except (OSError, RuntimeError):  # too long, or links in a circle
            return None


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests."""

    server: WatchServer
    server_version, sys_version = "deltatune", ""
    timeout = 30

    def do_GET(self) -> None:
        """The page, its content, or a file."""
        if self.headers.get("Host") not in self.server.names():
            self.send_error(421, "this server is called by its own address alone")
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(watch_page(self.server.state()).encode(), TYPES[".html"])
        elif path == "/state":
            self._send(watch_content(self.server.state()).encode(), TYPES[".html"])
        elif path.startswith(FILES) and (file := self.server.file(path.removeprefix(FILES))) is not None:
            self._send(file.read_bytes(), TYPES[file.suffix], POLICY)
        else:
            self.send_error(404, "there is no such page")

    def _send(self, content: bytes, kind: str, policy: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the page was closed
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not logged: the page asks every two seconds."""
