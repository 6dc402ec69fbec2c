"""The snippets of the documentation run on a tiny model in place of the named one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import deltatune
from deltatune.training import Settings, train
from support import models

ROOT = Path(__file__).parent.parent
PAGES = [
    f"docs/{name}.md"
    for name in (
        "adapter_store",
        "composing",
        "data",
        "from_peft",
        "interchange",
        "merging",
        "objectives",
        "tasks",
        "training",
        "vocabulary",
    )
]
PAGES += sorted(f"docs/methods/{path.name}" for path in (ROOT / "docs/methods").glob("*.md"))


def snippets(page):
    """The Python blocks of a page, each with the number of its first line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match.group(1))
        for match in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    """Named models are tiny, training is short, and files are written to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    makers = {"AutoModel": None, "AutoModelForSequenceClassification": "classify", "AutoModelForMaskedLM": "lm"}
    for maker, head in makers.items():
        monkeypatch.setattr(
            getattr(transformers, maker), "from_pretrained", lambda *_, h=head, **__: models.tiny("bert", h)
        )
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: models.tiny_tokenizer())
    short = Settings(epochs=1, batch_size=4)
    monkeypatch.setattr(
        "deltatune.train", lambda *args, **options: train(*args, **{"settings": short, **options}), raising=False
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_run_one_after_another(page, small_world):
    names: dict = {}
    blocks = snippets(page)
    assert blocks
    for line, code in blocks:
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_snippet_of_the_readme_runs(small_world):
    """The adapter that it loads beside its own exists."""
    host = deltatune.Host(models.tiny("bert", "classify"))
    host.attach("cola", deltatune.LoRA(r=8))
    host.save("cola", "adapters/cola")
    ((line, code),) = snippets("README.md")
    exec(compile("\n" * (line - 1) + code, "README.md", "exec"), {})


USE_OF_SHIFT = """
import deltatune, shift, torch
from deltatune.testing import inputs, tiny

model = tiny("bert").eval()
batch = inputs(model)
before = model(**batch)[0]
host = deltatune.Host(model)
adapter = host.attach("a", deltatune.parse("Shift()"), head=False)
assert adapter.count == shift.Shift().count(host.sites) > 0
assert torch.equal(before, model(**batch)[0])
"""


@pytest.mark.slow
def test_the_method_of_contributing_is_a_method(tmp_path):
    """In another process: importing a method registers it."""
    (_, code), *others = snippets("CONTRIBUTING.md")
    assert not others
    (tmp_path / "shift.py").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", USE_OF_SHIFT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
