"""Chat templates: code in Jinja that comes with a tokenizer, rendered after a trial with bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import fits_utf8

TRIAL_SECONDS = 10
"""Processor time of a trial; templates of published models take some milliseconds."""
TRIAL_MEMORY = 1 << 30
"""Bytes of a trial's process."""
MAX_OUTPUT = 10_000_000
"""Characters of a rendered conversation."""

_TRIAL = """
import json, sys
data = json.load(sys.stdin)
sys.path[:] = data["path"]
import jinja2, jinja2.ext, jinja2.sandbox
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (data["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (data["seconds"], data["seconds"] + 1))
except ImportError:
    pass
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
def refuse(message):
    raise jinja2.TemplateError(message)
env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
env.filters["tojson"] = lambda x, **options: json.dumps(x, **options)
env.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
try:
    size = 0
    for piece in env.from_string(data["template"]).generate(**data["values"]):
        size += len(piece)
        if size > data["output"]:
            sys.exit(41)
except MemoryError:
    sys.exit(42)
except Exception:
    pass  # the rendering itself says what it is
"""
"""A program that renders a template with the environment that transformers has, in a process with limits."""


def rendered(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, prompt: bool) -> str:
    """The text of a conversation by the tokenizer's chat template; with `prompt`, up to the assistant's next answer.

    Raises DeltatuneError for a template that does not come to an end, needs too much memory, reads files, or fails.
    """
    conversation = [dict(message) for message in messages]
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none of them is the default
        raise DeltatuneError(f"this tokenizer's chat template cannot be used: {error}") from None
    if str(template) not in _tried:
        _try(str(template), json.dumps({"messages": conversation, **_special_tokens(tokenizer)}))
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # whatever code that is not ours raises
        refuses = type(error).__name__ in ("TemplateError", "TemplateRuntimeError")
        what = "refuses the conversation" if refuses else f"fails ({type(error).__name__})"
        reads = " (a chat template is one text; it cannot read files)" if "no loader" in str(error) else ""
        raise DeltatuneError(
            f"this tokenizer's chat template {what}: {str(error)[:500] or 'it says nothing'}{reads}"
        ) from None
    if not fits_utf8(str(text)):
        raise DeltatuneError("this tokenizer's chat template makes half of a surrogate pair, which UTF-8 cannot hold")
    return str(text)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


_tried: set[str] = set()
"""Templates that came to an end."""


def _try(template: str, values: str) -> None:
    """Render a template that was not tried before in a process with limits, with the first conversation."""
    problem = _trial(template, values)
    if problem:
        raise DeltatuneError(
            f"this tokenizer's chat template {problem}; set another tokenizer.chat_template (this one begins "
            f"{template[:80]!r})"
        )
    _tried.add(template)


@lru_cache(maxsize=8)
def _trial(template: str, values: str) -> str:
    """Why a template must not be rendered here; an empty string if it may."""
    data: dict[str, Any] = {
        "template": template,
        "values": {**json.loads(values), "add_generation_prompt": True, "tools": None, "documents": None},
        "path": [path for path in sys.path if path],
        "memory": TRIAL_MEMORY,
        "seconds": TRIAL_SECONDS,
        "output": MAX_OUTPUT,
    }
    command = [sys.executable, "-I", "-c", _TRIAL]
    try:
        done = subprocess.run(
            command, input=json.dumps(data), text=True, timeout=6 * TRIAL_SECONDS, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"does not come to an end within {6 * TRIAL_SECONDS} seconds"
    except OSError:  # no process can be started here
        return ""
    if done.returncode == 41:
        return f"makes more than {MAX_OUTPUT:,} characters of a conversation"
    if done.returncode == 42:
        return f"needs more than {TRIAL_MEMORY >> 20:,} MB of memory"
    if done.returncode < 0:  # killed at a limit
        return f"does not come to an end within {TRIAL_SECONDS} seconds"
    return ""
