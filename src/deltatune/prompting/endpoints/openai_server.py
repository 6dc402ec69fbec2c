"""A server with an OpenAI-compatible API as an endpoint: vLLM, llama.cpp, Ollama, a hosted service."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.prompting.endpoints.bounded_request import TooLarge, post
from deltatune.prompting.endpoints.endpoint import (
    Completion,
    OnCompletion,
    PromptForm,
    Request,
    SamplingParams,
    texts_of,
    valid_unicode,
)

REQUEST_FIELDS = ("max_tokens", "temperature", "top_p", "stop", "seed")
"""Fields of a request besides model and prompt."""
CONNECTION_ERRORS = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
"""Errors of a connection after which a retry may succeed."""
RETRIABLE = {408, 409, 425, 429, 500, 502, 503, 504}
"""Status codes after which a retry may succeed."""
MAX_BACKOFF = 60.0
"""Maximum number of seconds between two attempts."""
MAX_ANSWER = 16 << 20
"""Bytes of an answer."""
SHOWN = 300
"""Maximum number of characters of a server's answer that an error shows."""


@dataclass(frozen=True)
class OpenAICompatible:
    """Generates through an OpenAI-compatible server. No other server is contacted, and no redirect is followed."""

    url: str
    """Base URL of the API, such as http://localhost:8000/v1."""
    model: str
    """Name of the model on the server."""
    form: PromptForm = "chat"
    """chat: a user message to URL/chat/completions; plain: text to continue, to URL/completions."""
    key: str | None = None
    """Name of the environment variable that holds the API key. Default: no key."""
    timeout: float = 120.0
    """Seconds to wait for a whole answer, from connecting to its last byte; at most a day."""
    retries: int = 5
    """Retries when the server is busy, slow, or closes the connection."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled for each further one; the server's Retry-After takes precedence."""
    concurrency: int = 4
    """Number of concurrent requests."""
    request_fields: tuple[str, ...] = REQUEST_FIELDS
    """Fields of a request besides model and prompt; leave out those that the server rejects."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = []
        parts = _address(self.url)
        if parts is None:
            problems.append(f"url={self.url!r} is not an address; use one such as http://localhost:8000/v1")
        elif parts.query or parts.fragment:
            problems.append(f"url={self.url!r} has a part after ? or #, to which no path can be added; leave it out")
        elif parts.username or parts.password:
            problems.append("url contains a password; put it into an environment variable and give its name as key")
        if not self.model:
            problems.append("model must name one of the server's models")
        unknown = [name for name in self.request_fields if name not in REQUEST_FIELDS]
        if unknown:
            problems.append(f"request_fields={unknown}: the fields of a request are {', '.join(REQUEST_FIELDS)}")
        if not 0 < self.timeout <= 86_400 or self.retries < 0 or self.backoff < 0 or self.concurrency < 1:
            problems.append(
                "timeout must be above 0 and at most 86400, retries and backoff at least 0, concurrency at least 1"
            )
        raise_all(problems)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model

    def __call__(self, prompts: list[str]) -> list[str]:
        return self.generate(prompts, SamplingParams())

    def generate(self, prompts: list[str], params: SamplingParams) -> list[str]:
        """Generate one text per prompt. Raises DeltatuneError if the server fails or its answer is malformed."""
        return texts_of(self, prompts, params)

    def completions(self, requests: Sequence[Request], done: OnCompletion) -> None:
        """Complete every request, several at once; each is `done`, in a thread of its own, as soon as it is there.

        Raises DeltatuneError for the first that fails; no further request is sent then.
        """
        key = self._api_key()
        stop = Event()

        def run(number: int) -> None:
            if not stop.is_set():
                done(number, self._complete(requests[number], key, stop))

        threads = ThreadPoolExecutor(min(self.concurrency, len(requests) or 1))
        try:
            for future in as_completed([threads.submit(run, number) for number in range(len(requests))]):
                future.result()
        finally:
            stop.set()  # after an error no other thread retries
            threads.shutdown(wait=False, cancel_futures=True)

    def _api_key(self) -> str | None:
        if self.key is None:
            return None
        value = os.environ.get(self.key, "").strip()
        if not value:
            raise DeltatuneError(f"the environment variable {self.key} is not set; set it to the key of {self.url}")
        if not (value.isascii() and value.isprintable()):  # a header cannot hold it
            raise DeltatuneError(
                f"the environment variable {self.key} holds a line break or a character that is not ASCII, which no "
                f"key has; set it to the key of {self.url}"
            )
        return value

    def _complete(self, request: Request, key: str | None, stop_retrying: Event) -> Completion:
        """Generate one text, with retries."""
        problem = ""
        for attempt in range(self.retries + 1):
            try:
                content, kind = self._post(self._body(request.prompt, request.params), key)
                return self._completion(content, kind, key, attempt)
            except TooLarge as error:
                raise DeltatuneError(f"{self.url} {error}; is this the base URL of the API?") from None
            except urllib.error.HTTPError as error:
                problem = self._status_error(error, key)
                if error.code not in RETRIABLE:
                    raise DeltatuneError(problem) from None
                retry_after = _retry_after(error)
            except (*CONNECTION_ERRORS, http.client.HTTPException) as error:
                problem, retry_after = self._connection_error(error), None
            except urllib.error.URLError as error:
                if not isinstance(error.reason, CONNECTION_ERRORS):
                    raise DeltatuneError(self._unreachable(error)) from None
                problem, retry_after = self._connection_error(error.reason), None
            seconds = min(self.backoff * 2 ** min(attempt, 60) if retry_after is None else retry_after, MAX_BACKOFF)
            if attempt < self.retries and stop_retrying.wait(seconds):
                break
        attempts = "once" if not self.retries else f"{self.retries + 1} times"
        raise DeltatuneError(
            f"{problem}; tried {attempts}. Send fewer requests at once (--concurrency), or wait longer (--timeout)"
        )

    # ---- request

    def _body(self, prompt: str, params: SamplingParams) -> dict[str, Any]:
        content: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        stop = params.stop
        if self.form == "plain":
            content = {"prompt": prompt}
        else:  # a blank line ends a continuation, but not an answer
            stop = tuple(string for string in stop if string.strip())
        fields: dict[str, Any] = {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        fields |= {"seed": params.seed % 2**31, **({"stop": list(stop)} if stop else {})}
        return {
            "model": self.model,
            **content,
            **{name: value for name, value in fields.items() if name in self.request_fields},
        }

    def _post(self, body: dict[str, Any], key: str | None) -> tuple[bytes, str]:
        """The content of the answer and its type."""
        path = "chat/completions" if self.form == "chat" else "completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "deltatune"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        data = dumps(body, "the request", ensure_ascii=True).encode()
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", data, headers)
        return post(request, self.timeout, MAX_ANSWER)

    # ---- answer

    def _completion(self, content: bytes, kind: str, key: str | None, retries: int) -> Completion:
        try:
            answer = loads(content, "the answer")
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.form == "chat" else choice["text"]
            finish_reason = choice.get("finish_reason")
            if text is None and self.form == "chat":  # what a model will not answer has a field of its own
                text = choice["message"].get("refusal")
        except DeltatuneError as error:
            raise DeltatuneError(self._malformed(content, kind, key, f" ({error})")) from None
        except (LookupError, TypeError, AttributeError):
            raise DeltatuneError(self._malformed(content, kind, key)) from None
        if text is None and finish_reason in ("length", "content_filter"):
            text = ""
        if not isinstance(text, str):
            raise DeltatuneError(self._malformed(content, kind, key))
        cut = finish_reason == "length" or (finish_reason == "content_filter" and bool(text))
        usage = answer.get("usage")
        tokens = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
        return Completion(valid_unicode(text), cut, tokens[0], tokens[1], retries)

    def _malformed(self, content: bytes, kind: str, key: str | None, reason: str = "") -> str:
        of_kind = "" if not kind or "json" in kind else f" of type {printable(kind)}"
        shown = f"{_short(content)!r}{reason}"
        shown = shown.replace(key, "***") if key else shown  # a server may show the request that it was sent
        return (
            f"{self.url} answered{of_kind}, but not in OpenAI's format: {shown}. "
            "Is this the base URL of the API (it often ends in /v1)?"
        )

    def _status_error(self, error: urllib.error.HTTPError, key: str | None) -> str:
        try:
            message = _error_message(error.read())  # `post` has bounded it
        except (OSError, ValueError, http.client.HTTPException):
            message = ""
        message = message.replace(key, "***") if key else message
        detail = f": {message}" if message else ""
        if error.code in (401, 403):
            keyless = "a request without a key; name the variable that holds it (--key)"
            cause = f"the key in {self.key}" if self.key else keyless
            return f"{self.url} refused {cause} ({error.code}){detail}"
        if error.code == 404:
            fix = f"there is no model {self.model!r}, or this is not the base URL of the API (it often ends in /v1)"
            return f"{self.url} answered 404{detail}; {fix}"
        if 300 <= error.code < 400:
            address = printable(str(error.headers.get("Location")))
            return f"{self.url} redirects to {address}; use that address if you trust it"
        if error.code in (400, 422):
            fix = "A field that it names can be left out (request_fields; --omit FIELD)"
            return f"{self.url} refused the request ({error.code}){detail}. {fix}"
        return f"{self.url} answered {error.code}{detail}"

    def _connection_error(self, error: object) -> str:
        return f"{self.url} closed the connection or was too slow ({_reason(error)})"

    def _unreachable(self, error: urllib.error.URLError) -> str:
        return f"no answer from {self.url}: {_reason(error.reason)}. Is the server running, and the address right?"


def _address(url: str) -> urllib.parse.SplitResult | None:
    """The parts of the address of a server; None for a text that is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
        (parts.hostname or "").encode("idna")
        parts.path.encode("ascii")
    except ValueError:
        return None
    return parts if usable and " " not in url else None


def _count(usage: Any, name: str) -> int | None:
    """A count of tokens as the server gives it; None where it gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 2**53 else None


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds to wait according to Retry-After, which is a number or a date."""
    header = (error.headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _error_message(content: bytes) -> str:
    """The message of an error in OpenAI's format, else the beginning of the answer."""
    try:
        answer = loads(content, "the answer")
        error = answer.get("error", answer)
        text = error if isinstance(error, str) else error.get("message", error)
    except (ValueError, AttributeError):
        text = content.decode("utf-8", "replace")
    return printable(" ".join(str(text).split())[:SHOWN])


def printable(text: str) -> str:
    """A text of a server without control characters, which a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:SHOWN]


def _short(content: bytes) -> str:
    return content[:SHOWN].decode("utf-8", "replace")


def _reason(error: object) -> str:
    text = printable(str(getattr(error, "strerror", None) or error).strip())
    return text or type(error).__name__
