"""`deltatune keys`."""

import json

from deltatune.serving.server.guard.api_keys import KeyFile
from support.command_line import ran


def test_keys_are_made_listed_and_removed(tmp_path):
    file = tmp_path / "keys.json"
    made = ran(
        "keys", "add", file, "anna", "--requests-per-minute", "6000", "--adapters", "german", "--adapters", "a-*"
    )
    secret = made.out.strip()
    assert made.code == 0
    assert KeyFile(file).identify(secret.encode()).name == "anna"
    assert secret not in made.err
    assert ran("keys", "add", file, "root", "--admin").code == 0
    listed = ran("keys", "list", file).out
    assert "6,000" in listed
    assert "german a-*" in listed
    assert secret not in listed
    anna, root = json.loads(ran("keys", "list", file, "--json").out)
    assert (anna["adapters"], anna["tokens_per_minute"], root["admin"]) == (["german", "a-*"], None, True)
    assert "sha256" not in anna
    assert ran("keys", "remove", file, "anna").code == 0
    assert KeyFile(file).identify(secret.encode()) is None


def test_errors_name_the_fix(tmp_path):
    file = tmp_path / "keys.json"
    assert "it does not exist" in ran("keys", "list", file).err
    ran("keys", "add", file, "anna")
    taken = ran("keys", "add", file, "anna")
    assert (taken.code, taken.out) == (2, "")
    assert "has a key 'anna' already" in taken.err
    assert "did you mean 'anna'?" in ran("keys", "remove", file, "ana").err
    assert "it has anna" in ran("keys", "remove", file, "zzz").err
    assert "must be above 0" in ran("keys", "add", file, "ben", "--requests-at-once", "0").err
    assert len(json.loads(file.read_text())["keys"]) == 1


def test_help_shows_the_examples():
    text = ran("keys", "add", "--help").out
    assert "\n  deltatune keys add keys.json anna\n" in text
    assert "add" in ran("keys").out
