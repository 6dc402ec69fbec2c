"""Prompts trained for a relation: they start as their words, learn, are kept, and act as --adapter."""

import json
from dataclasses import replace

import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.prompting.facts import FactStudy, as_template, rank_objects, run_study, softened, train_prompt
from deltatune.prompting.facts.fact_study import folder_name
from deltatune.prompting.facts.fact_training import NAME, prompt_method
from deltatune.tasks.fact_completion import fact_task
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training import Settings
from support import models

QUICK = Settings(epochs=12, batch_size=4, learning_rate=0.1)
PLACES = {"film": "good", "plot": "bad", "actor": "great", "the film": "good", "the plot": "bad", "the actor": "great"}
TRAIN = [{"subject": subject, "object": answer} for subject, answer in PLACES.items()] * 2
TEST = [{"subject": f"this {subject}", "object": answer} for subject, answer in PLACES.items()]
WORDING = "[X] is not [Y] ."


def task_of(host, tokenizer, template):
    return fact_task(template, host.model.config, host.sites.facts.vocabulary, tokenizer)


@pytest.mark.parametrize(("kind", "wording"), [("bert", "the [X] is very [Y] ."), ("gpt2", "the [X] and [Y]")])
def test_virtual_tokens_start_as_the_words_of_the_wording(kind, wording):
    """A prompt that starts from the wording's words ranks every object as the wording does."""
    host, tokenizer = deltatune.Host(models.tiny(kind, "lm", dropout=False)), models.tiny_tokenizer()
    template = softened(wording)
    plain = rank_objects(host, tokenizer, task_of(host, tokenizer, as_template(wording)), TEST)
    host.attach("a", with_token_ids(deltatune.parse(f"Prompt(template='{template}')"), tokenizer), head=False)
    soft = rank_objects(host, tokenizer, task_of(host, tokenizer, template), TEST, name="a")
    assert soft.ranks == plain.ranks
    assert len(set(plain.ranks)) > 2


@pytest.mark.parametrize(
    ("kind", "method", "template"),
    [
        ("bert", "Prompt", "{2} {subject} {2} {mask} ."),
        ("bert", "PTuning", "{mask} {1} {subject} {2}"),
        ("llama", "PTuning", "{subject} {3} {mask}"),
        ("bart", "Prompt", "{subject} {4} {mask} ."),
    ],
)
def test_a_prompt_learns_a_relation_and_the_model_stays(kind, method, template):
    host, tokenizer = deltatune.Host(models.tiny(kind, "lm", dropout=False)), models.tiny_tokenizer()
    before = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    task = task_of(host, tokenizer, template)
    fitted, text = prompt_method(f"{method}(template='{template}')", None)
    assert text == template
    untrained, _ = train_prompt(
        host, tokenizer, "tiny", task, fitted, TRAIN, (), replace(QUICK, learning_rate=1e-6, max_steps=1)
    )
    start = untrained.score(untrained.encode(TRAIN))["loss"]
    session, facts = train_prompt(host, tokenizer, "tiny", task, fitted, TRAIN, TEST, QUICK)
    assert session.score(session.encode(TRAIN))["loss"] < start - 0.2
    assert facts["validation"]["p@1"] == sum(
        rank == 1 for rank in rank_objects(host, tokenizer, task, TEST, name=session.name).ranks
    ) / len(TEST)
    assert facts["parameters"] > 0
    assert facts["cost"]["passes"] >= 12 * len(TRAIN)
    host.detach(NAME)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.model.state_dict().items())


def test_methods_and_their_templates():
    lora, template = prompt_method("LoRA(r=2)", WORDING)
    assert template == "{subject} is not {mask} ."
    prompt, template = prompt_method("Prompt()", WORDING, from_wording=True)
    assert prompt.input_template == template == "{subject} {soft:is not} {mask} {soft:.}"
    assert prompt_method("PTuning(template='[X] {3} [Y]')", None)[1] == "{subject} {3} {mask}"
    for method, wording, message in [
        ("LoRA()", None, "has no template, and there is no wording"),
        ("Prompt(template='{subject} {3} {mask}')", WORDING, "has a template; leave it out"),
        ("Prompt()", None, "no wording to start from"),
        ("LoRA()", WORDING, "takes no template that words could start"),
    ]:
        with pytest.raises(DeltatuneError, match=message):
            prompt_method(method, wording, from_wording=message != "has no template, and there is no wording")
    assert lora == deltatune.parse("LoRA(r=2)")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and facts of two relations in three splits."""
    folder = tmp_path_factory.mktemp("facts")
    models.tiny("bert", "lm", dropout=False).save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    data = folder / "lama"
    data.mkdir()
    for name, rows in {"train": [*TRAIN, TEST[0]], "dev": TRAIN[:2], "test": TEST}.items():
        lines = [json.dumps({"relation": relation, **row}) for relation in ("P1", "P2") for row in rows]
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def study(place, **fields):
    given = {"model": str(place / "model"), "data": str(place / "lama"), "prompts": str(place / "prompts")}
    return FactStudy(**{**given, "settings": QUICK, "relations": ("P1",), "wordings": (WORDING,), **fields})


def test_a_study_trains_keeps_and_opens_a_prompt(place):
    method = "Prompt(template='{subject} {3} {mask} .')"
    report = run_study(study(place, methods=(method,)))
    (relation,) = report["relations"]
    manual, trained = relation["wordings"]
    assert manual["wording"] == WORDING
    assert trained["wording"] == method
    assert trained["mrr"] > 1.5 * manual["mrr"]
    assert trained["training"]["rows"] == len(PLACES)  # each fact once, and none that is scored
    assert report["notes"] == [f"not trained on, because they are scored: 1 of the facts in {place / 'lama'}"]
    again = run_study(study(place, methods=(method,)))
    assert again["relations"][0]["wordings"][1]["p@1"] == trained["p@1"]
    assert again["relations"][0]["wordings"][1]["training"] == trained["training"]  # loaded, not trained again
    with pytest.raises(DeltatuneError, match=r"holds a finished run with other settings[\s\S]*seed"):
        run_study(study(place, methods=(method,), settings=replace(QUICK, seed=1)))
    opened = run_study(
        study(place, model=None, methods=(), wordings=(), prompts=None, adapter=str(place / "prompts" / "P1"))
    )
    (adapted,) = opened["relations"][0]["wordings"]
    assert adapted["source"] == "adapter"
    assert adapted["p@1"] == trained["p@1"]
    assert adapted["mrr"] == pytest.approx(trained["mrr"])
    with pytest.raises(DeltatuneError, match=r"facts of one relation, and .* has 2: name one with --relation"):
        run_study(study(place, relations=(), wordings=(), prompts=None, adapter=str(place / "prompts" / "P1")))


def test_all_relations_are_trained_from_their_wordings(place, tmp_path):
    templates = tmp_path / "relations.jsonl"
    templates.write_text(
        '{"relation": "P1", "template": "[X] is not [Y] ."}\n{"relation": "P2", "template": "[X] [Y] ."}'
    )
    fields = {"relations": (), "wordings": (), "templates": str(templates), "prompts": str(tmp_path / "prompts")}
    report = run_study(study(place, methods=("Prompt()",), from_wording=True, **fields))
    assert [relation["wordings"][1]["training"]["template"] for relation in report["relations"]] == [
        "{subject} {soft:is not} {mask} {soft:.}", "{subject} {mask} {soft:.}",
    ]  # fmt: skip
    assert [relation["wordings"][1]["training"]["parameters"] for relation in report["relations"]] == [3 * 32, 32]
    assert set(report["means"]) == {"first", "best", "trained", "most_frequent", "all"}
    assert {path.name for path in (tmp_path / "prompts").iterdir()} >= {"P1", "P2"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": None}, "name a model"),
        ({"data": ""}, "name the facts"),
        ({"templates": "x.jsonl"}, "both give wordings"),
        ({"methods": ("LoRa()",)}, "no method is called 'LoRa', did you mean 'LoRA'"),
        ({"adapter": "x", "methods": ("LoRA()",)}, "leave --adapter out"),
        ({"methods": ("ZeroShot()",)}, "it prompts for classes or answers"),
        ({"methods": ("Prompt(template='{subject} {mask}')",)}, "has no virtual tokens to train"),
        ({"methods": ("Prompt(length=126)",)}, "none of the 6 rows to train on can be used: 6 too long"),
        ({"train": "x.jsonl"}, "--train is for --optimise"),
        ({"over": "candidates"}, "needs --candidates"),
        ({"top": (0,)}, "at least 1"),
        ({"relations": ("P3",)}, "no relation 'P3'"),
        ({"relations": ()}, "--template is for one relation, and .* has 2"),
        ({"wordings": ("[X] is {3} [Y]",)}, "has virtual tokens, which are trained first"),
        ({"wordings": ()}, "there are no wordings: give one with --template"),
        ({"candidates": "objects", "methods": ("Prompt(template='{subject} {3} {mask}', init='labels')",)}, "init"),
    ],
)
def test_studies_that_cannot_be_done_are_refused(place, fields, message):
    given = {"prompts": None} if not fields.get("methods") else {}
    with pytest.raises(DeltatuneError, match=message):
        run_study(study(place, **{**given, **fields}))


def test_relations_have_folders_of_their_own():
    names = ["P17", "", "all", "a/b", "a-b", "../up", "..", "日本", "x" * 200]
    folders = [folder_name(name) for name in names]
    assert folders[:3] == ["P17", "all", "all"]
    assert len(set(folders[2:])) == len(names) - 2
    assert all(folder and "/" not in folder and not folder.startswith(".") and len(folder) < 80 for folder in folders)


def test_relations_without_rows_to_train_on_are_noted(place, tmp_path):
    train = tmp_path / "train.jsonl"
    rows = [{"relation": "P1", **row} for row in TRAIN] + [{"relation": "P2", "subject": "a", "object": "canada"}]
    train.write_text("\n".join(map(json.dumps, rows)))
    methods = ("Prompt(template='{subject} {1} {mask} .')", "LoRA(r=2)")
    templates = tmp_path / "relations.jsonl"
    templates.write_text("\n".join(json.dumps({"relation": name, "template": WORDING}) for name in ("P1", "P2")))
    fields = {"wordings": (), "templates": str(templates), "train": str(train), "prompts": str(tmp_path / "prompts")}
    quick = replace(QUICK, max_steps=2)
    report = run_study(study(place, relations=(), methods=methods, settings=quick, **fields))
    assert report["notes"] == ["no rows of P2 to train on: of 1 none has an object that is one token"] * 2
    trained = report["means"]["trained"]
    assert set(trained) == set(methods)
    assert {each["relations"] for each in trained.values()} == {1}
    assert {path.name for path in (tmp_path / "prompts").iterdir()} >= {"P1-1", "P1-2"}
    with pytest.raises(DeltatuneError, match="no rows of P2 to train on: of 1 none has an object"):
        run_study(study(place, relations=("P2",), methods=methods, settings=quick, **fields))
