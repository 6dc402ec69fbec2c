"""Token ids to text as they come: never half a character, and together exactly what the whole decodes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

CLEANED = 6
"""Characters at the end of a text that a tokenizer with clean-up may still join: " n ' t"."""
WINDOW = 64
"""Tokens that are decoded together at most while a text grows, half of them as context."""
UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class Detokenizer:
    """The text of one answer, token by token.

    Only the last tokens are decoded anew, with others before them as context, because decoders put blanks between
    words. `finish` compares with the whole text and returns what is left.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._given = ""
        self._first = 0  # the first token of the window that is decoded
        self._out = 0  # characters of the window's text that were given
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def push(self, token: int) -> str:
        """The text that a further token adds for certain; "" while a character is not complete."""
        self.ids.append(token)
        window = self._decode(self.ids[self._first :])
        stable = self._stable(window)
        text = window[self._out : stable]
        if not text:
            return ""
        self._given += text
        self._out = stable
        if len(self.ids) - self._first > WINDOW:
            self._shorten(window)
        return text

    def finish(self) -> str:
        """What is left of the text."""
        whole = self.text
        window = self._decode(self.ids[self._first :])
        rest = whole[len(self._given) :] if whole.startswith(self._given) else window[self._out :]
        self._given += rest
        self._out = len(window)
        return rest

    @property
    def text(self) -> str:
        """All tokens as the tokenizer decodes them together."""
        return self._decode(self.ids)

    def _stable(self, text: str) -> int:
        """Characters at the start of a text that further tokens do not change."""
        if text.endswith(UNFINISHED):
            text = text.rstrip(UNFINISHED)
        if not self._cleans:
            return len(text)
        blank = text.find(" ", max(0, len(text) - CLEANED))
        return len(text) if blank < 0 else blank

    def _shorten(self, window: str) -> None:
        """Begin the window later, where its text then is the end of what it was."""
        first = len(self.ids) - WINDOW // 2
        shorter = self._decode(self.ids[first:])
        gone = len(window) - len(shorter)
        if 0 < gone <= self._out and window.endswith(shorter):
            self._first, self._out = first, self._out - gone

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""


class TokenPieces:
    """Single tokens as text and as bytes, for log-probabilities."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._bytes = _byte_alphabet() if _is_byte_level(tokenizer) else {}
        self._special = {str(token) for token in tokenizer.all_special_tokens}

    def text(self, token: int) -> str:
        """The token as a text: with the blank before it, and � for bytes that are no character."""
        piece = self._piece(token)
        data = self.bytes(token)
        if data is not None and piece not in self._special:
            return bytes(data).decode("utf-8", "replace")
        return str(self.tokenizer.decode([token]))

    def bytes(self, token: int) -> list[int] | None:
        """The token's bytes in UTF-8; None where the tokenizer does not say."""
        piece = self._piece(token)
        if piece in self._special:
            return list(piece.encode())
        if self._bytes:
            return [self._bytes[sign] for sign in piece] if all(sign in self._bytes for sign in piece) else None
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # sentencepiece's single bytes
            return [int(piece[3:5], 16)]
        if "\u2581" in piece:  # sentencepiece's blank
            return list(piece.replace("\u2581", " ").encode())
        text = str(self.tokenizer.decode([token]))
        return None if UNFINISHED in text else list(text.encode())

    def _piece(self, token: int) -> str:
        piece = self.tokenizer.convert_ids_to_tokens(token)
        return piece if isinstance(piece, str) else ""


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether pieces are written in GPT-2's alphabet of bytes."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable ones as they are, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
