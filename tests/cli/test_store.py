"""`deltatune store`: what the commands print, their JSON, and their errors."""

import json

import pytest

from deltatune.store.adapter_store import AdapterStore, store_folder
from support.command_line import ran
from support.stored_adapters import make_adapter


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DELTATUNE_STORE", raising=False)
    monkeypatch.setattr(store_folder, "sync", lambda folders: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    make_adapter(place / "german", 1, score=0.9, data={"source": "reviews"})
    make_adapter(place / "legal", 2, "LoRA(r=4)", score=0.7)
    make_adapter(place / "story", 5, kind="gpt2")
    return place


@pytest.fixture
def store(folders, tmp_path):
    opened = AdapterStore(tmp_path / "store")
    opened.add_all(folders)
    opened.close()
    return tmp_path / "store"


def test_help():
    for argv in (["store"], ["store", "--help"]):
        done = ran(*argv)
        assert done.code == 0
        assert all(f"\n  {name} " in done.out for name in ("add", "list", "search", "show", "remove", "export"))
    done = ran("store", "add", "--help")
    assert all(option in done.out for option in ("--store", "--name", "--tag", "--task", "--scores", "--replace"))
    assert "  store " in ran("--help").out


def test_add_makes_a_store_and_says_what_it_takes(folders, tmp_path):
    place = tmp_path / "adapters"
    done = ran("store", "add", folders, "--store", place, "--tag", "x, y")
    assert (done.code, done.err) == (0, "")
    first, storage = done.out.splitlines()
    assert first == f"Added 3 adapters to {place}: german, legal, story"
    assert storage.startswith("3 adapters take ")
    assert " beside 2 bases of " in storage
    assert "; 3 full copies would take " in storage
    done = ran("store", "add", folders / "german", folders / "legal", "--store", place)
    assert done.out.startswith(f"Added 0 adapters to {place} (2 were there): german, legal\n")
    done = ran("store", "add", folders / "german", "--store", place, "--name", "g2", "--scores", '{"accuracy": 0.25}')
    assert done.code == 0, done.err
    store = AdapterStore(place)
    assert (store.entry("german").tags, store.entry("g2").score) == (("x", "y"), ("accuracy", 0.25))
    (tmp_path / "scores.json").write_text('{"test": {"f1": 0.5}, "training": {"seconds": 1}}')
    argv = ("store", "add", folders / "german", "--store", place, "--name", "g2", "--scores", tmp_path / "scores.json")
    assert "already, what is said of it differs" in ran(*argv).err
    assert ran(*argv, "--replace", "--task", "mood").code == 0
    assert (store.entry("g2").scores, store.entry("g2").task) == ({"test": {"f1": 0.5}}, "mood")


@pytest.mark.slow
def test_one_bad_folder_among_good_ones(folders, tmp_path):
    make_adapter(tmp_path / "new/good", 7)
    make_adapter(tmp_path / "new/bad", 8)
    (tmp_path / "new/bad/adapter.json").write_text("{")
    done = ran("store", "add", tmp_path / "new", "--store", tmp_path / "store", "--json")
    assert done.code == 2
    assert [entry["name"] for entry in json.loads(done.out)["added"]] == ["good"]
    assert done.err.startswith("error: 1 of 2 adapters was not added:\n- ")
    assert "new/bad" in done.err
    assert "adapter.json was changed or damaged" in done.err


def test_list_filters_sorts_and_ends_with_what_is_taken(store, monkeypatch):
    monkeypatch.setenv("DELTATUNE_STORE", str(store))
    lines = ran("store", "list", "--sort", "score").out.splitlines()
    assert lines[0].split() == ["name", "task", "method", "base", "score", "metric", "size", "added"]
    assert [line.split()[0] for line in lines[1:4]] == ["german", "legal", "story"]
    assert lines[1].split()[1:5] == ["classify", "LoRA(r=2)", "BertModel", "0.900"]
    assert lines[-1].startswith("3 adapters take ")
    assert [line.split()[0] for line in ran("store", "list", "--method", "r=4").out.splitlines()[1:2]] == ["legal"]
    listed = json.loads(ran("store", "list", "--json", "--sort", "name", "--reverse").out)
    assert [entry["name"] for entry in listed["adapters"]] == ["story", "legal", "german"]
    assert listed["storage"]["adapters"] == 3
    done = ran("store", "list", "--task", "clasify")
    assert done.code == 2
    assert done.err == (
        f"error: --task clasify: no adapter of {store} has it, did you mean 'classify'?; there is: classify\n"
    )
    assert "there are: LoRA(r=2), LoRA(r=4)" in ran("store", "list", "--method", "IA3").err
    assert "did you mean 'score'" in ran("store", "list", "--sort", "scor").err


def test_a_narrow_terminal_has_fewer_columns(store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    lines = ran("store", "list", "--store", store).out.splitlines()
    assert lines[0].split() == ["name", "task", "method", "base", "score", "size"]
    assert [line.split()[0] for line in lines[1:4]] == ["german", "legal", "story"]


@pytest.mark.slow
def test_a_long_list_is_cut_and_said_so(folders, tmp_path):
    from deltatune.store.adapter_store.add_sources import source

    AdapterStore(tmp_path / "s").add_many([source(folders / "german", f"n{i:02}") for i in range(53)])
    lines = ran("store", "list", "--store", tmp_path / "s").out.splitlines()
    assert len(lines) == 1 + 50 + 1 + 1 + 1
    assert "The first 50 are shown; --limit 0 shows all." in lines
    assert len(ran("store", "list", "--store", tmp_path / "s", "--limit", "0").out.splitlines()) == 1 + 53 + 2
    assert len(json.loads(ran("store", "list", "--store", tmp_path / "s", "--json").out)["adapters"]) == 53


def test_search_show_remove_and_export(store, folders, tmp_path):
    place = ("--store", store)
    assert [line.split()[0] for line in ran("store", "search", "reviews", *place).out.splitlines()[1:2]] == ["german"]
    assert ran("store", "search", "nowhere", "found", *place).out.startswith("No adapter matches 'nowhere found'.\n")
    shown = ran("store", "show", "german", *place).out
    for words in ("method ", "LoRA(r=2)", "bad, good", "reviews", "accuracy 0.900, f1 0.450", "digest", "objects/"):
        assert words in shown
    assert json.loads(ran("store", "show", "german", "legal", "--json", *place).out)[1]["name"] == "legal"
    done = ran("store", "show", "germn", "x/y", *place)
    assert done.code == 2
    assert "is called 'germn', did you mean 'german'" in done.err
    assert "'x/y' is not a name for an adapter: it is a path" in done.err
    assert ran("store", "export", "german", "--out", tmp_path / "out", *place).out == (
        f"Exported german to {tmp_path / 'out'}\n"
    )
    assert (tmp_path / "out/adapter.safetensors").read_bytes() == (folders / "german/adapter.safetensors").read_bytes()
    assert ran("store", "remove", "legal", "storry", *place).code == 2
    done = ran("store", "remove", "legal", "story", *place)
    assert done.out.startswith("Removed 2 adapters: legal, story\n1 adapter takes ")
    assert json.loads(ran("store", "remove", "german", "--json", *place).out)["left"] == 0
    assert (
        ran("store", "list", *place).out == f"The store {store} is empty; deltatune store add FOLDER --store {store}\n"
    )


def test_stores_that_are_not_there(folders, tmp_path):
    assert ran("store", "list").err == "error: no store is named: --store DIR, or the variable DELTATUNE_STORE\n"
    for argv in (["search", "x"], ["export", "x", "--out", tmp_path / "o"]):
        done = ran("store", *argv, "--store", tmp_path / "none")
        assert done.code == 2
        assert f"there is no store {tmp_path / 'none'}; `deltatune store add FOLDER --store" in done.err
        assert not (tmp_path / "none").exists()
    assert "is no adapter store" in ran("store", "list", "--store", folders).err
    done = ran("store", "add", folders / "german", folders / "legal", "--name", "x", "--store", tmp_path / "s")
    assert "--name x names one adapter, and 2 folders are given" in done.err


def test_a_rebuilt_index_is_said_so(store):
    (store / "index.sqlite").write_bytes(b"no database")
    done = ran("store", "list", "--store", store)
    assert done.code == 0
    assert "german" in done.out
    assert f"note: the index {store}/index.sqlite was damaged" in done.err
    assert "was made of 3 entries" in done.err
    assert ran("store", "list", "--store", store).err == ""
