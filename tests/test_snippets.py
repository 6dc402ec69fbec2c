"""The snippets of the documentation run, on a tiny model in place of the named one."""

import re
from pathlib import Path

import pytest
import transformers

from deltatune.training import Settings, train
from support import models

ROOT = Path(__file__).parent.parent
PAGES = [
    f"docs/{name}.md" for name in ("composing", "data", "interchange", "objectives", "tasks", "training", "vocabulary")
]
PAGES += sorted(f"docs/methods/{path.name}" for path in (ROOT / "docs/methods").glob("*.md"))


def snippets(page):
    """The Python blocks of a page, each with the number of its first line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (text[: found.start()].count("\n") + 2, found.group(1))
        for found in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    """Named models are tiny ones, training is short, files go to a folder of the test's own."""
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
    found = snippets(page)
    assert found
    for line, code in found:
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)
