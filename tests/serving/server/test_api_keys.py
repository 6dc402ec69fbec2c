"""Files of keys, and what each key may."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.serving.server.guard.api_keys import (
    ApiKey,
    KeyFile,
    add_key,
    digest_of,
    read_keys,
    remove_key,
    write_keys,
)
from support.guarded_server import GuardedServer, client, wait_for


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def key_entry(name="anna", secret=b"s", **more):
    return {"name": name, "sha256": digest_of(secret), **more}


def test_a_new_key_is_stored_as_its_digest_alone(path):
    secret = add_key(path, ApiKey("anna", requests_per_minute=5, adapters=("german", "legal-*")))
    other = add_key(path, ApiKey("ben"))
    assert secret.startswith("dt-")
    assert secret != other
    assert len(secret) > 40
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    anna, ben = read_keys(path)
    assert (anna.name, anna.requests_per_minute, anna.adapters, anna.admin) == ("anna", 5, ("german", "legal-*"), False)
    assert anna.sha256 == digest_of(secret.encode())
    remove_key(path, "anna")
    assert read_keys(path) == [ben]


def test_names_are_taken_once_and_missing_ones_are_named(path):
    add_key(path, ApiKey("anna"))
    with pytest.raises(DeltatuneError, match="has a key 'anna' already"):
        add_key(path, ApiKey("anna"))
    with pytest.raises(DeltatuneError, match="no key 'ana', did you mean 'anna'"):
        remove_key(path, "ana")
    with pytest.raises(DeltatuneError, match="requests_per_minute of 'ben' must be above 0"):
        add_key(path, ApiKey("ben", requests_per_minute=0))
    with pytest.raises(DeltatuneError, match="use at most 64 letters"):
        add_key(path, ApiKey("ben\n"))


def test_no_key_is_lost_where_several_are_made_at_once(path):
    names = [f"key-{place}" for place in range(12)]
    with ThreadPoolExecutor(4) as pool:
        secrets = list(pool.map(lambda name: add_key(path, ApiKey(name)), names))
    assert sorted(key.name for key in read_keys(path)) == sorted(names)
    assert len(set(secrets)) == 12
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], 'must hold {"keys"'),
        ({"keys": {}}, 'must hold {"keys"'),
        ({"keys": [3]}, r"keys\[0\] must be an object"),
        ({"keys": [{"name": "anna"}]}, r"keys\[0\] has no sha256"),
        ({"keys": [key_entry(requests_per_minut=3)]}, "did you mean 'requests_per_minute'"),
        ({"keys": [key_entry(requests_per_minute="3")]}, "requests_per_minute must be"),
        ({"keys": [key_entry(admin=1)]}, "admin must be"),
        ({"keys": [key_entry(adapters=[])]}, "adapters of 'anna' is empty"),
        ({"keys": [key_entry() | {"sha256": "ab"}]}, "64 hexadecimal digits"),
        ({"keys": [key_entry(), key_entry("ben")]}, "the same sha256 stands there more than once: 'anna', 'ben'"),
        ({"keys": [key_entry(), key_entry(secret=b"t")]}, "the same name stands there more than once: 'anna'"),
    ],
)
def test_wrong_files_are_refused_without_showing_a_digest(path, content, problem):
    path.write_text(json.dumps(content))
    with pytest.raises(DeltatuneError, match=problem) as error:
        KeyFile(path)
    assert digest_of(b"s") not in str(error.value)


def test_every_problem_of_a_file_is_listed(path):
    path.write_text(json.dumps({"keys": [key_entry("a b"), 3, key_entry("ben", b"t", tokens_per_minute=-1)]}))
    with pytest.raises(DeltatuneError) as error:
        read_keys(path)
    assert str(error.value).count("\n- ") == 3


def test_the_file_is_read_again_when_it_changes(path):
    first = add_key(path, ApiKey("anna"))
    problems = []
    keys = KeyFile(path, problems.append)
    assert keys.identify(first.encode()).name == "anna"
    second = add_key(path, ApiKey("ben"))
    assert keys.identify(second.encode()).name == "ben"
    remove_key(path, "anna")
    assert keys.identify(first.encode()) is None


def test_two_changes_within_one_tick_of_the_file_system_are_both_seen(path):
    """The second leaves size and inode as they are, and may leave the time too."""
    one, two = ([ApiKey(name, digest_of(name.encode()))] for name in ("anna", "otto"))
    write_keys(path, one)
    keys, now = KeyFile(path), time.time_ns()
    os.utime(path, ns=(now, now))
    assert keys.identify(b"anna")
    path.write_text(path.read_text().replace("anna", "otto").replace(digest_of(b"anna"), digest_of(b"otto")))
    os.utime(path, ns=(now, now))
    assert keys.identify(b"anna") is None
    assert keys.keys == two


def test_a_file_that_cannot_be_read_leaves_the_keys_in_force_and_is_reported_once(path):
    secret = add_key(path, ApiKey("anna")).encode()
    whole, problems = path.read_text(), []
    keys = KeyFile(path, problems.append)
    path.write_text(whole[:-20])
    assert keys.identify(secret)
    assert keys.identify(secret)
    assert len(problems) == 1
    assert "stay in force" in problems[0]
    path.unlink()
    assert keys.identify(secret)
    path.write_text(whole)
    assert keys.identify(secret)
    assert keys.problem is None


def test_all_digests_are_compared_whichever_matches(path, monkeypatch):
    secrets = [add_key(path, ApiKey(name)) for name in ("anna", "ben", "carl")]
    keys, compared = KeyFile(path), []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(a) or real(a, b))
    for secret, name in [*zip(secrets, ("anna", "ben", "carl"), strict=True), ("dt-nobody", None)]:
        compared.clear()
        found = keys.identify(secret.encode())
        assert (found.name if found else None) == name
        assert len(compared) == 3


def test_patterns_say_what_a_key_may_use():
    key = ApiKey("anna", "0" * 64, adapters=("german", "legal-*"))
    assert [key.may_use(name) for name in ("german", "legal-1", "German", "germany", "base", "legal")] == [
        *(True, True),
        *(False,) * 4,
    ]
    assert ApiKey("ben").may_use("base")


def test_the_prompt_cache_goes_with_the_key_not_with_its_name(path):
    add_key(path, ApiKey("anna"))
    before = read_keys(path)[0].cache_key
    remove_key(path, "anna")
    add_key(path, ApiKey("anna"))
    assert read_keys(path)[0].cache_key != before


def test_requests_need_a_key_and_logs_name_it_without_its_secret(path):
    secret = add_key(path, ApiKey("anna", adapters=("german",)))
    server = GuardedServer(keys=KeyFile(path))
    with server.running() as address, client(address) as http:
        answers = {
            given: http.post("/v1/echo", json={}, headers={"Authorization": given} if given else {})
            for given in ("", "Bearer", f"Basic {secret}", "Bearer dt-wrong", b"Bearer \xe4", secret)
        }
        assert {answer.status_code for answer in answers.values()} == {401}
        assert {answer.headers["www-authenticate"] for answer in answers.values()} == {"Bearer"}
        assert answers["Bearer dt-wrong"].json() == {
            "error": {
                "message": "Incorrect API key provided.",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
            }
        }
        both = [("Authorization", f"Bearer {secret}"), ("Authorization", "Bearer x")]
        assert http.post("/v1/echo", json={}, headers=both).status_code == 401
        assert http.get("/v1/unknown").status_code == 401
        for path_ in ("/", "/health", "/ready", "/page/page.css"):
            assert http.get(path_).status_code in (200, 404)
            assert http.get(path_).status_code != 401
    assert server.seen == []
    with server.running() as address, client(address, secret) as http:
        assert http.post("/v1/echo", json={"model": "german"}).status_code == 200
        assert http.post("/v1/echo", json={"model": "french"}).json()["error"]["code"] == "model_not_found"
        assert http.get("/v1/unknown").status_code == 404
    events = server.lines.events()
    assert events[-3]["key"] == "anna"
    assert {event["key"] for event in events} == {"anna", None}
    assert secret not in server.lines.getvalue() + server.metrics.text().decode()
    assert digest_of(secret.encode()) not in server.lines.getvalue()


def test_rights_of_admins_and_of_those_who_read_metrics(path):
    plain, admin = add_key(path, ApiKey("anna")), add_key(path, ApiKey("root", admin=True))
    metrics = add_key(path, ApiKey("prometheus", metrics=True))
    with GuardedServer(keys=KeyFile(path)).running() as address, client(address) as http:
        for secret, statuses in ((plain, (403, 403)), (admin, (200, 200)), (metrics, (403, 200))):
            bearer = {"Authorization": f"Bearer {secret}"}
            load = http.post("/v1/adapters/german/load", headers=bearer)
            assert (load.status_code, http.get("/metrics", headers=bearer).status_code) == statuses
            if load.status_code == 403:
                assert load.json()["error"]["code"] == "insufficient_permissions"
    with GuardedServer(admin=False).running() as address, client(address) as http:
        assert http.post("/v1/adapters/german/load").status_code == 403
        assert http.post("/v1/echo", json={}).status_code == 200


def test_keys_come_and_go_while_the_server_runs(path):
    first = add_key(path, ApiKey("anna"))
    with GuardedServer(keys=KeyFile(path)).running() as address, client(address) as http:

        def status(secret):
            return http.post("/v1/echo", json={}, headers={"Authorization": f"Bearer {secret}"}).status_code

        assert status(first) == 200
        second = add_key(path, ApiKey("ben"))
        assert status(second) == 200
        remove_key(path, "anna")
        assert wait_for(lambda: status(first) == 401)
        assert status(second) == 200
