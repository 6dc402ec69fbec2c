"""A small local stand-in for the Hugging Face hub: repositories of files by commit, in memory."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import huggingface_hub.constants


class Repository:
    """Files by revision. Every commit makes a new revision; branches name the newest."""

    def __init__(self):
        self.commits = {"0" * 40: {}}
        self.branches = {"main": "0" * 40}

    def commit(self, branch, files, deleted=()):
        old = self.commits[self.branches[branch]]
        new = {name: data for name, data in old.items() if name not in deleted} | files
        names = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(new.items())})
        sha = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[sha] = new
        self.branches[branch] = sha
        return sha

    def find(self, revision):
        return self.branches.get(revision, revision)


@contextmanager
def hub_server(monkeypatch, cache):
    """Run the server and make huggingface_hub talk to it alone. Yields its repositories by name."""
    repositories, blobs = {}, {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body=b"", status=200, **headers):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if not isinstance(body, bytes):
                self.send_header("Content-Type", "application/json")
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, code):
            self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def route(self):
            return [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            match self.route():
                case ["api", "models", user, name, *rest] if not rest or rest[0] in ("revision", "tree"):
                    repository = repositories.get(f"{user}/{name}")
                    if repository is None:
                        return self.missing("RepoNotFound")
                    sha = repository.find(rest[1] if rest else "main")
                    if sha not in repository.commits:
                        return self.missing("RevisionNotFound")
                    files = repository.commits[sha]
                    if rest and rest[0] == "tree":
                        return self.answer(
                            [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]
                        )
                    siblings = [{"rfilename": file} for file in files]
                    return self.answer(
                        {
                            "id": f"{user}/{name}",
                            "modelId": f"{user}/{name}",
                            "sha": sha,
                            "siblings": siblings,
                            "private": False,
                            "tags": [],
                            "downloads": 0,
                            "likes": 0,
                        }
                    )
                case [user, name, "resolve", revision, *path]:
                    repository = repositories.get(f"{user}/{name}")
                    if repository is None:
                        return self.missing("RepoNotFound")
                    sha = repository.find(revision)
                    data = repository.commits.get(sha, {}).get("/".join(path))
                    if data is None:
                        return self.missing("EntryNotFound")
                    return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)
            return self.missing("EntryNotFound")

        def do_POST(self):
            body = self.body()
            match self.route():
                case ["api", "repos", "create"]:
                    wanted = json.loads(body)
                    name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
                    name = name if "/" in name else f"me/{name}"
                    if name.startswith("forbidden/"):
                        return self.answer({"error": "You have no right to write there"}, 403)
                    known = name in repositories
                    repositories.setdefault(name, Repository())
                    return self.answer({"url": f"{huggingface_hub.constants.ENDPOINT}/{name}"}, 409 if known else 200)
                case ["api", "models", user, name, "branch", branch]:
                    repository = repositories[f"{user}/{name}"]
                    known = branch in repository.branches
                    repository.branches.setdefault(branch, repository.branches["main"])
                    return self.answer({}, 409 if known else 200)
                case ["api", "models", _, _, "preupload", _]:
                    files = json.loads(body)["files"]
                    return self.answer(
                        {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                    )
                case ["api", "models", user, name, "commit", branch]:
                    lines = [json.loads(line) for line in body.splitlines()]
                    files = {
                        line["value"]["path"]: base64.b64decode(line["value"]["content"])
                        for line in lines
                        if line["key"] == "file"
                    }
                    deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
                    sha = repositories[f"{user}/{name}"].commit(branch, files, deleted)
                    url = f"{huggingface_hub.constants.ENDPOINT}/{user}/{name}/commit/{sha}"
                    return self.answer({"commitOid": sha, "commitUrl": url, "pullRequestUrl": None})
                case ["api", "validate-yaml"]:
                    return self.answer({"errors": [], "warnings": []})
            return self.missing("EntryNotFound")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    set_endpoint(monkeypatch, address, cache)
    try:
        yield repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        blobs.clear()


def set_endpoint(monkeypatch, address, cache):
    """Make huggingface_hub talk to this address, keep its cache here, and forget that it is offline."""
    import huggingface_hub.hf_api as hf_api

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
