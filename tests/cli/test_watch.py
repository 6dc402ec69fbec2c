"""`deltatune watch`: the local page, what it serves and what it refuses, its end; `--once`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from deltatune.cli.watch_server import HOST, WatchServer
from deltatune.core.errors import DeltatuneError
from support.command_line import ran
from support.comparison_sample import sample_summary
from support.html_pages import browse, needs_browser, outline


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "runs" / "sst2"
    (run / "inner").mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(sample_summary()))
    (run / "results.jsonl").write_text("")
    (run / "report.html").write_text("<!doctype html><p>the report")
    (run / "inner" / "report.html").write_text("an inner report")
    (run / "secret.key").write_text("secret")
    (tmp_path / "outside.json").write_text('"secret"')
    (run / "link.json").symlink_to(tmp_path / "outside.json")
    return run


@contextlib.contextmanager
def served(folder, port=0):
    with WatchServer(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def asked(server, path, method="GET", **headers):
    """Status, headers and body of a request, sent as it is written."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_and_its_content(folder):
    with served(folder) as server:
        status, headers, page = asked(server, "/")
        assert status == 200
        assert headers["Cache-Control"] == "no-store"
        words = " ".join(outline(page).words)
        assert "Full()" in words
        assert "Use TopLayers(2)" in words
        status, _, content = asked(server, "/state")
        assert status == 200
        assert content in page
        assert 'href="/files/report.html"' in content
        assert asked(server, "/files/report.html")[2] == "<!doctype html><p>the report"
        assert asked(server, "/files/inner/report.html")[2] == "an inner report"
        assert asked(server, "/files/summary.json?x=1")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/files/../../outside.json",
        "/files/%2e%2e/%2e%2e/outside.json",
        "/files//../../outside.json",
        "/files/link.json",
        "/files/secret.key",
        "/files/.lock",
        "/files/",
        "/files/nothing.html",
        "/files/report.html%00.json",
        "/files//etc/passwd",
        "/outside.json",
        "/files/" + "a" * 5000 + ".json",
        "//evil.example/",
    ],
)
def test_nothing_else_is_served(folder, path):
    with served(folder) as server:
        status, _, body = asked(server, path)
        assert status == 404
        assert "secret" not in body


def test_only_get_is_answered(folder):
    with served(folder) as server:
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            assert asked(server, "/", method)[0] == 501


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1"])
def test_a_site_whose_name_points_here_is_refused(folder, host):
    with served(folder) as server:
        status, _, body = asked(server, "/state", Host=host)
        assert status == 421
        assert "TopLayers" not in body
        assert asked(server, "/state", Host=f"localhost:{server.server_port}")[0] == 200


def test_it_listens_on_this_machine_alone(folder):
    with served(folder) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_nothing_is_written(folder):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    with served(folder) as server:
        for path in ("/", "/state", "/files/report.html"):
            asked(server, path)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")} == before


def test_a_port_that_is_taken_is_named(folder):
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DeltatuneError, match=f"--port {port}: .*leave --port out"):
            WatchServer(folder, port)
    assert "ports are numbers from 1 to 65535" in ran("watch", folder, "--port", "70000").err


def test_ctrl_c_ends_it_cleanly(folder):
    command = [sys.executable, "-m", "deltatune", "watch", str(folder)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE

    def interruptible():
        """A suite in the background of a shell ignores Ctrl-C, and so would its children."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    options = {"stdout": pipe, "stderr": pipe, "text": True, "env": environment, "preexec_fn": interruptible}
    with subprocess.Popen(command, **options) as process:
        try:
            line = process.stdout.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ follows", line)[1])
            with socket.create_connection((HOST, port), timeout=10):
                pass
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "no longer followed" in out
    assert err == ""


def test_once_prints_the_state(folder):
    shown = ran("watch", folder, "--once")
    assert shown.code == 0
    assert re.search(r"state +finished", shown.out)
    assert re.search(r"Full\(\) +3 ", shown.out)
    assert "Use TopLayers(2)" in shown.out
    assert "failed: Prefix(length=12, hidden=512): OutOfMemoryError: 1.9 GB asked" in shown.out
    assert shown.out.rstrip().endswith(f"report: {folder / 'report.html'}")


def test_errors_name_the_folder(tmp_path):
    shown = ran("watch", tmp_path / "nowhere", "--once")
    assert shown.code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in shown.err


@pytest.mark.browser
@needs_browser
def test_the_page_refreshes_itself(folder, tmp_path):
    """The script is allowed to run, asks the server, and puts what it answers into the page."""
    with served(folder) as server:
        changed = server.state
        answers = []

        def state():
            answers.append(1)
            found = changed()
            return found if len(answers) == 1 else type(found)(found.folder, "", "running", sentence="It has moved on.")

        server.state = state
        dom = browse(server.address, tmp_path)
    assert "It has moved on." in dom
    assert len(answers) >= 2
