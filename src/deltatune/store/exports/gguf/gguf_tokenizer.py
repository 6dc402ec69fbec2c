"""A tokenizer as GGUF's metadata: tokens, their kinds, merges or scores, and how texts are cut before the merges.

llama.cpp knows ways of cutting by name. Its own converter finds the name by a hash of one encoded text, which knows the
tokenizers of published models alone; here it is read from the tokenizer's own rules, which any trained one has too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all

SPACE = "▁"
"""SentencePiece's sign for a space."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens in GGUF."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = _WORDS + r"\p{N}{1,3}" + _REST, _WORDS + r"\p{N}" + _REST
CUTS: Mapping[str, str] = {_GPT2: "gpt-2", _LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""llama.cpp's name of a way of cutting, by its regular expression."""


def tokenizer_metadata(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> dict[str, Any]:
    """The metadata `tokenizer.ggml.*` by their keys behind that prefix, and `chat_template`.

    vocabulary: V, rows of the embedding table; ids without a token become unused ones. Raises DeltatuneError for a
    tokenizer that llama.cpp would read otherwise.
    """
    rules = tokenizer_rules(tokenizer)
    model = rules["model"]
    if model.get("type") != "BPE":
        raise DeltatuneError(
            f"the tokenizer is a {model.get('type')}; GGUF files are written with byte-level BPE and with "
            "SentencePiece's BPE (Llama). llama.cpp's convert_hf_to_gguf.py knows others"
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise DeltatuneError(f"the tokenizer has {option}={model[option]!r}, which llama.cpp's have not")
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(tokenizer, rules, vocabulary, pieces)
    merges = [_merge(pair) for pair in model.get("merges") or []]
    values: dict[str, Any] = {"tokens": tokens, "token_type": kinds}
    if pieces:
        _check_pieces(rules)
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault("".join(pair), rank + 1)
        _check_reached(tokens, kinds, ranks)
        values |= {"model": "llama", "pre": "default", "add_space_prefix": _adds_space(rules)}
        values["scores"] = [
            -float(ranks[token]) if kind == NORMAL and token in ranks else 0.0 if kind in (NORMAL, BYTE) else -1000.0
            for token, kind in zip(tokens, kinds, strict=True)
        ]
    else:
        values |= {"model": "gpt2", "pre": cut_name(rules)}
        values["merges"] = [" ".join(part.replace(" ", chr(256 + ord(" "))) for part in pair) for pair in merges]
    first, last = _added(tokenizer)
    values |= {"add_bos_token": first, "add_eos_token": last}
    for kind_of, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = getattr(tokenizer, f"{kind_of}_token_id", None)
        if isinstance(number, int):
            values[f"{key}_token_id"] = number
    template = getattr(tokenizer, "chat_template", None)
    return values | ({"chat_template": template} if isinstance(template, str) else {})


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer's own description, as tokenizer.json has it. Raises DeltatuneError for one without."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DeltatuneError(f"{type(tokenizer).__name__} has no tokenizer.json, from which GGUF's tokenizer is made")
    rules: dict[str, Any] = json.loads(backend.to_str())
    return rules


def cut_name(rules: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which texts are cut. Raises DeltatuneError for one that it does not have."""
    steps = _steps(rules.get("pre_tokenizer"))
    problem = ""
    normalizer = [step.get("type") for step in _steps(rules.get("normalizer"), "normalizers")]
    if any(kind != "NFC" for kind in normalizer):
        problem = f"it changes texts first ({', '.join(map(str, normalizer))})"
    kinds = [step.get("type") for step in steps]
    name = ""
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True) and _isolates(steps[0]):
        name = CUTS.get((steps[0].get("pattern") or {}).get("Regex", ""), "")
    if steps and kinds[-1] == "ByteLevel" and steps[-1].get("add_prefix_space"):
        problem = "it puts a space in front of every text"
    if rules["model"].get("ignore_merges") and name != "llama-bpe":
        problem = "it takes whole words from its vocabulary before any merge"
    if problem or not name:
        why = problem or " + ".join(map(str, kinds)) or "no rule"
        raise DeltatuneError(
            f"llama.cpp has no tokenizer that cuts texts as this one does ({why}); its "
            "convert_hf_to_gguf.py may know the model's own"
        )
    return name


def _isolates(split: Mapping[str, Any]) -> bool:
    """Whether a split keeps what it matches, each match as a part of its own."""
    return split.get("behavior") == "Isolated" and not split.get("invert")


def _check_reached(tokens: Sequence[str], kinds: Sequence[int], ranks: Mapping[str, int]) -> None:
    """Raise DeltatuneError for tokens of several characters that no merge makes: llama.cpp would make them."""
    pairs = zip(tokens, kinds, strict=True)
    alone = [token for token, kind in pairs if kind == NORMAL and len(token) > 1 and token not in ranks]
    if alone:
        what = "1 token of the tokenizer comes" if len(alone) == 1 else f"{len(alone)} tokens of the tokenizer come"
        raise DeltatuneError(
            f"{what} from no merge: {', '.join(map(repr, alone[:3]))}; llama.cpp would join pieces to them that the "
            "tokenizer leaves apart"
        )


def _check_pieces(rules: Mapping[str, Any]) -> None:
    """Raise DeltatuneError where texts are changed or cut before the merges, beyond turning spaces."""
    problems = []
    for step in _steps(rules.get("normalizer"), "normalizers"):
        turns = step.get("type") == "Replace" and (step.get("pattern"), step.get("content")) == ({"String": " "}, SPACE)
        if not turns and (step.get("type"), step.get("prepend")) != ("Prepend", SPACE):
            problems.append(f"its normalizer {step.get('type')} changes texts first")
    for step in _steps(rules.get("pre_tokenizer")):
        if step.get("type") != "Metaspace":
            problems.append(f"its {step.get('type')} cuts texts first")
        elif step.get("split") and any(SPACE in token[1:] for token in rules["model"]["vocab"]):
            problems.append("it cuts texts at spaces, and its vocabulary has tokens with spaces inside")
    raise_all(problems, "llama.cpp's SentencePiece reads texts otherwise than this tokenizer:" if problems else "")


# ---- inside


def _tokens(
    tokenizer: PreTrainedTokenizerBase, rules: Mapping[str, Any], vocabulary: int, pieces: bool
) -> tuple[list[str], list[int]]:
    """The token of every id, and its kind."""
    tokens = [f"[PAD{index}]" for index in range(vocabulary)]
    kinds = [UNUSED] * vocabulary
    unknown = getattr(tokenizer, "unk_token_id", None)
    beyond = []
    for token, index in rules["model"]["vocab"].items():
        if index >= vocabulary:
            beyond.append(index)
            continue
        byte = pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        tokens[index], kinds[index] = token, BYTE if byte else NORMAL
    special = set(tokenizer.all_special_ids)
    for added in rules.get("added_tokens") or []:
        index = int(added["id"])
        if index >= vocabulary:
            beyond.append(index)
            continue
        control = added.get("special") or index in special
        tokens[index], kinds[index] = added["content"], CONTROL if control else USER_DEFINED
    if pieces and isinstance(unknown, int) and unknown < vocabulary:
        kinds[unknown] = UNKNOWN
    if beyond:
        raise DeltatuneError(
            f"the tokenizer has ids up to {max(beyond)}, and the model's embeddings have {vocabulary} rows"
        )
    return tokens, kinds


def _merge(pair: Any) -> tuple[str, str]:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right


def _steps(rule: Any, key: str = "pretokenizers") -> list[dict[str, Any]]:
    """The steps of a rule, which may be a sequence of them."""
    if not rule:
        return []
    return list(rule[key]) if rule.get("type") == "Sequence" else [rule]


def _adds_space(rules: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text, as SentencePiece does."""
    kinds = [step for step in _steps(rules.get("normalizer"), "normalizers") if step.get("type") == "Prepend"]
    spaces = [step for step in _steps(rules.get("pre_tokenizer")) if step.get("type") == "Metaspace"]
    return bool(kinds) or any(step.get("prepend_scheme") in ("always", "first") for step in spaces)


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first and its last token around a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    longer = len(full) > len(plain)
    return longer and full[0] == tokenizer.bos_token_id, longer and full[-1] == tokenizer.eos_token_id
