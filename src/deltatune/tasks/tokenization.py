"""Tokenization: ids of texts, the padding id, the longest input of a model, a fingerprint of the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from torch import nn
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.models.processors import Processor
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Task, TokenRow

FINGERPRINT_TEXTS = (
    "The quick brown fox, 12.5% of naïve CAFÉs?",
    "  tabs\tand\nlines  ",
    "日本語 emoji 🙂 un-break-able",
)
"""Texts whose ids are part of a tokenizer's fingerprint."""


def tokenise(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, longest: int | None = None
) -> list[TokenRow]:
    """Tokenise texts, pairs or more texts a row, truncated to `longest` tokens if given (the longest text first)."""
    if not texts:
        return []
    columns = [list(column) for column in zip(*texts, strict=True)]
    if len(columns) > 2:
        return join_columns(columns, tokenizer, longest)
    if longest is not None:
        check_room(longest, 1, tokenizer.num_special_tokens_to_add(pair=len(columns) == 2))
    truncation = {"truncation": "longest_first", "max_length": longest} if longest else {"truncation": False}
    # verbose=False: the tokenizer would warn of texts longer than its model, which the tasks count themselves
    encoding = tokenizer(*columns, padding=False, return_attention_mask=True, verbose=False, **truncation)
    return [token_row(encoding, i) for i in range(len(texts))]


def join_columns(
    columns: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, longest: int | None = None
) -> list[TokenRow]:
    """Tokenise more than two texts a row, in their order, with what the tokenizer puts around and between a pair.

    The first text is segment A, all others are segment B. The longest texts are truncated first, so that each keeps at
    least its share of the tokens.
    """
    need_offsets(tokenizer, "an input of more than two texts")
    pair = tokenizer("a", "b", return_attention_mask=True, verbose=False)
    sides = pair.sequence_ids(0)
    first, second = ([i for i, side in enumerate(sides) if side == number] for number in (0, 1))
    ids, types = pair["input_ids"], pair.get("token_type_ids")
    before, between, after = ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :]
    special = len(before) + len(after) + len(between) * (len(columns) - 1)
    if longest is not None:
        check_room(longest, len(columns), special)
    tokens = [tokenizer(list(column), add_special_tokens=False, verbose=False)["input_ids"] for column in columns]
    rows: list[TokenRow] = []
    for parts in zip(*tokens, strict=True):
        kept = parts if longest is None else shares([len(part) for part in parts], longest - special, parts)
        row = [*before, *kept[0], *(token for part in kept[1:] for token in (*between, *part)), *after]
        encoded: TokenRow = {"input_ids": row, "attention_mask": [1] * len(row)}
        if types is not None:  # the separator after the first text is the first's, as in a pair
            a = len(before) + len(kept[0]) + len(between)
            encoded["token_type_ids"] = [types[0]] * a + [types[second[0]]] * (len(row) - a)
        rows.append(encoded)
    return rows


def shares(lengths: Sequence[int], room: int, parts: Sequence[list[int]]) -> list[list[int]]:
    """The beginnings of parts that fit into `room` tokens together; only parts above the common limit are cut."""
    limit, free = 0, room
    for i, length in enumerate(sorted(lengths)):
        limit = free // (len(lengths) - i)
        if length > limit:
            break
        free -= length
    else:
        return list(parts)
    extra = free - limit * sum(length > limit for length in lengths)  # what whole numbers leave goes to the first ones
    kept = []
    for part in parts:
        size = limit + (1 if len(part) > limit and extra > 0 else 0)
        extra -= size > limit
        kept.append(part[:size])
    return kept


def token_row(encoding: BatchEncoding, row: int) -> TokenRow:
    """The model's inputs of one encoded row."""
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]
    return {name: encoding[name][row] for name in names}


def check_length(max_length: int, positions: int | None, positions_taken: int) -> None:
    """Raise DeltatuneError for a max_length that the model's positions, less those the adapter takes, cannot hold."""
    if max_length < 1 or (positions is not None and max_length + positions_taken > positions):
        limit = "" if positions is None else f"; this model takes {positions} tokens"
        virtual = f", of which the adapter adds {positions_taken}" if positions_taken else ""
        free = 0 if positions is None else positions - positions_taken
        fix = f": set max_length to {free} or less" if free > 0 else ""
        raise DeltatuneError(f"max_length={max_length} cannot be used{limit}{virtual}{fix}")


def check_room(max_length: int, texts: int, special: int) -> None:
    """Raise DeltatuneError for a max_length that leaves texts no token: tokenizers may then leave them whole."""
    if max_length < special + texts:
        what, them = ("a text", "it") if texts == 1 else (f"{texts} texts", "them")
        raise DeltatuneError(
            f"max_length={max_length} leaves no room for {what}: {special} tokens stand around {them}; set max_length "
            f"to {special + texts} or more"
        )


def need_offsets(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise DeltatuneError for a tokenizer without character offsets of its tokens."""
    if not tokenizer.is_fast:
        raise DeltatuneError(
            f"{what} needs the character offsets of tokens, which {type(tokenizer).__name__} does not give. Load a "
            "fast tokenizer (one with a tokenizer.json)"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the padding token, or of the end token in tokenizers without one; the mask hides it."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise DeltatuneError(
        "this tokenizer has neither a padding nor an end token; set tokenizer.pad_token to a known token"
    )


def not_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[int]:
    """Ids below `vocabulary` that are no words, in order: special tokens, and rows of an embedding without a token."""
    ids = {*tokenizer.all_special_ids, *range(len(tokenizer), vocabulary)}
    return sorted(id for id in ids if id < vocabulary)


def word_of(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """A token as a word, without the space that it may begin with."""
    return str(tokenizer.decode([id])).strip()


def longest_input(model: nn.Module) -> int | None:
    """Number of tokens that the model has positions for; None where it has no limit (T5's relative positions)."""
    if not hasattr(model.config, "get_text_config"):  # a denoiser of pictures
        return None
    config = model.config.get_text_config()  # type: ignore[operator]
    size = getattr(config, "max_position_embeddings", None)
    if size is None:
        return None
    token_embeddings = model.get_input_embeddings()  # type: ignore[operator]
    for table in model.modules():
        counts = isinstance(table, nn.Embedding) and table is not token_embeddings and table.num_embeddings == size
        if counts and table.padding_idx is not None:  # RoBERTa and MPNet: positions start after the padding's
            return int(size - int(table.padding_idx) - 1)  # type: ignore[arg-type]
    return int(size)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash (32 hex digits) of what determines the ids of a text: vocabulary, special tokens and a few encodings.

    An adapter folder holds it, so that an adapter is never used with another tokenizer than in training. A processor of
    images or sounds has a fingerprint of its own.
    """
    if isinstance(tokenizer, Processor):
        return tokenizer.fingerprint
    if hasattr(tokenizer, "fingerprint"):  # a pipeline, which encodes pictures too
        return str(tokenizer.fingerprint())
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        "single": [tokenizer(text, verbose=False)["input_ids"] for text in FINGERPRINT_TEXTS],
        "pair": tokenizer(FINGERPRINT_TEXTS[0], FINGERPRINT_TEXTS[1], verbose=False)["input_ids"],
    }
    text = json.dumps(facts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def without_words(method: Method, processor: Processor) -> Method:
    """The method, for a model that reads no text. Raises DeltatuneError where it needs words."""

    def refuse(text: str) -> list[int]:
        raise DeltatuneError(f"{method!r} begins with tokens of {text!r}: this model reads {processor.inputs} files")

    if method.input_template:
        raise DeltatuneError(f"{method!r} has a template: this model reads {processor.inputs} files")
    return method.with_token_ids(refuse, ())


def with_token_ids(method: Method, tokenizer: PreTrainedTokenizerBase, task: Task | None = None) -> Method:
    """The method with its words as token ids, and with as many virtual tokens as its template places.

    `task.labels`, if it has any, are the words of the labels. Raises DeltatuneError for virtual tokens or words where
    a model reads no text.
    """
    if isinstance(tokenizer, Processor):
        return without_words(method, tokenizer)
    if method.input_template:
        method = method.with_virtual_tokens(Template(method.input_template).initial_ids(tokenizer))

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return method.with_token_ids(tokenize, () if task is None else task.labels)
