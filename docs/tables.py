"""Writes the generated parts of the documentation from the code: `make docs`. A test fails when they are stale.

README.md       the table of methods, between its markers
docs/methods.md a chapter a method: equation, paper, options with defaults, parameters, an example
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltatune.cli.methods import described

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"


def main() -> None:
    """Write every generated file."""
    for path, text in generated().items():
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
            size = f"`{entry['size_field']}`" if entry["size_field"] else "–"
            name = f"[`{entry['method']}`](docs/methods.md#{entry['method'].lower()})"
            rows.append(f"| {name} | {' | '.join(cells)} | {size} | {entry['learning_rate']:g} |")
    short = [f"`{e['method']}()` = `{e['short_for']}`" for e in found if e["short_for"]]
    return "\n".join([*rows, "", "Short forms: " + ", ".join(short) + "."])


def methods_page(found: list[dict[str, Any]]) -> str:
    """A chapter a method."""
    intro = (
        "# Methods\n\nGenerated from the classes by `make docs`. Options are written in the call: "
        '`"LoRA(r=16, sites=\'*.attn.{q,k,v,o}\')"`; methods add up: `"LoRA(r=4) + Prefix(length=8)"`.\n'
    )
    return intro + "\n" + "\n".join(_chapter(entry) for entry in found)


def _chapter(entry: dict[str, Any]) -> str:
    name, view = entry["method"], entry["view"]
    lines = [f"## {name}", ""]
    if entry["short_for"]:
        lines += [f"Short for `{entry['short_for']}`. {entry['summary']}", ""]
    else:
        lines += [_about(entry["about"]), ""]
        lines += [
            f"Change `{view['form']}`; insertion: {view['insertion']}; modifies: {view['modifies']}; "
            f"composition: {view['composition']}. Recommended rate {entry['learning_rate']:g}.",
            "",
        ]
    if entry["options"]:
        lines += ["| option | default | what it sets |", "|---|---|---|"]
        lines += [f"| `{o['name']}` | `{o['default']!r}` | {_cell(o['help'])} |" for o in entry["options"]]
        lines.append("")
    lines += ["```python", f'host.attach("mine", deltatune.{name}())', "```", ""]
    return "\n".join(lines)


def _about(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"`{first}`\n{rest}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
