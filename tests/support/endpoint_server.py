"""A server on this machine that answers as an OpenAI-compatible one does, and endpoints of it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from deltatune.prompting import OpenAICompatible

Answer = Callable[[dict[str, Any], int], tuple[int, Any]]


class Server:
    """A server on this machine; `answer(body, number)` returns status, content and maybe headers of each request."""

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.most = self.now = 0
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                    number = len(server.requests)
                    server.now += 1
                    server.most = max(server.most, server.now)
                try:
                    status, content, *headers = server.answer(body, number)
                finally:
                    with lock:
                        server.now -= 1
                if status == 0:  # hang up in the middle
                    self.connection.close()
                    return
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(*headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop: further requests are refused."""
        self.http.shutdown()
        self.http.server_close()


def text_of(text: str | None, ended: str = "stop", **more: Any) -> dict[str, Any]:
    """An answer in OpenAI's format, for both kinds of request."""
    return {"choices": [{"message": {"content": text}, "text": text, "finish_reason": ended}], **more}


def prompt_of(body: dict[str, Any]) -> str:
    """The prompt of a request of either kind."""
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


@contextmanager
def running(answer: Answer, port: int = 0) -> Iterator[Server]:
    """A server while the context lasts; `port` is that of an earlier one, which comes back."""
    server = Server(answer, port)
    try:
        yield server
    finally:
        server.close()


def endpoint_of(server: Server, **more: Any) -> OpenAICompatible:
    """The endpoint of a server, with a short backoff."""
    return OpenAICompatible(server.url, "m", **{"backoff": 0.01, "timeout": 5.0, **more})
