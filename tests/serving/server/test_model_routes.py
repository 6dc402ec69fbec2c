"""Models and adapters: what is listed, loaded, replaced and removed while the server runs; two servers of one store."""

import openai
import pytest

from deltatune.serving.engine.engine_limits import EngineLimits
from support import models
from support.served import TASKS, Served, write_adapters

SMALL = {name: TASKS[name] for name in ("plain", "plain-ia3", "sst2")}
PROMPT = {"prompt": "the film is", "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server whose store the tests change."""
    folder = write_adapters(tmp_path_factory.mktemp("own"), SMALL)
    with Served(folder, limits=EngineLimits(rows=8), adapters=2).running() as server:
        yield server


def text_of(served, model):
    return served.post("/v1/completions", model=model, **PROMPT)["choices"][0]["text"]


def test_every_adapter_is_a_model(served):
    listed = {model.id: model for model in served.openai.models.list()}
    assert set(listed) == {"base", *TASKS}
    assert listed["sst2"].owned_by == "deltatune"
    assert listed["sst2"].parent == "base"
    assert listed["sst2"].task == "classify"
    assert listed["base"].root == "org/tiny"
    assert served.openai.models.retrieve("sst2") == listed["sst2"]
    assert served.http.get("/v1/models/org/tiny").json()["id"] == "base"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        served.openai.models.retrieve("nothing")


def test_states_of_adapters(own):
    own.post("/v1/adapters/plain/load")
    text_of(own, "plain")
    found = own.http.get("/v1/adapters/plain").json()
    assert (found["state"], found["running"], found["method"]) == ("resident", 0, "LoRA(r=2)")
    assert found["requests"] >= 1
    assert found["last_used"] > 1.7e9
    assert own.post("/v1/adapters/plain/unload")["state"] == "stored"
    assert own.post("/v1/adapters/plain/load")["state"] == "resident"
    every = own.http.get("/v1/adapters").json()
    assert every["total"] == len(every["data"]) == len(own.store)
    assert [each["name"] for each in own.http.get("/v1/adapters?search=IA3&limit=1").json()["data"]] == ["plain-ia3"]
    assert own.http.get("/v1/adapters?task=classify").json()["total"] == 1
    assert own.refused("/v1/adapters/plian/load", 404)["code"] == "model_not_found"


def test_memory_holds_two_and_all_are_served(own):
    alone = {name: text_of(own, name) for name in ("plain", "plain-ia3")}
    own.post("/v1/classify", model="sst2", input="good")
    assert sum(each["state"] == "resident" for each in own.http.get("/v1/adapters").json()["data"]) == 2
    assert {name: text_of(own, name) for name in alone} == alone


def test_what_is_added_replaced_and_removed_is_served_at_once(own, tmp_path):
    assert own.refused("/v1/completions", 404, model="late", **PROMPT)["code"] == "model_not_found"
    own.store.add(own.folder / "plain", "late")
    assert text_of(own, "late") == text_of(own, "plain")
    own.store.add(own.folder / "plain-ia3", "late", replace=True)
    assert text_of(own, "late") == text_of(own, "plain-ia3") != text_of(own, "plain")
    assert "late" in [model.id for model in own.openai.models.list()]
    own.store.remove("late")
    assert own.refused("/v1/completions", 404, model="late", **PROMPT)["code"] == "model_not_found"
    assert "late" not in [model.id for model in own.openai.models.list()]


def test_reload_reads_the_store_anew(own):
    own.store.add(own.folder / "plain", "turn")
    first = text_of(own, "turn")
    own.store.add(own.folder / "plain-ia3", "turn", replace=True)
    own.post("/v1/adapters/turn/reload")
    assert text_of(own, "turn") != first
    own.store.remove("turn")


def test_a_damaged_adapter_fails_alone(own, tmp_path):
    own.store.add(write_adapters(tmp_path, {"broken": ("LoRA(r=3)", None)}) / "broken")
    (own.store.folder("broken") / "adapter.safetensors").write_bytes(b"no tensors")
    for path in ("/v1/completions", "/v1/adapters/broken/load"):
        error = own.refused(path, 503, **({"model": "broken", **PROMPT} if path == "/v1/completions" else {}))
        assert error["code"] == "adapter_unavailable"
        assert str(own.folder) not in error["message"]
    assert "damaged" in [event for event in own.events() if event["event"] == "adapter"][-1]["problem"]
    assert text_of(own, "plain-ia3")
    own.store.remove("broken")


def test_adapters_of_another_base_are_not_listed_nor_served(own, tmp_path):
    write_adapters(tmp_path, {"other": TASKS["plain"]}, models.tiny("llama", "lm", dropout=False, seed=5))
    own.store.add(tmp_path / "other")
    assert "other" not in [model.id for model in own.openai.models.list()]
    error = own.refused("/v1/completions", 404, model="other", **PROMPT)
    assert "was trained on another base" in error["message"]
    own.store.remove("other")


def test_two_servers_of_one_store_hold_nothing_of_their_own(own):
    """Any proxy may send a request to either."""
    with Served(own.folder, add=False).running() as second:
        assert text_of(second, "plain") == text_of(own, "plain")
        own.store.add(own.folder / "plain-ia3", "shared")
        assert text_of(second, "shared") == text_of(own, "shared")
        own.store.remove("shared")
        second.refused("/v1/completions", 404, model="shared", **PROMPT)


def test_an_adapter_that_cannot_be_moved_in_time(served, monkeypatch):
    async def slow(name):
        raise TimeoutError

    monkeypatch.setattr(served.service, "unload", slow)
    answer = served.http.post("/v1/adapters/sst2/unload")
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    assert "sst2 could not be unloaded within" in answer.json()["error"]["message"]
