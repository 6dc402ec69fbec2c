"""The screen of `deltatune serve`: where it is, what it serves, and how to try it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltatune.cli.ui.output_mode import CURRENT
from deltatune.cli.ui.screen import base_text, facts, plural, print_json, say, show
from deltatune.comparison.report.number_format import count
from deltatune.core.input_validation.strict_json import dumps

if TYPE_CHECKING:
    from deltatune.serving.server.guard.guards import Guarding
    from deltatune.serving.service import Service
    from deltatune.store.adapter_store.store_entry import Entry

LISTED = 6
"""Names of adapters that the screen shows."""
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("completions", {"prompt": "Once upon a time", "max_tokens": 40}),
    "classify": ("classify", {"input": "a lovely film"}),
    "many": ("classify", {"input": "a lovely film"}),
    "tag": ("tag", {"input": "Ada Lovelace was born in London"}),
    "span": ("answer", {"question": "Where was Ada born?", "context": "Ada was born in London."}),
    "embed": ("embeddings", {"input": "a lovely film"}),
}
"""A route and a body to try, by the kind of task."""


def show_started(
    service: Service, model: str, address: str, guarding: Guarding, local: bool, as_json: bool = False
) -> None:
    """Print the address, the base, the adapters, and how to try them; with --quiet the address alone."""
    entries = service.store.list()
    served = [entry for entry in entries if service.base.fits(entry)]
    if as_json:
        print_json({"address": address, "base": model, "adapters": [entry.name for entry in served]})
        return
    if CURRENT.quiet:
        say(address)
        return
    names = ", ".join(entry.name for entry in served[:LISTED]) + (", ..." if len(served) > LISTED else "")
    others = len(entries) - len(served)
    adapters = f"{count(len(served))}: {names}" if served else "none yet; those added to the store are served at once"
    pairs = [
        ("address", f"{address} (with a page to try it; Ctrl-C ends it)"),
        ("base", base_text(model, service.residency.host)),
        ("adapters", adapters + (f"; {count(others)} of other bases are not served" if others else "")),
        ("in memory", plural(service.residency.most, "adapter") + " at once"),
        ("keys", keys_text(guarding, local)),
    ]
    show(facts(pairs), "")
    entry = example_entry(served, service.base.generates)
    route, body = example_of(entry, service.base.generates)
    content = {"model": entry.name if entry else "base", **body}
    key = "" if guarding.keys is None else " -H 'Authorization: Bearer YOUR_KEY'"
    say(f"  curl {address}/v1/{route}{key} -H 'Content-Type: application/json' -d '{dumps(content)}'")
    secret = "none" if guarding.keys is None else "YOUR_KEY"
    say(f'  python -c "{python_line(address, secret, route, content)}"\n')


def keys_text(guarding: Guarding, local: bool) -> str:
    """Who may call."""
    if guarding.keys is None:
        return "none: programs of this machine may call" if local else "none: whoever reaches the address may call"
    return f"{plural(len(guarding.keys.keys), 'key')} in {guarding.keys.path}"


def example_entry(entries: list[Entry], generates: bool) -> Entry | None:
    """An adapter to try: one that writes text, or the first one whose input is plain."""
    order = ["generate", "classify", "many", "tag", "span"] if generates else ["classify", "many", "tag", "span"]
    untold = [""] if generates else []  # adapters of PEFT do not say what they were trained for
    return next((entry for kind in [*order, *untold] for entry in entries if entry.task == kind), None)


def example_of(entry: Entry | None, generates: bool) -> tuple[str, dict[str, Any]]:
    """A route and a body for it."""
    if entry is not None:
        return EXAMPLES[entry.task or "generate"]
    return EXAMPLES["generate" if generates else "embed"]


def python_line(address: str, secret: str, route: str, content: dict[str, Any]) -> str:
    """One line of Python that asks the same; it stands in double quotes."""
    client = f"from openai import OpenAI; c = OpenAI(base_url='{address}/v1', api_key='{secret}')"
    values = ", ".join(f"{name}={value!r}" for name, value in content.items())
    if route == "completions":
        return f"{client}; print(c.completions.create({values}).choices[0].text)"
    if route == "embeddings":
        return f"{client}; print(c.embeddings.create({values}).data[0].embedding[:5])"
    return f"{client}; print(c.post('/{route}', cast_to=object, body=dict({values}))['data'])"
