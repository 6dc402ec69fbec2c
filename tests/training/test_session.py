"""Sessions: opened from data or from an adapter's folder, they give what the functions under them give."""

import dataclasses

import numpy as np
import pytest

from deltatune import DeltatuneError, parse, predict
from deltatune.data import read
from deltatune.models import versions as package_versions
from deltatune.training import Settings, encode_for
from deltatune.training.job import Job, prepare, record_of, run
from deltatune.training.open_session import open_adapter, open_host, open_session
from deltatune.training.session import NAME
from support.command_line import reviews, write_csv


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read(write_csv(tmp_path_factory.mktemp("reviews") / "reviews.csv", reviews(60)))


@pytest.fixture(scope="module")
def trained(tiny_folder, data, tmp_path_factory):
    """A training run: its folder, and what was prepared for it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    settings = Settings(epochs=1, precision="float32")
    prepared = prepare(Job(str(tiny_folder), data, "LoRA(r=2)", head={"pooling": "cls"}, settings=settings))
    run(prepared, folder, record_of(prepared, "reviews.csv"))
    return folder, prepared


def test_a_new_session_has_the_task_of_the_data_and_no_adapter(tiny_folder, data):
    session = open_session(str(tiny_folder), data, {"metric": "f1_macro", "max_length": None}, {"pooling": "cls"})
    assert session.host.adapters == {}
    assert session.task.metric == "f1_macro"
    assert session.task.labels == data.labels
    assert session.make_head(0).config.pooling == "cls"
    assert session.positions > 0
    adapter = session.attach(session.fit("LoRA(r=8)", "2k"), 0, session.make_head(0))
    assert session.adapter is adapter
    assert adapter.count <= 2000
    assert session.free_positions() == session.positions
    session.detach()
    session.detach()  # nothing is left to detach
    assert session.host.adapters == {}


def test_positions_of_a_prefix_are_not_free(tiny_folder, data):
    session = open_session(str(tiny_folder), data)
    session.attach(parse("Prefix(length=7)"), 0, session.make_head(0))
    assert session.free_positions() == session.positions - 7
    limited = session.limited(session.free_positions())
    assert limited.task.max_length == min(session.task.max_length, session.positions - 7)
    assert limited.host is session.host


def test_an_opened_adapter_predicts_what_it_predicted_after_training(trained, data):
    folder, prepared = trained
    for place in (folder, folder / "adapter"):
        session = open_adapter(place)
        assert (session.name, session.precision) == (NAME, "float32")
        assert session.task == prepared.session.task
        encoded = session.encode(data.test)
        assert list(encoded) == list(prepared.encoded["test"])
        answers = session.predict(encoded)
        np.testing.assert_array_equal(answers, prepared.session.predict(prepared.encoded["test"]))
        same = encode_for(session.host, NAME, session.task, data.test, session.tokenizer)
        functions = predict(session.host, NAME, session.task, same, session.tokenizer, precision="float32")
        np.testing.assert_array_equal(answers, functions)


def test_what_an_adapter_stores_opens_it_again(trained):
    folder, prepared = trained
    assert {**open_adapter(folder).extra, **prepared.session.to_json()} == open_adapter(folder).extra


def test_fields_that_may_not_change_after_training(trained):
    with pytest.raises(DeltatuneError, match="cannot be changed after training"):
        open_adapter(trained[0], fields={"max_length": 9})


def test_mistakes_show_before_a_model_is_loaded(data):
    with pytest.raises(DeltatuneError, match="no 'max_lenght', did you mean 'max_length'"):
        open_session("nowhere", data, {"max_lenght": 9})
    raw = dataclasses.replace(data, kind="raw")
    with pytest.raises(DeltatuneError, match="uses the language-model head; head options do not apply"):
        open_session("nowhere", raw, head={"pooling": "mean"})


def test_a_model_that_is_not_where_it_was_is_asked_for(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("deltatune.training.open_session.open_host", lambda *a: open_host(str(tmp_path / "gone")))
    with pytest.raises(DeltatuneError, match="--model says where it is"):
        open_adapter(trained[0])


def test_versions_name_what_results_depend_on():
    versions = package_versions.versions()
    assert list(versions)[:2] == ["deltatune", "python"]
    assert all(versions[name] for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy"))
