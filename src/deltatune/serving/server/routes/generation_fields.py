"""Fields of /v1/completions and /v1/chat/completions, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltatune.core.input_validation.field_validation import shortened
from deltatune.serving.engine.requests import Sampling
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.routes.request_fields import RequestFields

IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Fields of OpenAI's API that change no answer."""
NO_TOOL = ("none", "auto")
"""Choices of tools that call none, where there are none."""
LARGEST_TOP = 20
"""Likeliest tokens that are reported with each token at most."""
MAX_TOKENS = 16
"""Tokens of a completion, as in OpenAI's API."""


@dataclass(frozen=True)
class GenerationFields:
    """What both routes have in common."""

    sampling: Sampling
    """With the tokens that were asked for, or the default."""
    tokens_given: bool
    """Whether the request says how many tokens."""
    given: frozenset[str]
    """Names of the sampling fields that the request has."""
    stops: tuple[str, ...] = ()
    choices: int = 1
    stream: bool = False
    usage_in_stream: bool = False
    logprobs: bool = False


def read_generation(
    fields: RequestFields, bounds: Bounds, vocabulary: int, tokens: str, logprobs: int | None
) -> GenerationFields:
    """Read the common fields; `tokens` is the field with the number of tokens, `logprobs` was read by the route."""
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
    given = frozenset(name for name in names if fields.content.get(name) is not None)
    seed = fields.raw("seed")
    sampling = Sampling(
        max_tokens=fields.integer(tokens, MAX_TOKENS, 1, bounds.max_tokens),
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=_top_p(fields),
        top_k=max(0, fields.integer("top_k", 0, -1)),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        seed=None if seed is None else fields.integer("seed", 0, -(2**63)),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 100.0),
        logit_bias=fields.biases(vocabulary),
        logprobs=logprobs,
        ignore_eos=fields.flag("ignore_eos"),
    )
    stream = fields.flag("stream")
    fields.ignore(*IGNORED)
    fields.refuse("store", "cannot be true: answers are not stored here", False)
    fields.refuse("service_tier", "has no meaning here; leave it out", "auto", "default")
    no_json = "is not served: nothing here forces an answer to be JSON; ask for it in words"
    fields.refuse("response_format", no_json, {"type": "text"})
    for name, *allowed in (("tools", []), ("functions", []), ("tool_choice", *NO_TOOL), ("function_call", *NO_TOOL)):
        fields.refuse(name, "is not served: these models call no tools", *allowed)
    return GenerationFields(
        sampling,
        fields.content.get(tokens) is not None,
        given,
        fields.stops(),
        fields.integer("n", 1, 1, bounds.choices),
        stream,
        _stream_options(fields, stream),
        logprobs is not None,
    )


def _top_p(fields: RequestFields) -> float:
    value = fields.number("top_p", 1.0, 0.0, 1.0)
    return value or 1e-9  # OpenAI takes 0 for the likeliest token alone


def _stream_options(fields: RequestFields, stream: bool) -> bool:
    options: Any = fields.raw("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping) or not all(
        name in ("include_usage", "include_obfuscation") and isinstance(value, bool | None)
        for name, value in options.items()
    ):
        fields.wrong("stream_options", "must be an object such as {'include_usage': true}")
        return False
    if not stream:
        fields.wrong("stream_options", "is for streams; set stream to true, or leave it out")
    return bool(options.get("include_usage"))


def read_prompts(fields: RequestFields, most: int) -> list[str | list[int]]:
    """`prompt`: a text, texts, token ids, or lists of token ids."""
    return _texts(fields, "prompt", most, empty=True)


def read_texts(fields: RequestFields, most: int) -> list[str | list[int]]:
    """`input` of embeddings: a text, texts, token ids, or lists of token ids; none of them empty."""
    return _texts(fields, "input", most, empty=False)


def _texts(fields: RequestFields, name: str, most: int, empty: bool) -> list[str | list[int]]:
    value = fields.raw(name)
    if value is None:
        fields.wrong(name, "is missing")
        return []
    several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if len(several) > most:
        fields.wrong(name, f"holds {len(several):,} texts; at most {most} are answered together")
        return []
    for each in several:
        good = (isinstance(each, str) and (empty or each != "")) or (_is_ids(each) and bool(each))
        if not good:
            what = "must be a text, texts, or token ids" + ("" if empty else ", none of them empty")
            fields.wrong(name, f"{what}, not {shortened(each)}")
            return []
    return several


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**31 for item in value)


def read_messages(fields: RequestFields, most: int) -> list[dict[str, str]]:
    """`messages`: roles and contents; a content of several text parts is joined."""
    value = fields.raw("messages")
    if not isinstance(value, list) or not value:
        fields.wrong("messages", "must be a list of messages with role and content, and not empty")
        return []
    if len(value) > most:
        fields.wrong("messages", f"holds {len(value):,} messages; at most {most} are read")
        return []
    messages = [_message(fields, place, each) for place, each in enumerate(value)]
    return [each for each in messages if each is not None]


def _message(fields: RequestFields, place: int, message: Any) -> dict[str, str] | None:
    where = f"messages[{place}]"
    if not isinstance(message, Mapping):
        fields.wrong(where, f"must be an object with role and content, not {shortened(message)}")
        return None
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        fields.wrong(f"{where}.role", f"must be 'system', 'user' or 'assistant', not {shortened(role)}")
        return None
    unknown = [name for name, value in message.items() if name not in ("role", "content", "name", "refusal") and value]
    if unknown:
        fields.wrong(f"{where}.{shortened(unknown[0], quoted=False)}", "is not served: messages are texts here")
        return None
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        fields.wrong(f"{where}.content", "must be a text, or a list of parts of type text")
        return None
    return {"role": "system" if role == "developer" else str(role), "content": content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
