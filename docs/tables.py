"""Writes the generated parts of the documentation from the code: `make docs`. A test fails when they are stale.

README.md                the table of methods, between its markers
docs/methods.md          the list of the methods' pages
docs/methods/            a page a method: equation, paper, options with defaults, an example that a test runs
docs/recipe.schema.json  what a recipe may say, for editors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltatune.cli.commands.methods import described
from deltatune.cli.commands.run import schema_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"


def main() -> None:
    """Write every generated file."""
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def generated() -> dict[Path, str]:
    """The generated files as they should be."""
    found = described()
    readme = ROOT / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    return {
        readme: f"{head}{BEGIN}\n{methods_table(found)}\n{END}{tail}",
        ROOT / "docs/methods.md": methods_page(found),
        **{ROOT / "docs" / page_of(entry): method_page(entry) for entry in found},
        ROOT / "docs/recipe.schema.json": json.dumps(schema_of(), indent=2, ensure_ascii=False) + "\n",
    }


def methods_table(found: list[dict[str, Any]]) -> str:
    """The unified view as a Markdown table, short forms below."""
    rows = [
        "| method | change | reads | modifies | joins by | size | rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in found:
        view = entry["view"]
        if not entry["short_for"]:
            cells = (view["form"], view["insertion"], view["modifies"], view["composition"])
            name = f"[`{entry['method']}`](docs/{page_of(entry)})"
            rows.append(f"| {name} | {' | '.join(cells)} | {_size(entry)} | {entry['learning_rate']:g} |")
    short = [f"`{e['method']}()` = `{e['short_for']}`" for e in found if e["short_for"]]
    return "\n".join([*rows, "", "Short forms: " + ", ".join(short) + "."])


def methods_page(found: list[dict[str, Any]]) -> str:
    """The list of the pages."""
    intro = (
        "# Methods\n\nGenerated from the classes by `make docs`, a page each. Options are written in the call: "
        '`"LoRA(r=16, sites=\'*.attn.{q,k,v,o}\')"`; methods add up: `"LoRA(r=4) + Prefix(length=8)"`.\n'
    )
    lines = [f"- [`{e['method']}`]({page_of(e)}): {e['summary']}" for e in found]
    return "\n".join([intro, *lines]) + "\n"


def page_of(entry: dict[str, Any]) -> str:
    """Path of a method's page, from the docs folder."""
    return f"methods/{entry['method'].lower()}.md"


def method_page(entry: dict[str, Any]) -> str:
    """The page of one method: what its class says, its options, and an example that a test runs."""
    lines = [f"# {entry['method']}", ""]
    if entry["short_for"]:
        lines += [f"Short for `{entry['short_for']}`. {entry['about']}", ""]
    else:
        view = entry["view"]
        lines += [_about(entry["about"]), ""]
        lines += [
            "| change | insertion | modifies | composition | size | recommended rate |",
            "|---|---|---|---|---|---|",
        ]
        cells = (view["form"], view["insertion"], view["modifies"], view["composition"])
        lines += [f"| {' | '.join(map(_cell, cells))} | {_size(entry)} | {entry['learning_rate']:g} |", ""]
    if entry["options"]:
        lines += ["| option | default | what it sets |", "|---|---|---|"]
        lines += [f"| `{o['name']}` | `{o['written']}` | {_cell(o['help'])} |" for o in entry["options"]]
        lines.append("")
    return "\n".join([*lines, "```python", *_example(entry["method"]), "```", ""])


def _example(name: str) -> list[str]:
    return [
        "import deltatune",
        "from transformers import AutoModelForSequenceClassification",
        "",
        'model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")',
        "host = deltatune.Host(model)",
        f'host.attach("mine", deltatune.{name}())',
        "print(host.describe())",
        "# ... train it, with transformers.Trainer(model=model, ...), with deltatune.train, or from the command line:",
        f'#     deltatune train --model bert-base-uncased --data train.csv --method "{name}()"',
        'host.save("mine", "adapters/mine")',
    ]


def _size(entry: dict[str, Any]) -> str:
    """The option that a budget sets."""
    if entry["size_field"] in (None, "theirs"):
        return entry["size_field"] or "–"
    return f"`{entry['size_field']}`"


def _about(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"`{first}`\n{rest}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
