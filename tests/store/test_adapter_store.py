"""The adapter store: added, listed, searched, read, exported and removed by name; damage and bad names are errors."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.store.adapter_store import AdapterStore, object_files, store_folder
from deltatune.store.adapter_store.adapter_names import name_of, name_problem
from support import models
from support.stored_adapters import LABELS, base, make_adapter, same, saved_tensors

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """What is on the disk after a power failure is not seen here."""
    monkeypatch.setattr(store_folder, "sync", lambda folders: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five adapters of several methods."""
    place = tmp_path_factory.mktemp("adapters")
    make_adapter(place / "german", 1, score=0.9, data={"source": "reviews"})
    make_adapter(place / "legal", 2, "LoRA(r=4)", score=0.7)
    make_adapter(place / "news", 3, "IA3()", score=0.8)
    make_adapter(place / "mail", 4, "Prefix(length=3) + LoRA(r=2)")
    make_adapter(place / "story", 5, kind="gpt2")
    return place


@pytest.fixture
def store(folders, tmp_path):
    opened = AdapterStore(tmp_path / "store")
    opened.add_all(folders)
    return opened


def names(entries):
    return [entry.name for entry in entries]


def test_what_is_added_is_known_and_read_as_it_was(store, folders):
    assert len(store) == 5
    assert "german" in store
    assert "french" not in store
    assert store.names() == ["german", "legal", "mail", "news", "story"]
    entry = store.entry("german")
    assert (entry.method, entry.task, entry.labels, entry.data) == ("LoRA(r=2)", "classify", LABELS, "reviews")
    assert entry.score == ("accuracy", 0.9)
    assert entry.base.architecture == "BertModel"
    assert entry.base.bytes == 4 * base().sites.base_params
    assert entry.parameters == sum(t.numel() for n, t in saved_tensors(folders / "german").items() if "head." not in n)
    assert entry.bytes == sum(path.stat().st_size for path in store.folder("german").iterdir())
    stored = store.read("german")
    assert same(dict(stored.tensors), saved_tensors(folders / "german"))
    assert stored.extra["task"]["labels"] == [*LABELS]


@torch.no_grad()
def test_a_stored_adapter_attaches_and_goes_into_a_bank_with_the_outputs_that_it_had(store, folders):
    plain = Host(models.tiny("bert"))
    plain.load(folders / "german")
    expected = plain.model(IDS)[0]
    host = Host(models.tiny("bert"))
    host.load(store.folder("german"), name="by_folder")
    store.read("german").attach_to(host, "attached")
    stored = store.read("german")
    assert stored.can_go_into(host.bank())
    stored.put_into(host.bank(), "banked")
    for name in ("by_folder", "attached", "banked"):
        with host.using(name):
            torch.testing.assert_close(host.model(IDS)[0], expected, rtol=1e-5, atol=1e-6)
        assert same(dict(host.adapters[name].head.state_dict()), dict(plain.adapters["german"].head.state_dict()))
    with pytest.raises(DeltatuneError, match="another base"):
        store.read("story").put_into(host.bank(), "story")
    torch.nn.init.normal_(host.model.encoder.layer[0].output.dense.weight)
    with pytest.raises(DeltatuneError, match="other weights"):
        store.read("german").put_into(host.bank(), "again")
    store.read("german").put_into(host.bank(), "again", other_base=True)


def test_lists_filter_and_sort(store):
    assert names(store.list(task="classify", sort="score")) == ["german", "news", "legal", "mail", "story"]
    assert names(store.list(sort="score", reverse=True))[:3] == ["legal", "news", "german"]
    assert names(store.list(method="lora")) == ["german", "legal", "mail", "story"]
    assert names(store.list(method="r=4")) == ["legal"]
    assert names(store.list(base=store.entry("story").base.content)) == ["story"]
    assert names(store.list(limit=2)) == ["german", "legal"]
    assert names(store.list(method="%")) == names(store.list(method="_")) == []
    sizes = [entry.bytes for entry in store.list(sort="size")]
    assert sizes == sorted(sizes)
    with pytest.raises(DeltatuneError, match=r"sort='scores': must be one of .*, did you mean 'score'"):
        store.list(sort="scores")


def test_search_finds_words_everywhere(store, folders):
    store.add(folders / "german", "tagged", tags=["Medical", "eu"])
    assert names(store.search("GERM")) == ["german"]
    assert names(store.search("good lora ger")) == ["german"]
    assert names(store.search("medical")) == ["tagged"]
    assert names(store.search("reviews")) == ["german", "tagged"]
    assert names(store.list(tags=["eu", "Medical"])) == ["tagged"]
    assert names(store.list(tags=["eu", "other"])) == []
    assert names(store.search("nothing of it")) == []
    assert store.values("tag") == ["Medical", "eu"]


def test_equal_content_is_kept_once(store, folders):
    before = store.storage()
    other = store.add(folders / "german", "copy")
    assert other.digest == store.revision("german")
    after = store.storage()
    assert (after.adapters, after.bytes) == (before.adapters + 1, before.bytes)
    assert after.full_copies == before.full_copies + other.base.bytes
    assert after.base_bytes == sum(store.entry(name).base.bytes for name in ("german", "story"))
    folder = store.folder("german")
    store.remove("german")
    assert folder.is_dir()
    assert "copy" in store
    store.remove("copy")
    assert not folder.exists()


def test_adding_again_changes_nothing_and_other_content_needs_replace(store, folders):
    entry = store.entry("german")
    assert store.add(folders / "german") == entry
    with pytest.raises(DeltatuneError, match=r"has an adapter 'german' already, with other content.*--replace"):
        store.add(folders / "legal", "german")
    with pytest.raises(DeltatuneError, match="what is said of it differs"):
        store.add(folders / "german", tags=["x"])
    old = store.folder("german")
    store.add(folders / "german", tags=["x"], replace=True)
    replaced = store.add(folders / "legal", "german", replace=True)
    assert replaced.digest == store.revision("legal") != entry.digest
    assert replaced.tags == ("x",)
    assert not old.exists()


def test_who_has_an_adapter_open_keeps_it(store, folders):
    stored = store.read("german")
    store.add(folders / "legal", "german", replace=True)
    store.remove("german")
    assert not stored.folder.exists()
    assert same(dict(stored.tensors), saved_tensors(folders / "german"))


def test_scores_and_task_from_the_user_and_from_the_run(store, folders, tmp_path):
    run = tmp_path / "run-1"
    shutil.copytree(folders / "mail", run / "adapter")
    metrics = {"validation": {"accuracy": 0.6}, "training": {"seconds": 3.0}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    entry = store.add(run)
    assert (entry.name, entry.score, entry.scores) == ("run-1", ("accuracy", 0.6), {"validation": {"accuracy": 0.6}})
    entry = store.add(folders / "news", "told", task="intent", scores={"f1": 0.25})
    assert (entry.task, entry.scores, entry.score) == ("intent", {"test": {"f1": 0.25}}, ("f1", 0.25))
    for scores in ({"f1": "high"}, {"test": {"f1": True}}, [1], {"f1": float("nan")}):
        with pytest.raises(DeltatuneError, match="the scores"):
            store.add(folders / "news", "wrong", scores=scores)
    (run / "run.json").write_text("{}")
    shutil.rmtree(run / "adapter")
    (run / "metrics.json").unlink()
    with pytest.raises(DeltatuneError, match="is not finished"):
        store.add(run)


NO_NAMES = (
    *("", ".", "..", "a/b", "../a", "/a", "a\\b", "a b", "a:0.5", "a+b", "2nd", "-a", "a" * 300, "a\x00b", "a\nb"),
    *("g\u0435rman", "\uff47erman", "na\u00efve", "a\u202eb", "base", "CON.", "a.json", 3, "a\ud800"),
)


def test_names_that_no_adapter_can_have(store, folders, tmp_path):
    before = sorted(os.walk(tmp_path))
    for name in NO_NAMES:
        with pytest.raises(DeltatuneError, match=r"is not a name for an adapter") as error:
            store.add(folders / "german", name)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 400
        with pytest.raises(DeltatuneError, match="no such adapter"):
            store.entry(name)
        assert name not in store
        store.search(str(name))  # any text may be searched for
    assert sorted(os.walk(tmp_path)) == before


def test_names_that_differ_in_case_alone_are_refused(store, folders):
    with pytest.raises(DeltatuneError, match="'German' differs from it in case alone"):
        store.add(folders / "german", "German", replace=True)
    assert "German" not in store
    with pytest.raises(DeltatuneError, match="did you mean 'german'"):
        store.entry("German")


def test_names_of_folders():
    assert name_of("runs/train-news/adapter") == "train-news"
    assert name_of("runs/2024 über.0.5") == "a-2024-uber-0-5"
    assert name_of("base") == "a-base"
    assert name_of("日本") == "adapter"
    assert all(name_problem(name_of(text)) is None for text in ("x" * 300, "-", "..", "/", "a/..", ".x", "ﬁ"))


def test_the_nearest_name_is_told_among_many(store):
    with pytest.raises(DeltatuneError, match="called 'germna', did you mean 'german'"):
        store.entry("germna")
    with pytest.raises(DeltatuneError, match=r"(?s)'legl', did you mean 'legal'.*'newz', did you mean 'news'"):
        store.remove("german", "legl", "newz")
    assert "german" in store


def test_a_damaged_object_is_told_and_added_again(store, folders):
    path = store.folder("german") / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    match = (
        r"'german' of the store .* is damaged: adapter.safetensors was changed.*store add FOLDER --name german --rep"
    )
    for opened in (store, AdapterStore(store._place.root)):
        with pytest.raises(DeltatuneError, match=match):
            opened.read("german")
        with pytest.raises(DeltatuneError, match="is damaged"):
            opened.export("german", store._place.root.parent / "out")
    assert store.read("legal").method == parse("LoRA(r=4)")
    store.add(folders / "german", replace=True)
    assert same(dict(store.read("german").tensors), saved_tensors(folders / "german"))
    (store.folder("german") / "manifest.json").write_text('{"files": {}}')
    os.utime(store.folder("german") / "adapter.json")
    with pytest.raises(DeltatuneError, match=r"its manifest.json is not the one"):
        store.read("german")
    shutil.rmtree(store.object_folder("legal"))
    with pytest.raises(DeltatuneError, match=r"'legal' of the store .* is damaged: .*add it again"):
        store.read("legal")
    assert store.add(folders / "legal").digest == store.revision("legal")
    assert store.read("legal").method == parse("LoRA(r=4)")


def test_files_are_verified_once_and_again_when_they_change(store, monkeypatch):
    hashed = []
    problems = type(store._place.objects).problems
    monkeypatch.setattr(type(store._place.objects), "problems", lambda s, *a: hashed.append(a[0]) or problems(s, *a))
    store.read("german")
    AdapterStore(store._place.root).read("german")
    assert hashed == []  # when it was added
    os.utime(store.folder("german") / "adapter.safetensors", ns=(0, 0))
    hashed.clear()
    store.read("german")
    store.read("german")
    assert hashed == [store.revision("german")]


def test_what_cannot_be_stored_is_refused_and_the_rest_is_added(folders, tmp_path):
    place = tmp_path / "new"
    shutil.copytree(folders / "german", place / "good")
    shutil.copytree(folders / "german", place / "cut")
    (place / "cut/adapter.safetensors").write_bytes(b"x")
    shutil.copytree(folders / "german", place / "unlisted")
    (place / "unlisted/manifest.json").unlink()
    make_adapter(place / "empty", 7)
    (place / "empty/adapter.json").write_text("{}")
    (place / "text").mkdir()
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(DeltatuneError) as error:
        store.add_all(place)
    lines = str(error.value).splitlines()
    assert lines[0] == "3 of 4 adapters were not added:"
    assert all(str(place / name) in str(error.value) for name in ("cut", "unlisted", "empty"))
    assert store.names() == ["good"]
    assert not list((tmp_path / "store/objects").glob(".*"))
    with pytest.raises(DeltatuneError, match="holds no adapter"):
        store.add_all(place / "text")
    with pytest.raises(DeltatuneError, match="holds no adapter"):
        store.add(place / "text")


def test_values_that_are_not_finite_are_refused(tmp_path):
    host = base()
    host.attach("bad", parse("LoRA(r=2)"), head=False)
    host.save("bad", tmp_path / "bad")
    host.detach("bad")
    from safetensors.torch import save_file

    from deltatune.store.atomic_files import digest

    tensors = saved_tensors(tmp_path / "bad")
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, tmp_path / "bad/adapter.safetensors")
    manifest = json.loads((tmp_path / "bad/manifest.json").read_text())
    manifest["files"]["adapter.safetensors"] = digest(tmp_path / "bad/adapter.safetensors")
    (tmp_path / "bad/manifest.json").write_text(json.dumps(manifest))
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(DeltatuneError, match=r"cannot be stored:\n- tensor lora.*1 of .* not finite: infinity"):
        store.add(tmp_path / "bad")
    assert len(store) == 0


def test_a_peft_adapter_that_names_a_known_base_counts_to_it(folders, tmp_path):
    store = AdapterStore(tmp_path / "store")
    ours = store.add(folders / "story").base
    (tmp_path / "theirs").mkdir()
    shutil.copy(folders / "story/adapter_model.safetensors", tmp_path / "theirs")
    config = json.loads((folders / "story/adapter_config.json").read_text())
    config["base_model_name_or_path"] = ours.name
    (tmp_path / "theirs/adapter_config.json").write_text(json.dumps(config))
    theirs = store.add(tmp_path / "theirs").base
    assert (theirs.name, theirs.content, theirs.bytes) == (ours.name, "", 0)
    storage = store.storage()
    assert (storage.bases, storage.base_bytes, storage.full_copies) == ((ours.name,), ours.bytes, 2 * ours.bytes)


@torch.no_grad()
def test_a_peft_folder_is_kept_as_it_is(folders, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        shutil.copy(folders / "story" / name, tmp_path / "theirs")
    store = AdapterStore(tmp_path / "store")
    entry = store.add(tmp_path / "theirs", scores={"bleu": 20})
    assert (entry.format, entry.score) == ("peft", ("bleu", 20.0))
    assert entry.method.startswith("LoRA(r=")
    assert store.add(tmp_path / "theirs") == entry
    plain, host = Host(models.tiny("gpt2", "lm")), Host(models.tiny("gpt2", "lm"))
    plain.load(folders / "story", name="a")
    host.load(store.folder("theirs"), name="loaded")
    stored = store.read("theirs")
    stored.attach_to(host, "attached")
    assert stored.can_go_into(host.bank())
    stored.put_into(host.bank(), "banked")
    expected = plain.model(IDS)[0]
    for name in ("loaded", "attached", "banked"):
        with host.using(name):
            torch.testing.assert_close(host.model(IDS)[0], expected, rtol=1e-5, atol=1e-6)
    assert {path.name for path in store.export("theirs", tmp_path / "out").iterdir()} >= {"adapter_config.json"}
    (tmp_path / "theirs/adapter_model.safetensors").unlink()
    (tmp_path / "theirs/adapter_model.bin").touch()
    with pytest.raises(DeltatuneError, match=r"pickled .bin adapters are not read: save it as safetensors"):
        store.add(tmp_path / "theirs", "pickled")


def test_export_gives_the_same_folder(store, folders, tmp_path):
    out = store.export("german", tmp_path / "out")
    for path in (folders / "german").iterdir():
        if path.name != "manifest.json":
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert AdapterStore(tmp_path / "other").add(out, "x").digest == store.revision("german")
    with pytest.raises(DeltatuneError, match="would overwrite"):
        store.export("german", store._place.root / "objects")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(DeltatuneError, match="were not written here"):
        store.export("german", tmp_path / "mine")


def test_folders_that_are_no_store(tmp_path, folders):
    empty = AdapterStore(tmp_path / "none")
    assert not empty.exists
    assert len(empty) == 0
    assert empty.list() == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(DeltatuneError, match=r"no adapter store \(it has no store.json\)"):
        AdapterStore(folders)
    (tmp_path / "file").touch()
    with pytest.raises(DeltatuneError, match="is a file"):
        AdapterStore(tmp_path / "file")
    (tmp_path / "later").mkdir()
    (tmp_path / "later/store.json").write_text('{"schema": 2}')
    with pytest.raises(DeltatuneError, match="has schema 2, this deltatune reads 1; update"):
        AdapterStore(tmp_path / "later")
    empty.add(folders / "german")
    assert len(empty) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": "x" * 60_000}, "60,000 characters; 1,000 are the most"),
        ({"text": " ".join(f"word{i}" for i in range(2000))}, "1,000 are the most"),
        ({"tags": [str(i) for i in range(2000)]}, "2,000 tags are asked for"),
        ({"tags": "eu"}, "give a list of tags"),
        ({"tags": [None]}, "tag=None: must be a text"),
        ({"task": 5, "method": 6}, r"(?s)task=5: must be a text.*method=6: must be a text"),
        ({"limit": 2.5}, "limit=2.5: must be a whole number"),
        ({"limit": "3"}, "limit='3'"),
        ({"limit": True}, "limit=True"),
        ({"sort": None}, "sort=None: must be one of"),
    ],
)
def test_what_cannot_be_asked_is_an_error_and_harms_no_index(given, words, store):
    with pytest.raises(DeltatuneError, match=words):
        store.list(**given)
    assert store.notes == []
    assert names(store.list(limit=10**30)) == store.names()


def test_names_that_no_file_can_have_are_not_there(store):
    for ask in (store.remove, store.read, store.export):
        with pytest.raises(DeltatuneError, match="is not a name for an adapter"):
            ask(*("\ud800", "folder")[: 2 if ask == store.export else 1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": 3}, "the task 3 must have"),
        ({"scores": {"accuracy": 10**400}}, "must be a number"),
        ({"scores": {3: 0.5}}, "3 is no name of a split or a metric"),
        ({"scores": {"test": {None: 0.5}}}, "None is no name"),
    ],
)
def test_facts_that_are_not_of_their_kind(given, words, store, folders):
    with pytest.raises(DeltatuneError, match=words):
        store.add(folders / "german", "again", **given)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_in_an_object_is_told_and_replaced(kind, store, folders):
    path = store.folder("german") / "adapter.safetensors"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nothing")
    with pytest.raises(DeltatuneError, match=r"'german' of the store .* is damaged: .*adapter.safetensors"):
        store.read("german")
    store.add(folders / "german", replace=True)
    assert same(dict(store.read("german").tensors), saved_tensors(folders / "german"))


def test_a_disk_that_is_full_is_told_of_the_store_and_not_of_the_folder(store, folders, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(object_files, "_copy", full)
    with pytest.raises(DeltatuneError, match="cannot write") as told:
        store.add(folders / "legal", "again")
    assert str(folders) not in str(told.value)
    assert str(store._place.root) in str(told.value)


def test_a_bank_refuses_sites_of_other_modules_as_a_host_does(store):
    host, stored = base(), store.read("german")
    name = next(iter(stored.sites))
    elsewhere = replace(stored, sites={**stored.sites, name: "encoder.somewhere"})
    for use in (lambda: elsewhere.attach_to(host, "moved"), lambda: elsewhere.put_into(host.bank(), "moved")):
        with pytest.raises(DeltatuneError, match=r"encoder\.somewhere"):
            use()
    assert "moved" not in host.adapters
