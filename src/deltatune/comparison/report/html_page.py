"""The frame of all pages: one self-contained HTML file with its style, its script and a policy against any other."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deltatune.comparison.report.number_format import html
from deltatune.core.input_validation.strict_json import dumps
from deltatune.core.theme import theme

Fact = tuple[str, str]
"""A name and a value, plain text."""


def html_page(
    title: str,
    eyebrow: str,
    facts: Iterable[Fact],
    main: Sequence[str],
    footer: str,
    script: str = "",
    policy: str = "",
) -> str:
    """A whole page. `title`, `eyebrow`, `facts` and `footer` are text, `main` is HTML: its sections in order.

    `script` is added to the page's own; no other can run. `policy` is added to the content security policy, which
    forbids every request.
    """
    script = asset("page.js") + script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", f"script-src 'sha256-{digest}'"]
    return Template(asset("page.html")).substitute(
        title=html(title),
        eyebrow=html(eyebrow),
        style=theme() + asset("page.css"),
        script=script,
        policy="; ".join([*rules, *([policy] if policy else [])]),
        facts=definitions(facts),
        main="\n".join(section for section in main if section),
        footer=html(footer),
    )


def asset(name: str) -> str:
    """A file of the report's folder."""
    return files("deltatune.comparison.report").joinpath(name).read_text(encoding="utf-8")


def short_name(model: str) -> str:
    """Return a hub name unchanged, of a folder the last part."""
    return model if model.count("/") <= 1 and not model.startswith((".", "/")) else Path(model).name or model


def written_date(created: object) -> str:
    """`2026-03-14T15:09:26+00:00` -> "14 March 2026, 15:09"; other texts unchanged."""
    try:
        return f"{datetime.fromisoformat(str(created)):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return str(created or "")


def recommendation_section(recommendation: Mapping[str, Any]) -> str:
    """The recommendation with the method in bold."""
    sentence, method = str(recommendation.get("sentence") or ""), str(recommendation.get("method") or "")
    before, bold, after = sentence.partition(method) if method else (sentence, "", "")
    text = html(before) + (f"<strong>{html(bold)}</strong>" if bold else "") + html(after)
    return f'<section class="recommendation" aria-label="Recommendation"><p>{text}</p></section>' if sentence else ""


def table_region(table: str, name: str) -> str:
    """A box around a table, which scrolls in it where the page is narrower than the table."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{html(name)}, scrolls sideways">{table}</div>'


def figure(title: str, caption: str, images: Sequence[str], class_: str = "") -> str:
    """Images under a heading; "" without images."""
    if not any(images):
        return ""
    heading = f"<figcaption><h2>{html(title)}</h2><p>{html(caption)}</p></figcaption>"
    return f'<figure>{heading}<div class="{class_}">{"".join(images)}</div></figure>'


def folded(title: str, content: str) -> str:
    """Content that a click unfolds; "" without content. Printing unfolds it."""
    return f"<details><summary>{html(title)}</summary>{content}</details>" if content else ""


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values as the entries of a `<dl>`."""
    return "".join(f"<div><dt>{html(key)}</dt><dd>{html(plain(value))}</dd></div>" for key, value in pairs)


def plain(value: object) -> str:
    """Plain data as text: mappings and lists with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return value if isinstance(value, str) else dumps(value, nonfinite="null", default=str)
