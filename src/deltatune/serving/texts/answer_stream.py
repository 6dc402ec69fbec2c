"""The text of an answer as its tokens come: decoded, ended by stop strings, maybe without blanks around it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from deltatune.serving.engine.requests import DoneEvent, TokenEvent
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.serving_errors import EngineStopped, RequestTimeout
from deltatune.serving.texts.detokenizer import Detokenizer
from deltatune.serving.texts.stop_strings import StopStrings


@dataclass(frozen=True)
class Piece:
    """A further part of an answer."""

    text: str
    tokens: tuple[tuple[int, TokenEvent], ...] = ()
    """The tokens whose text is out by now, and was not before, each with the character at which it begins."""


class Strip:
    """Lets a text through without the blanks before and behind it."""

    def __init__(self) -> None:
        self._begun, self._blanks = False, ""

    def push(self, text: str) -> str:
        """More text; returns what can be given out: blanks wait for what follows them."""
        text = self._blanks + (text if self._begun else text.lstrip())
        kept = text.rstrip()
        self._begun = self._begun or bool(kept)
        self._blanks = text[len(kept) :]
        return kept


class AnswerStream:
    """One answer of the engine as text. It has one reader; `cancel` ends it at any time."""

    def __init__(
        self, ticket: Ticket, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), strip: bool = False
    ) -> None:
        """`stops` end the text; `strip` leaves out blanks around it, as `deltatune predict` does."""
        self.ticket = ticket
        self.reason = ""
        """stop or length, once it has ended."""
        self.generated = 0
        """Tokens so far, without the one that ends an answer."""
        self.cached = 0
        """Tokens of the prompt that came from the prompt cache, once it has ended."""
        self.logprob = 0.0
        """Sum of the tokens' log-probabilities, if they were asked for."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops, self._strip = StopStrings(stops), Strip() if strip else None
        self._waiting: deque[tuple[int, int, TokenEvent]] = (
            deque()
        )  # with the characters where its text begins and ends
        self._unseen: list[tuple[int, TokenEvent]] = []  # tokens whose text is not decoded yet
        self._decoded = self._out = 0

    def cancel(self) -> None:
        """End it; the engine's room is free after the pass that runs."""
        if self.ticket.done is None:
            self.ticket.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer, part by part; each has text or tokens. Raises what the engine ended the request with."""
        try:
            async for event in self.ticket:
                if isinstance(event, TokenEvent):
                    piece = self._token(event)
                    if piece.text or piece.tokens:
                        yield piece
                    if self._stops.matched is not None:
                        self.reason = "stop"
                        return
                elif isinstance(event, DoneEvent):
                    piece = self._end(event)
                    if piece.text or piece.tokens:
                        yield piece
        finally:
            self.cancel()

    def _token(self, event: TokenEvent) -> Piece:
        self.generated += 1
        self.logprob += event.logprob or 0.0
        self._unseen.append((self._decoded, event))
        text = self._detokenizer.push(event.token)
        self._decode(text)
        return self._piece(self._stops.push(text))

    def _decode(self, text: str) -> None:
        """Note where the text of the tokens that it is of ends."""
        self._decoded += len(text)
        if text:
            self._waiting += [(start, self._decoded, event) for start, event in self._unseen]
            self._unseen.clear()

    def _end(self, event: DoneEvent) -> Piece:
        if event.reason == "error" and event.error is not None:
            raise event.error
        if event.reason == "timeout":
            raise RequestTimeout("the request took longer than it may; ask for fewer tokens, or try again later")
        if event.reason == "cancelled":
            raise EngineStopped("the server is about to stop and has ended the request; send it again")
        self.cached = event.timings.cached_tokens
        rest = self._detokenizer.finish()
        self._decode(rest)
        text = self._stops.push(rest)
        if self._stops.matched is None:
            text += self._stops.finish()
        self.reason = "length" if event.reason == "length" and self._stops.matched is None else "stop"
        return self._piece(text, last=self._stops.matched is None)

    def _piece(self, text: str, last: bool = False) -> Piece:
        """A piece with the tokens all of whose text is out, so that none tells what a stop string cut off."""
        self._out += len(text)
        tokens = []
        while self._waiting and self._waiting[0][1] <= self._out:
            start, _, event = self._waiting.popleft()
            tokens.append((start, event))
        return Piece(
            text if self._strip is None else self._strip.push(text), (*tokens, *(self._unseen if last else ()))
        )


class WholeAnswer:
    """An answer that came at once, in the place of a stream: of beam search, or of a chain of thought."""

    logprob = 0.0
    cached = 0
    reason = "stop"

    def __init__(self, text: str, tokens: int, stops: Sequence[str] = ()) -> None:
        ended = StopStrings(stops)
        self._text, self.generated = ended.push(text) + ended.finish(), tokens

    def cancel(self) -> None:
        """It has ended already."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """The text."""
        yield Piece(self._text)


Answer = AnswerStream | WholeAnswer
