"""The task of preferences for an adapter that was trained to generate text, as instruction tuning does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data import Data
from deltatune.tasks import Generate, Prefer
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN
from deltatune.tasks.prompts.prompt_format import PRESETS

KEPT = (
    "max_length", "new_tokens", "beams", "length_penalty", "no_repeat_ngram", "temperature", "top_p", "top_k", "seed",
)  # fmt: skip
"""Fields that both tasks have."""
NOW_PREFERS = "it was trained to generate text, and now learns which of two answers is better"


def preference_task(known: Generate, data: Data, fields: Mapping[str, Any]) -> tuple[list[str], Prefer | None]:
    """What keeps an adapter from learning these pairs, and their task: its prompts, lengths and decoding."""
    chat = CHAT_COLUMN in known.text or known.prompt == "chat"
    prompt, problems = "chat" if chat else known.prompt, []
    if not chat and any(not isinstance(row[data.text[0]], str) for row in data.train):
        problems.append(f"its prompts have the form {known.prompt!r}, and these are conversations")
    if not chat and len(data.text) != len(known.text):
        problems.append(
            f"it reads {len(known.text)} text columns ({', '.join(known.text)}), these have {len(data.text)}"
        )
    if fields.get("prompt", known.prompt) not in (known.prompt, prompt):
        problems.append(f"prompt={fields['prompt']!r}: the adapter was trained with {known.prompt!r}; leave it out")
    if problems:
        return problems, None
    prompt = _with_columns(prompt, known.text, data.text)  # a template names the columns of the earlier data
    kept = {name: getattr(known, name) for name in KEPT}
    return [], Prefer(**{**kept, **fields, "text": data.text, "label": data.label, "prompt": prompt})


def generation_task(known: Prefer, text: Sequence[str], label: str) -> Generate:
    """The task of generation with the prompts, lengths and decoding of one of preferences, on these columns."""
    kept = {name: getattr(known, name) for name in KEPT}
    prompt = _with_columns(known.prompt, known.text, text) if len(text) == len(known.text) else known.prompt
    return Generate(**kept, text=tuple(text), label=label, prompt=prompt)


def _with_columns(prompt: str, before: Sequence[str], after: Sequence[str]) -> str:
    """The template with the columns of other data in place of its own; the names of other forms as they are."""
    if prompt in PRESETS:
        return prompt
    for old, new in zip(before, after, strict=True):
        prompt = re.sub(rf"\{{{re.escape(old)}(?=[}}:!])", lambda _, new=new: f"{{{new}", prompt)  # type: ignore[misc]
    return prompt
