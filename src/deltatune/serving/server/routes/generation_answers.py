"""Answers of /v1/completions and /v1/chat/completions in OpenAI's form: whole, or as a stream of chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deltatune.core.input_validation.strict_json import dumps
from deltatune.serving.engine.requests import TokenEvent
from deltatune.serving.texts.answer_stream import Answer, Piece
from deltatune.serving.texts.detokenizer import TokenPieces

Kind = Literal["text", "chat"]
NAMES = {
    "text": ("cmpl-", "text_completion", "text_completion"),
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
}
"""Beginning of the id, the object, and the object of a chunk."""


@dataclass(frozen=True)
class AnswerForm:
    """The form of one answer, and what its parts have in common."""

    kind: Kind
    model: str
    fingerprint: str
    pieces: TokenPieces
    logprobs: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", NAMES[self.kind][0] + secrets.token_hex(16))

    # ---- whole answers

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The answer with all of its choices."""
        return {**self._frame(NAMES[self.kind][1]), "choices": list(choices), "usage": usage, **more}

    def choice(self, number: int, text: str, tokens: Sequence[tuple[int, TokenEvent]], reason: str) -> dict[str, Any]:
        """One choice of a whole answer."""
        logprobs = self.token_logprobs(tokens) if self.logprobs else None
        if self.kind == "text":
            return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason}

    # ---- streams

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None, with_usage: bool) -> str:
        """One event of a stream; `with_usage`: the stream ends with its usage, which is null before."""
        content = {**self._frame(NAMES[self.kind][2]), "choices": list(choices)}
        return event({**content, "usage": usage} if with_usage else content)

    def delta(self, number: int, piece: Piece | None, reason: str | None = None, role: bool = False) -> dict[str, Any]:
        """A part of one choice; without a piece its first (`role`) or its last."""
        logprobs = self.token_logprobs(piece.tokens) if self.logprobs and piece is not None else None
        text = "" if piece is None else piece.text
        if self.kind == "text":
            return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        content: dict[str, Any] = {"content": text} if piece is not None or role else {}
        head = {"role": "assistant", "refusal": None} if role else {}
        return {"index": number, "delta": {**head, **content}, "logprobs": logprobs, "finish_reason": reason}

    # ---- log-probabilities

    def token_logprobs(self, tokens: Sequence[tuple[int, TokenEvent]]) -> dict[str, Any]:
        """Log-probabilities of tokens, in the form of the route."""
        if self.kind == "chat":
            content = [
                {
                    **self._token(event.token, event.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in event.top],
                }
                for _, event in tokens
            ]
            return {"content": content, "refusal": None}
        tops = []
        for _, event in tokens:
            top = {self.pieces.text(token): logprob for token, logprob in event.top}
            tops.append(top | {self.pieces.text(event.token): event.logprob} if event.top else top)
        return {
            "tokens": [self.pieces.text(event.token) for _, event in tokens],
            "token_logprobs": [event.logprob for _, event in tokens],
            "top_logprobs": tops,
            "text_offset": [start for start, _ in tokens],
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.pieces.text(token), "logprob": logprob, "bytes": self.pieces.bytes(token)}

    def _frame(self, name: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def event(content: Any) -> str:
    """A server-sent event."""
    return f"data: {dumps(content, nonfinite='null')}\n\n"


LAST_EVENT = "data: [DONE]\n\n"


def usage_of(prompt_tokens: int, streams: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of the prompts, each counted once, and of all answers."""
    written = sum(stream.generated for stream in streams)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": sum(stream.cached for stream in streams)},
    }
