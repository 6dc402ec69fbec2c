"""A server that speaks OpenAI's protocol as an endpoint: vLLM, llama.cpp, Ollama, a hosted service."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.validation import check_fields
from deltatune.prompting.endpoints.endpoint import SamplingParams, Truncated, PromptForm

FIELDS = ("max_tokens", "temperature", "top_p", "stop", "seed")
"""What a request says besides model and prompt."""
BROKEN = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
"""Connections that may hold on another try."""
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""Answers after which another try may do."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries at most."""
SHOWN = 300
"""Characters of a server's answer that an error shows."""


@dataclass(frozen=True)
class OpenAICompatible:
    """Writes by asking a server that speaks OpenAI's protocol. Nothing else is contacted, and no redirect followed."""

    url: str
    """Where its API begins, such as http://localhost:8000/v1."""
    model: str
    """Which of its models writes."""
    form: PromptForm = "chat"
    """chat: a user's message to URL/chat/completions; plain: a text to go on with, to URL/completions."""
    key: str | None = None
    """Name of the environment variable that holds the key; None where the server wants none."""
    timeout: float = 120.0
    """Seconds to wait for one answer."""
    retries: int = 5
    """Tries more where the server is busy, breaks off or is too slow."""
    backoff: float = 1.0
    """Seconds before the second try, doubled for each further one; the server's own wish comes first."""
    concurrency: int = 4
    """Requests at the same time."""
    request_fields: tuple[str, ...] = FIELDS
    """What a request says besides model and prompt; leave out what a server refuses."""

    def __post_init__(self) -> None:
        check_fields(self)
        parts = urllib.parse.urlsplit(self.url)
        problems = []
        if parts.scheme not in ("http", "https") or not parts.hostname:
            problems.append(f"url={self.url!r} is no address; it is one such as http://localhost:8000/v1")
        if parts.username or parts.password:
            problems.append("url holds a password; put the key into an environment variable and name that as key")
        if not self.model:
            problems.append("model must name one of the server's models")
        unknown = [name for name in self.request_fields if name not in FIELDS]
        if unknown:
            problems.append(f"request_fields={unknown}: a request can say {', '.join(FIELDS)}")
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0 or self.concurrency < 1:
            problems.append("timeout must be above 0, retries and pause at least 0, concurrency at least 1")
        raise_all(problems)

    @property
    def name(self) -> str:
        """The model."""
        return self.model

    def __call__(self, prompts: list[str]) -> list[str]:
        return self.generate(prompts, SamplingParams())

    def generate(self, prompts: list[str], ask: SamplingParams) -> list[str]:
        """What the model writes for each prompt. Raises DeltatuneError where the server does not answer as it must."""
        key = self._key()
        over = Event()
        threads = ThreadPoolExecutor(min(self.concurrency, len(prompts) or 1))
        try:
            waiting = [threads.submit(self._one, prompt, ask, key, over) for prompt in prompts]
            return [one.result() for one in waiting]
        finally:
            over.set()  # after an error no other thread tries again
            threads.shutdown(wait=False, cancel_futures=True)

    def _key(self) -> str | None:
        if self.key is None:
            return None
        found = os.environ.get(self.key, "").strip()
        if not found:
            raise DeltatuneError(f"the environment variable {self.key} is not set; put the key of {self.url} into it")
        return found

    def _one(self, prompt: str, ask: SamplingParams, key: str | None, over: Event) -> str:
        """One text, tried again while that may help."""
        problem = ""
        for attempt in range(self.retries + 1):
            try:
                return self._text(self._post(self._body(prompt, ask), key))
            except urllib.error.HTTPError as error:
                problem = self._refused(error, key)
                if error.code not in PASSING:
                    raise DeltatuneError(problem) from None
                wish = _wish(error)
            except (*BROKEN, http.client.HTTPException) as error:
                problem, wish = f"{self.url} broke off or was too slow ({_words(error)})", None
            except urllib.error.URLError as error:
                if not isinstance(error.reason, BROKEN):
                    raise DeltatuneError(self._absent(error)) from None
                problem, wish = f"{self.url} broke off or was too slow ({_words(error.reason)})", None
            pause = min(self.backoff * 2**attempt if wish is None else wish, LONGEST_PAUSE)
            if attempt < self.retries and over.wait(pause):
                break
        tries = "once" if not self.retries else f"{self.retries + 1} times"
        raise DeltatuneError(f"{problem}; tried {tries}. SamplingParams less at once (concurrency), wait longer (timeout, pause)")

    # ---- out

    def _body(self, prompt: str, ask: SamplingParams) -> dict[str, Any]:
        what: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        stop = ask.stop
        if self.form == "plain":
            what = {"prompt": prompt}
        else:  # a blank line ends a text that is gone on with, but not an answer
            stop = tuple(word for word in stop if word.strip())
        how: dict[str, Any] = {"max_tokens": ask.max_tokens, "temperature": ask.temperature, "top_p": ask.top_p}
        how |= {"seed": ask.seed % 2**31, **({"stop": list(stop)} if stop else {})}
        return {"model": self.model, **what, **{name: value for name, value in how.items() if name in self.request_fields}}

    def _post(self, body: dict[str, Any], key: str | None) -> bytes:
        place = "chat/completions" if self.form == "chat" else "completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "deltatune"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{place}", json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)  # a key must not go where nobody sent it
        with opener.open(request, timeout=self.timeout) as answer:
            content: bytes = answer.read()
        return content

    # ---- back

    def _text(self, content: bytes) -> str:
        try:
            choice = json.loads(content)["choices"][0]
            text = choice["message"]["content"] if self.form == "chat" else choice["text"]
            ended = choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DeltatuneError(self._malformed(content)) from None
        if text is None and ended in ("length", "content_filter"):
            text = ""
        if not isinstance(text, str):
            raise DeltatuneError(self._malformed(content))
        return Truncated(text) if ended == "length" else text

    def _malformed(self, content: bytes) -> str:
        return (
            f"{self.url} answered, but not in OpenAI's form: {_short(content)!r}. "
            "Does the address end where the API begins (often in /v1)?"
        )

    def _refused(self, error: urllib.error.HTTPError, key: str | None) -> str:
        try:
            said = _said(error.read())
        except (OSError, http.client.HTTPException):
            said = ""
        said = said.replace(key, "***") if key else said
        more = f": {said}" if said else ""
        if error.code in (401, 403):
            whose = f"the key in {self.key}" if self.key else "a request without a key; name the variable that has it"
            return f"{self.url} refused {whose} ({error.code}){more}"
        if error.code == 404:
            fix = f"there is no model {self.model!r}, or the address does not end where the API begins (often in /v1)"
            return f"{self.url} answered 404{more}; {fix}"
        if 300 <= error.code < 400:
            return f"{self.url} sends requests on to {error.headers.get('Location')}; give that address if you trust it"
        if error.code in (400, 422):
            return f"{self.url} refused the request ({error.code}){more}. A field that it names can be left out (send)"
        return f"{self.url} answered {error.code}{more}"

    def _absent(self, error: urllib.error.URLError) -> str:
        return f"no answer from {self.url}: {_words(error.reason)}. Is the server running, and the address right?"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the error that it is here."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


def _wish(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait: a number or a date."""
    said = (error.headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _said(content: bytes) -> str:
    """The message of an error, as OpenAI's form has it, or the beginning of whatever it is."""
    try:
        found = json.loads(content)
        found = found.get("error", found)
        text = found if isinstance(found, str) else found.get("message", found)
    except (ValueError, AttributeError):
        text = content.decode("utf-8", "replace")
    return " ".join(str(text).split())[:SHOWN]


def _short(content: bytes) -> str:
    return content[:SHOWN].decode("utf-8", "replace")


def _words(error: object) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return text or type(error).__name__
