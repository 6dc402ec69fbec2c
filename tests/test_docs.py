"""The generated documentation is what the code says, and what the documents name exists."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import deltatune
from deltatune.cli.options.shared_options import SOURCE, Metric
from deltatune.data import formats, read
from deltatune.tasks import generation, language_modeling, multilabel
from deltatune.tasks.diffusion.text_to_image import TextToImage
from deltatune.tasks.metrics.classification_and_regression import CLASS_METRICS, REGRESSION_METRICS
from deltatune.tasks.metrics.generation.generation_metrics import ENCODER_METRICS, READ_METRICS
from deltatune.tasks.metrics.preference_scores import PREFERENCE_METRICS
from deltatune.tasks.metrics.qa_scores import SPAN_METRICS
from deltatune.tasks.metrics.tag_scores import ENTITY_METRICS, TAG_METRICS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/deltatune"


def script(name):
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables, site_pages = script("tables"), script("site_pages")


def test_generated_documents_are_fresh():
    for path, text in tables.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make docs`"


def test_no_page_is_left_of_a_method_that_is_gone():
    pages = set((ROOT / "docs/methods").glob("*.md"))
    assert pages == {path for path in tables.generated() if path.parent.name == "methods"}


PAGES_WITH_NAMES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("composing", "interchange", "training", "methods/lora")),
]


@pytest.mark.parametrize("document", PAGES_WITH_NAMES)
def test_public_names_in_documents_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    names = set(re.findall(r"deltatune\.([A-Za-z_]\w*)\(", text))
    assert names
    for name in names:
        assert hasattr(deltatune, name), f"{document} names deltatune.{name}"


def listed(tree):
    """The files and folders of a tree of names, indented by two spaces a level, as paths below the package."""
    paths, above = [], []
    for depth, name in ((len(spaces) // 2, name) for spaces, name in re.findall(r"^( *)(\S+)  ", tree, re.MULTILINE)):
        above = [*above[:depth], name]
        paths.append("".join(above))
    return paths


def tree_of(document):
    """The lines of a document's file trees, the package's own line left out."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith("src/")]


def entries(folder, deepest):
    """The files and folders of the package below a folder, down to a depth, as `listed` writes them."""
    for path in folder.iterdir():
        if (path / "__init__.py").is_file():
            yield f"{path.relative_to(PACKAGE)}/"
            if deepest > 1:
                yield from entries(path, deepest - 1)
        elif path.suffix == ".py" and path.stem != "__init__":
            yield str(path.relative_to(PACKAGE))


def test_the_file_tree_of_the_readme_is_the_package():
    paths = listed("\n".join(line.removeprefix("  ") for line in tree_of("README.md")))
    assert len(paths) == len(set(paths))
    rooms = {path for path in paths if path.count("/") == 1 and path.endswith("/")}
    assert rooms | {"__main__.py"} == set(entries(PACKAGE, 1))
    full = set(entries(PACKAGE, 2))
    assert set(paths) <= full
    for room in rooms:
        inside = {path for path in full if path.startswith(room) and path != room}
        files = {path for path in inside if not path.endswith("/")}
        left_out = files if len(files) > tables.MOST_FILES else set()
        assert {path for path in paths if path.startswith(room) and path != room} == inside - left_out
    assert sum(path.endswith(".py") for path in paths) > 50


def test_the_map_has_every_file_of_the_package():
    paths = listed("\n".join(tree_of("docs/map.md")))
    assert len(paths) == len(set(paths))
    assert set(paths) == set(entries(PACKAGE, 9))


@pytest.mark.parametrize("document", ["README.md", "docs/map.md"])
def test_every_line_of_a_file_tree_has_a_caption(document):
    assert not [line for line in tree_of(document) if not re.fullmatch(r" *\S+ {2,}\S.+", line)]


@pytest.mark.parametrize(
    ("docstring", "caption"),
    [
        ("Seams. More.", "Seams"),
        ("One rule, `h. x`, and no more. Rest.", "One rule, `h. x`, and no more"),
        (f"A file, `read(a, b): c`, {'long ' * 20}.", "A file, `read(a, b): c`"),
        (f"Words of a text: {'`a: b, c` ' * 12}end, and more.", f"Words of a text: {'`a: b, c` ' * 12}end, and more"),
    ],
)
def test_captions_are_not_cut_inside_code(docstring, caption):
    assert tables.caption_of(docstring) == caption


def test_the_map_calls_the_floors_as_contributing_does():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"^    (ground|first|second|third|fourth|fifth|roof) +(?:\w+/ *)+", text, re.MULTILINE)
    assert [name.split()[0].lower() for name in tables.FLOOR_NAMES] == names[::-1]


def test_contributing_has_the_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (?:ground|first|second|third|fourth|fifth|roof) +((?:\w+/ *)+)", text, re.MULTILINE)
    floors = [sorted(line.replace("/", " ").split()) for line in reversed(lines)]
    assert floors == [sorted(floor) for floor in tables.floors()]


def test_paths_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:\w+/)+[\w.]*)`", text)
    assert len(paths) > 10
    for path in paths:
        assert (PACKAGE / path).exists() or (ROOT / path).exists(), f"CONTRIBUTING.md names {path}"


def test_the_site_documents_every_public_name():
    """Every name of every `__all__` on a page of the API, or below a package that has one."""
    for package in site_pages.API:
        if package in ("", "methods"):
            continue
        module = importlib.import_module(f"deltatune.{package}")
        assert set(getattr(module, "__all__", site_pages.api_names(package))) == set(site_pages.api_names(package))
    names = {*site_pages.api_names(""), *site_pages.api_names("methods"), "__version__"}
    assert names == set(deltatune.__all__)
    assert {"LoRA", "Prefix"} < set(site_pages.api_names("methods"))


def test_every_page_is_in_the_navigation_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed_pages = re.findall(r"[\w-]+\.md", nav)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    outside = {name for name in site_pages.ROOT_PAGES.values() if name.endswith(".md") and "/" not in name}
    assert len(listed_pages) == len(set(listed_pages))
    assert set(listed_pages) == pages | outside


def test_files_that_documents_link_to_exist():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


METRICS = {
    "classes": CLASS_METRICS,
    "several labels": multilabel.METRICS,
    "numbers": REGRESSION_METRICS,
    "entities": ENTITY_METRICS,
    "plain tags": TAG_METRICS,
    "spans": SPAN_METRICS,
    "generation": generation.METRICS,
    "raw text": language_modeling.METRICS,
    "preferences": PREFERENCE_METRICS,
    "pictures": TextToImage().metrics,
}


def test_the_help_of_metric_names_every_metric():
    text = Metric.__metadata__[0].help.removeprefix("Primary metric. ").partition(". Default: ")[0]
    parts = dict(part.split(": ") for part in text.split("; "))
    listed_metrics = {name.lower(): tuple(re.split(", | or ", names)) for name, names in parts.items()}
    assert listed_metrics == {name: tuple(metrics) for name, metrics in METRICS.items()}
    assert all(name in Metric.__metadata__[0].help for name in (*READ_METRICS, *ENCODER_METRICS))


def test_the_table_of_tasks_names_every_metric():
    page = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| `(\w+)` \| .+ \| `(\w+)` \| .+ \| (.+) \|$", page, re.MULTILINE)
    named = {(kind, task): set(re.findall(r"\w+", cell)) for kind, task, cell in cells}
    rows = {
        ("classify", "Classify"): ("classes",),
        ("classify", "MultiLabel"): ("several labels",),
        ("regression", "Classify"): ("numbers",),
        ("tag", "Tag"): ("entities", "plain tags"),
        ("span", "ExtractiveQA"): ("spans",),
        ("generate", "Generate"): ("generation",),
        ("lm", "LanguageModel"): ("raw text",),
        ("prefer", "Prefer"): ("preferences",),
        ("image", "TextToImage"): ("pictures",),
    }
    assert set(named) == set(rows)
    for row, names in rows.items():
        missing = {metric for name in names for metric in METRICS[name]} - named[row]
        assert not missing, f"docs/tasks.md does not name {', '.join(sorted(missing))} of {row[1]}"


def test_every_suffix_is_named_where_sources_are_described():
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("## Sources")[2].partition("\n## ")[0]
    texts = {"SOURCE": SOURCE, "docs/data.md": page, "read": read.__doc__}
    for name, text in texts.items():
        missing = set(formats.suffixes()) - set(re.findall(r"(?<!\w)\.[a-z]\w*", text))
        assert not missing, f"{name} does not name {', '.join(sorted(missing))}"
