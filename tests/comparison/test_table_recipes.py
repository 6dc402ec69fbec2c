"""The recipes of papers' tables: all are valid, and each runs on a tiny model and tiny rows in the hub's form."""

import json
from pathlib import Path

import pytest
import yaml

from deltatune.comparison.candidates import choices
from deltatune.comparison.tables import read_table, study_of_table
from deltatune.comparison.tables.measured_figures import beside_study
from deltatune.comparison.tables.table_file import data_sets, stray_figures
from deltatune.core.budget import split_budget
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.training.recipes import read_recipe
from support import models
from support.command_line import ran
from support.published import GLUE, OTHERS, SUPER_GLUE, Published, made

ROOT = Path(__file__).parents[2]
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
KINDS = {"bert": None, "gpt2": "lm", "bart": "lm", "t5": "lm", "mask": "lm"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of tiny models by kind; `mask` is a BERT with its language-model head."""
    place, folders = tmp_path_factory.mktemp("models"), {}
    for name, head in KINDS.items():
        kind = "bert" if name == "mask" else name
        longer = {"gpt2": {"n_positions": POSITIONS}, "t5": {}}
        model = models.tiny(kind, head, **longer.get(kind, {"max_position_embeddings": POSITIONS}))
        tokenizer = models.tiny_tokenizer()
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
    "dart": comparison("gpt2", **NLG),
    "e2e": comparison("gpt2", **NLG),
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
    "unipelt-low-data": comparison("bert", data=GLUE_FEW, limit=[20, 30], task={"max_length": 24}),
    "webnlg": comparison("gpt2", **NLG),
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
