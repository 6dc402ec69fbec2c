"""The recipes of papers' tables: all are valid, and each runs on a tiny model and tiny rows in the hub's form."""

import json
from pathlib import Path

import pytest
import yaml

from deltatune.cli.commands.run import table_schema
from deltatune.comparison.plans.candidates import choices
from deltatune.comparison.report.study_tables import published_scale
from deltatune.comparison.tables import read_table, study_of_table
from deltatune.comparison.tables.measured_figures import beside, beside_study
from deltatune.comparison.tables.table_file import data_sets, stray_figures
from deltatune.core.budget import split_budget
from deltatune.core.errors import DeltatuneError
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.training.recipes import read_recipe, run_recipe
from support import models, stages
from support.command_line import ran
from support.published import GLUE, OTHERS, SUPER_GLUE, Published, made

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "recipes/tables"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
STAGES = {"chinese-llama"}
TABLES = sorted(set(FILES) - STAGES)
HUB = {
    "tuetschek/e2e_nlg": "e2e_nlg", "GEM/web_nlg:en": "web_nlg", "GEM/dart": "dart", "EdinburghNLP/xsum": "xsum",
    "Salesforce/wikisql": "wikisql", "knkarthick/samsum": "samsum", "rajpurkar/squad": "squad",
    "fancyzhx/ag_news": "ag_news", "stanfordnlp/imdb": "imdb", "CogComp/trec": "trec", "stanfordnlp/snli": "snli",
    "facebook/lama:trex": "lama",
}  # fmt: skip
"""Sets that recipes name -> their form in tests/support/published.py."""


def _fact(i):
    return {
        "uuid": str(i), "sub_label": f"the plot {i}", "obj_label": ("film", "actor")[i % 2], "predicate_id": "P17",
        "masked_sentence": "[MASK]", "template": "[X] is in [Y] .",
    }  # fmt: skip


LAMA = made(_fact, splits=("train",))


def published_set(name: str) -> Published:
    """The rows of a hub name, `owner/name` or `owner/name:configuration`."""
    owner, _, configuration = name.partition(":")
    suites = {"nyu-mll/glue": GLUE, "aps/super_glue": SUPER_GLUE}
    if owner in suites:
        return suites[owner][configuration]
    return LAMA if name == "facebook/lama:trex" else OTHERS[HUB[name]]


@pytest.fixture
def hub(monkeypatch):
    """The hub, with tiny sets in place of those that recipes name."""
    import datasets

    def load_dataset(name, configuration=None):
        return published_set(name + (f":{configuration}" if configuration else "")).load()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


POSITIONS, TOKENS = 1024, 20_000
"""Of tiny models: recipes name long prompts, and budgets of 0.1 %."""
KINDS = {"bert": None, "gpt2": "lm", "bart": "lm", "t5": "lm", "mask": "lm", "many-tokens": "lm"}
MANY_TOKENS = ("bart", "many-tokens")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of tiny models by kind; `mask` is a BERT with its language-model head, `many-tokens` a GPT-2."""
    place, folders = tmp_path_factory.mktemp("models"), {}
    for name, head in KINDS.items():
        kind = {"mask": "bert", "many-tokens": "gpt2"}.get(name, name)
        longer = {"gpt2": {"n_positions": POSITIONS}, "t5": {}}
        model = models.tiny(kind, head, **longer.get(kind, {"max_position_embeddings": POSITIONS}))
        tokenizer = models.tiny_tokenizer()
        if name in MANY_TOKENS:
            model.resize_token_embeddings(TOKENS, mean_resizing=False)
        tokenizer.eos_token = tokenizer.sep_token
        folders[name] = place / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def test_every_table_has_a_recipe_and_every_recipe_says_what_it_is():
    expected = {*SMALL, *STAGES}
    assert set(FILES) == expected
    for name, path in FILES.items():
        first, second, *rest = path.read_text(encoding="utf-8").splitlines()
        schema = "recipe" if name in STAGES else "table"
        assert first == f"# yaml-language-server: $schema=../../docs/{schema}.schema.json"
        assert second.startswith("# ")
        assert f"deltatune run recipes/tables/{path.name}" in "\n".join(rest)


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_is_valid_and_its_figures_have_places(name):
    recipe = read_table(FILES[name])
    assert not stray_figures(recipe)
    for figure in recipe.figures():
        assert "arxiv.org/abs/" in figure["source"] or figure["source"].startswith("https://github.com/microsoft/LoRA")
    twice = [json.dumps([f["method"], f["at"], f["metric"]], sort_keys=True) for f in recipe.figures()]
    assert len(set(twice)) == len(twice)
    if recipe.compare is not None:
        study = study_of_table(recipe, Path("out"))
        assert len(study.points) == len(set(study.folders.values()))
    for method in getattr(recipe.experiment, "methods", []):
        for choice in choices(split_budget(method)[0]):
            assert as_prompt_method(choice)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("adapter-latency", "storage")])
def test_the_data_of_a_recipe_are_known_sets_of_the_hub(name):
    recipe = read_table(FILES[name])
    data = recipe.experiment.data
    sources = [data] if isinstance(data, str) else [rows.source for rows in data_sets(data)[1].values()]
    for source in sources:
        assert published_set(source).splits["train"]


def test_the_stages_of_chinese_llama_are_valid():
    recipe = read_recipe(FILES["chinese-llama"])
    assert [stage.name for stage in recipe.stages] == ["words", "embeddings", "pretrain", "instruct"]


@pytest.mark.slow
def test_the_stages_of_chinese_llama_run(tmp_path):
    place = stages.world(tmp_path, tied=False)
    recipe = stages.recipe(place, tmp_path / "out", file=FILES["chinese-llama"])
    result = run_recipe(recipe, "chinese-llama")
    assert [stage["stage"] for stage in result["stages"]] == list(stages.NAMES)
    assert result["stages"][0]["vocabulary"]["added"] > 0
    assert result["stages"][-1]["measure"]["tokens_per_char"] < result["measure"]["tokens_per_char"]


SHORT = {"max_steps": 2, "batch_size": 4, "precision": "float32"}
GLUE_FEW = {task: f"nyu-mll/glue:{task}" for task in ("cola", "mrpc")}


def changes(kind, **values):
    """Overrides of an experiment, as on the command line."""
    return [f"{kind}.{name}={yaml.safe_dump(value, default_flow_style=True, width=9999).splitlines()[0]}"
            for name, value in values.items()]  # fmt: skip


def comparison(model, **values):
    few = {"model": model, "seeds": 1, "rates": 1, "settings": SHORT, **values}
    return lambda tiny: changes("compare", **{**few, "model": str(tiny[model])})


NLG = {"task": {"new_tokens": 4, "max_length": 48, "metric": "bleu"}}
SMALL = {
    "adapter-latency": lambda tiny: changes(
        "latency", model=str(tiny["gpt2"]), batches=[1], lengths=[128], repeats=3,
        methods=["Pfeiffer()@11M", "Houlsby()@11M"],
    ),
    "bitfit-data-size": comparison("bert", limit=[20, None], task={"metric": "em", "max_length": 64, "stride": 8}),
    "continual": lambda tiny: changes(
        "continual", model=str(tiny["bert"]), limit=20, seeds=1, settings=SHORT, methods=["LoRA(r=8)"],
        data={"news": "fancyzhx/ag_news", "films": "stanfordnlp/imdb"},
    ),
    "d90": lambda tiny: changes(
        "dimension", model=str(tiny["bert"]), data={"mrpc": "nyu-mll/glue:mrpc"}, methods=["SAID", "DID"], rates=1,
        largest=20, settings=SHORT, task={"max_length": 24, "metric": "accuracy"},
    ),
    "dart": comparison("many-tokens", **NLG),
    "e2e": comparison("many-tokens", **NLG),
    "glue-deberta": comparison("bert", data=GLUE_FEW, task={"max_length": 24}),
    "glue-houlsby": comparison("bert", data=GLUE_FEW, task={"max_length": 24}),
    "glue-roberta": comparison("bert", data={**GLUE_FEW, "mnli": "nyu-mll/glue:mnli"}, task={"max_length": 24}),
    "gpt3-tasks": comparison(
        "gpt2", data={
            "wikisql": {"source": "Salesforce/wikisql", "fields": {"max_length": 48, "new_tokens": 4}},
            "mnli": {"source": "nyu-mll/glue:mnli", "fields": {"max_length": 24}},
            "samsum": {
                "source": "knkarthick/samsum", "task": "generate",
                "fields": {"max_length": 48, "new_tokens": 4, "metric": "rouge1"},
            },
        },
    ),
    "in-context": comparison("gpt2", data={"sst2": "nyu-mll/glue:sst2"}),
    "lama-p17": lambda tiny: changes("facts", model=str(tiny["mask"])),
    "lora-matrices": comparison("gpt2", data={"mnli": {"source": "nyu-mll/glue:mnli", "fields": {"max_length": 24}}}),
    "lora-ranks": comparison("gpt2", data={"mnli": {"source": "nyu-mll/glue:mnli", "fields": {"max_length": 24}}}),
    "prompt-ablations": comparison("t5", task={"max_length": 24, "new_tokens": 2, "metric": "em"}),
    "prompt-tuning-scale": comparison(
        "t5", task={"max_length": 24, "new_tokens": 2, "metric": "em"},
        data={
            "cb": {
                "source": "aps/super_glue:cb", "task": "generate", "text": ["premise", "hypothesis"], "label": "label",
            },
        },
    ),
    "storage": lambda tiny: changes("count", model=str(tiny["gpt2"])),
    "unipelt-low-data": comparison("bert", data=GLUE_FEW, limit=[100], task={"max_length": 24}),
    "webnlg": comparison("many-tokens", **NLG),
    "xsum": comparison("bart", task={"max_length": 32, "new_tokens": 4, "metric": "rouge2"}),
}  # fmt: skip
"""What makes a recipe small enough for a test: the model, its settings, and fewer sets."""


FAST = {"storage", "lama-p17", "adapter-latency", "glue-deberta", "continual"}


def run_in_test(name, tiny, tmp_path, *more):
    """Run a recipe on the command line and return the command's end, the result, and the text of its page."""
    out = tmp_path / "out"
    done = ran("run", FILES[name], *SMALL[name](tiny), f"out={out}", *more)
    assert done.code == 0, done.err
    files = ("study.json", "study.html") if (out / "study.json").exists() else ("table.json", "table.html")
    result = json.loads((out / files[0]).read_text(encoding="utf-8"))
    return done, result, (out / files[1]).read_text(encoding="utf-8")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TABLES]
)
def test_a_recipe_runs_to_its_report_and_figures_have_neighbours(name, hub, tiny, tmp_path):
    done, result, page = run_in_test(name, tiny, tmp_path)
    assert not result.get("failed"), result["failed"]
    recipe = read_table(FILES[name], SMALL[name](tiny))
    figures = beside_study(result) if recipe.compare else result["published"]
    assert len(figures) == len(recipe.published)
    for figure in figures:
        assert figure["here"] is not None, figure
    assert ("Published" in page) == bool(figures)
    if figures:
        assert figures[0]["source"] in done.out
        assert "difference" in done.out
    if name != "d90":  # its figures are of the models that the test replaces
        assert figures or not read_table(FILES[name]).published, "the test leaves no published figure"
    assert read_table(tmp_path / "out/table.yaml").published == recipe.published


def test_the_table_of_the_documents_is_a_recipe(tmp_path):
    text = (ROOT / "docs/paper_tables.md").read_text(encoding="utf-8")
    (tmp_path / "table.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    recipe = read_table(tmp_path / "table.yaml")
    assert recipe.kind == "compare"
    assert read_table(tmp_path / "table.yaml", ["out=x"]).notes == recipe.notes, "the folder is no change"
    for name in FILES:
        assert name in text, "a row of the page's table for each recipe"


def test_the_schema_is_current():
    stored = json.loads((ROOT / "docs/table.schema.json").read_text(encoding="utf-8"))
    assert stored == table_schema(), "stale: run `make docs`"
    assert json.loads(ran("run", FILES["e2e"], "--schema").out) == stored
    described = [schema["properties"] for schema in stored["$defs"].values() if "properties" in schema]
    assert all("description" in key or "$ref" in key for keys in described for key in keys.values())


TABLE = """
title: Two reviews
source: "https://arxiv.org/abs/1, table 1"
compare: {data: {a: a.csv, b: b.csv}, methods: ["LoRA()", "Full()"], limit: [10, null]}
published:
  - {method: "LoRA()", at: {data: a, limit: 10}, metric: accuracy, value: 90}
  - {method: "Full()", metric: accuracy, value: 91, source: elsewhere}
"""


def table(tmp_path, text=TABLE):
    path = tmp_path / "reviews.yaml"
    path.write_text(text)
    return path


def test_mistakes_are_named_all_at_once(tmp_path):
    wrong = TABLE.replace("limit: [10, null]", "limit: [ten], settings: {epoch: 3}, methds: 1").replace(
        "title:", "titel:"
    )
    with pytest.raises(DeltatuneError) as error:
        read_table(table(tmp_path, wrong))
    for part in ("titel: there is no such key, did you mean 'title'?", "title: this key is required",
                 "compare.limit.1: input should be a valid integer", "did you mean 'epochs'?",
                 "compare.methds: there is no such key, did you mean 'methods'?"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('method: "Full()"', 'method: "Ful()"', r"there is no method 'Ful\(\)', did you mean 'Full\(\)'"),
        ("data: a, limit", "data: c, limit", "published 1: data c is not there; values: a, b"),
        ("limit: 10}", "limit: 11}", "limit 11 is not there.*values: 10, None"),
        ("at: {data", "at: {dota", "there is no 'dota', did you mean 'data'"),
        ("source: elsewhere", "sorce: elsewhere", "published.2.sorce: there is no such key, did you mean 'source'"),
        ('source: "https', 'notes: ["https', "need a source"),
    ],
)
def test_a_figure_that_stands_beside_nothing_is_an_error(old, new, message, tmp_path):
    text = TABLE.replace(old, new)
    text = text.replace('table 1"', 'table 1"]') if "notes" in new else text
    with pytest.raises(DeltatuneError, match=message):
        read_table(table(tmp_path, text))


def test_an_override_is_a_note_and_its_strays_are_left_out(tmp_path):
    recipe = read_table(table(tmp_path), ["compare.limit=20"])
    assert [figure.method for figure in recipe.published] == ["Full()"]
    assert "compare.limit=20" in recipe.notes[0]
    assert recipe.notes[1] == "1 published figure is of other methods or places and left out"
    assert [figure["source"] for figure in read_table(table(tmp_path)).figures()][1] == "elsewhere"


@pytest.mark.parametrize("text", ["title: x\npublished: []", TABLE + "\nlatency: {}\n"])
def test_a_table_has_one_experiment(text, tmp_path):
    with pytest.raises(DeltatuneError, match="a table needs one experiment of compare, dimension"):
        read_table(table(tmp_path, text))


def test_a_run_is_not_written_into_another_one(tiny, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    done = ran("run", FILES["storage"], *SMALL["storage"](tiny), f"out={tmp_path}")
    assert done.code == 2
    assert "holds a training run (run.json)" in done.err
    assert not (tmp_path / "table.yaml").exists()
    assert "--force is not for a table" in ran("run", FILES["storage"], "--force").err


def test_figures_are_compared_on_the_published_scale():
    published = [{"method": "m", "at": {"relation": "P17"}, "metric": "p@1", "value": 31.29, "source": "s"}]
    measured = [{"method": "m", "at": {"relation": "P17", "model": "x"}, "metric": "p@1", "value": 0.25}]
    assert beside(published, measured, "facts")[0]["here"] == 25
    assert beside(published, measured, "latency")[0]["here"] == 0.25, "milliseconds are no shares"
    assert beside(published, [{**measured[0], "metric": "p@10"}], "facts")[0]["here"] is None
    assert published_scale(8.6, 0.9, "nist") == 1, "NIST goes beyond 1"
    assert published_scale(46.2, 0.9, "meteor") == 100
