"""Blanks for one token: how a model sees them, which wordings it can read, and which words are one token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.tasks.pretraining.span_corruption import NAMES
from deltatune.tasks.prompts.template_tokens import tokens_after
from deltatune.tasks.prompts.templates import Template

SUBJECT = "subject"
"""The field of a wording that stands for the subject, whatever its column is called."""
Blank = Literal["mask", "next", "sentinel", "denoise"]
"""How a model sees the blank: as its mask token, as the next token of a text, as a sentinel whose span the decoder
writes, or as a mask token in a text that the decoder repeats."""
SEVERAL, UNKNOWN, NO_CANDIDATE, LONG = "several tokens", "unknown to the tokenizer", "no candidate", "too long"
"""Why a row cannot be scored."""


def blank_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Blank:
    """How a model sees a blank. Raises DeltatuneError for an encoder whose tokenizer has no mask token, and such."""
    kind = family(config)
    if kind == "decoder":
        return "next"
    if kind == "encoder-decoder" and sentinels_of(tokenizer):
        return "sentinel"
    if tokenizer.mask_token_id is None:
        more = " and no sentinels (<extra_id_0>, ...)" if kind == "encoder-decoder" else ""
        raise DeltatuneError(
            f"the tokenizer of this {config.model_type} has no mask token{more}: it cannot show a blank"
        )
    return "mask" if kind == "encoder" else "denoise"


def wording_problems(template: str, blank: Blank) -> list[str]:
    """What is wrong with a wording for models that see a blank in this way."""
    try:
        parsed = Template(template)
    except DeltatuneError as error:
        return [str(error)]
    problems = [
        f"the wording {template!r} has the field {name!r}; its fields are {{{SUBJECT}}} and {{mask}}"
        for name in parsed.columns
        if name != SUBJECT
    ]
    kinds = [part.kind for part in parsed.parts]
    behind = parsed.parts[kinds.index("mask") + 1 :]
    if blank == "next" and any(part.kind != "words" or any(map(str.isalnum, part.text)) for part in behind):
        problems.append(
            f"the blank of {template!r} is not at its end, and a left-to-right model sees nothing behind a blank; use "
            "a wording that ends with it, a final point aside, or a masked language model"
        )
    return problems


def object_ids(words: Iterable[str], tokenizer: PreTrainedTokenizerBase, spaced: bool = True) -> dict[str, int | str]:
    """The token of each word at a blank, or why it is not one: SEVERAL or UNKNOWN.

    spaced: whether the blank follows a space, which some tokenizers spell as part of a word.
    """
    listed = list(dict.fromkeys(words))
    special = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    found: dict[str, int | str] = {}
    for word, ids in zip(listed, tokens_after("", listed, spaced, tokenizer), strict=True):
        unknown = not ids or any(id in special for id in ids)
        found[word] = UNKNOWN if unknown else SEVERAL if len(ids) > 1 else int(ids[0])
    return found


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of T5's sentinels; empty for other tokenizers."""
    return [id for name, id in tokenizer.get_vocab().items() if NAMES.fullmatch(name)]
