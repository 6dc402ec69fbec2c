"""The prompts of a task on a server, as a session on this machine has them: rows in, answers out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import GPT2Config

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError
from deltatune.core.trained_rows import TrainedRows
from deltatune.data import Data, Row
from deltatune.prompting.ask import OnAnswer, ask, references
from deltatune.prompting.chain_of_thought import ChainOfThought
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, label_words_task
from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint
from deltatune.prompting.in_context.demonstrations import Look, draw_demonstrations, shown_texts, usable_rows
from deltatune.prompting.in_context.in_context_learning import ICL
from deltatune.prompting.in_context.text_demonstrations import (
    demonstrated_prompt,
    drawn_rows,
    shown_pairs,
    usable_text_rows,
)
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.prompting.zero_shot import ZeroShot, check_classes
from deltatune.tasks.auto_task import task_for
from deltatune.tasks.generation import Generate
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.task import Encoded, Task

LEFT_TO_RIGHT = GPT2Config()
"""A server's model continues texts, whichever it is."""
BYTES_A_TOKEN = 2
"""Bytes of a text for each token that an answer may have on a server; most tokenizers make fewer tokens."""
_COUNT = re.compile(r"(\d+) of (\d+) ([^(]*)(.*)", re.DOTALL)


@dataclass
class ServerSession:
    """A prompt and the server that answers it, in the place of a `Session`: nothing is loaded here."""

    endpoint: CachedEndpoint
    task: Task
    method: PromptMethod
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What training stored, as in a session."""
    notes: list[str] = field(default_factory=list)
    """What a user must know of the prompt and of the answers so far."""
    unmatched: int = 0
    """Texts so far that none of the label words begin."""
    on_answer: OnAnswer | None = None
    weight: float = 1.0
    part: str | None = None
    _rows: int = 0
    _counts: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """What is counted -> its number so far, the number of texts of a row, and examples."""
    _shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.adapter = Adapter(self.method, None, {})

    @property
    def model(self) -> str:
        """Name of the model on the server."""
        return self.endpoint.name

    def encode(self, rows: Sequence[Row], labelled: bool = True) -> Encoded:
        """The rows as they are: the server makes its own tokens."""
        if not labelled:
            return Encoded([dict(row) for row in rows])
        return Encoded(
            [dict(row) for row in rows],
            row_references=references(self.task, rows),
            row_hashes=row_hashes(self.task, rows),
        )

    def predict(self, rows: Sequence[Row] | Encoded, batch_size: int = 0) -> Any:
        """Answers for rows, as `task.decode` and `task.score` read them; every request goes through the cache.

        Raises DeltatuneError where a request fails; what was answered is kept.
        """
        asked = ask(self.endpoint, self.task, list(rows), self.on_answer)
        self.unmatched += asked.unmatched
        dropped = self.endpoint.cache.notes if self.endpoint.cache is not None else []
        self._note((*dropped, *asked.notes), len(list(rows)))
        return asked.answers

    def _note(self, notes: Sequence[str], rows: int) -> None:
        """Add notes, each once; counts ("3 of 32 rows ...") are those of all rows so far, with their first examples."""
        self._rows += rows
        self.notes = [note for note in self.notes if note not in self._shown]
        for note in notes:
            if found := _COUNT.match(note):
                count, _, rest = self._counts.get(found[3], (0, 0, found[4]))
                self._counts[found[3]] = (count + int(found[1]), int(found[2]) // rows, rest)
            elif note not in self.notes:
                self.notes.append(note)
        self._shown = [f"{n} of {each * self._rows} {what}{rest}" for what, (n, each, rest) in self._counts.items()]
        self.notes += self._shown


def server_session(
    endpoint: CachedEndpoint,
    method: PromptMethod,
    data: Data,
    fields: Mapping[str, Any] | None = None,
    options: PromptOptions = NO_OPTIONS,
    seed: int = 0,
) -> ServerSession:
    """The prompt of a method for these data, with classes or texts as answers, to be asked of a server.

    `fields` are those of the data's task.

    Raises DeltatuneError for methods that need a model on this machine, and for data that the method is not for.
    """
    if isinstance(method, ChainOfThought):
        if data.kind != "text":
            raise DeltatuneError(
                f"{method!r} is for questions with an answer as a text (--task generate); these data are for "
                f"{data.task}"
            )
        return ServerSession(endpoint, method.reason(data.text, data.label, data.train, seed), method)
    if not isinstance(method, (ZeroShot, ICL)):
        raise DeltatuneError(
            f"{method!r} needs the model itself, and a server gives only texts; methods for a server: ZeroShot(), "
            "ICL(), ChainOfThought()"
        )
    if data.kind not in ("classes", "text"):
        raise DeltatuneError(
            f"{method!r} is for one class a row or for texts as answers; these data are for {data.task}"
        )
    inferred = task_for(data, LEFT_TO_RIGHT, _Lengths(), fields)  # type: ignore[arg-type]
    if isinstance(method, ICL):
        session = _in_context(endpoint, method, inferred.task, data, options, seed)
    else:
        session = ServerSession(endpoint, method.prompt_for(inferred.task, LEFT_TO_RIGHT, options), method)
    session.notes += inferred.notes if data.kind == "text" else ()
    return session


class _Lengths:
    """In the place of a tokenizer, which the server keeps to itself: more tokens of a text than most models make."""

    chat_template = None

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[range]]:
        return {"input_ids": [range(len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN) for text in texts]}


def _in_context(
    endpoint: CachedEndpoint, method: ICL, task: Task, data: Data, options: PromptOptions, seed: int
) -> ServerSession:
    """Demonstrations that are drawn; what needs the scores of words is left to models on this machine."""
    allowed: dict[str, tuple[Any, ...]] = {"select": ("auto", "balanced", "random"), "scoring": ("likelihood",)}
    allowed |= {"order": ("auto", "random", "given", "by-class"), "adapter": ("",), "length": (0,)}
    given = {name: getattr(method, name) for name in allowed}
    problems = [f"{name}={value!r}" for name, value in given.items() if value not in allowed[name]]
    if problems:
        raise DeltatuneError(
            f"{method!r}: {', '.join(problems)} needs the model itself, and a server gives only texts; leave it out"
        )
    if isinstance(task, Generate):
        asked = demonstrated_prompt(method, task, options)
        shown = drawn_rows(method, asked, usable_text_rows(asked, data.train), seed)
        pairs = tuple(shown_pairs(method, asked, shown))
        return _with_shown(ServerSession(endpoint, replace(asked, demonstrations=pairs), method), shown)
    plain = label_words_task(
        check_classes(method, task), LEFT_TO_RIGHT, options, method.template, method.words, separator=method.separator
    )
    usable = usable_rows(plain, data.train)
    template, sets, known = method.shown_template(plain), [], []
    for number in range(method.sets):
        order = draw_demonstrations(plain, usable, method.shots, method.select != "random", seed, number)
        if method.order == "given":
            order.sort()
        elif method.order == "by-class":
            order.sort(key=lambda i: plain.labels.index(str(usable[i][plain.label])))
        chosen = [usable[i] for i in order]
        sets.append(tuple(shown_texts(plain, chosen, template, Look(method.labels, seed), number)))
        known += chosen
    session = _with_shown(ServerSession(endpoint, replace(plain, demonstrations=tuple(sets)), method), known)
    if method.calibration != "none":
        session.notes.append("the answers are not calibrated: a server gives texts, no scores of words")
    return session


def _with_shown(session: ServerSession, rows: Sequence[Mapping[str, Any]]) -> ServerSession:
    """The session, whose adapter knows the rows that are shown."""
    hashes = (row_hashes(session.task, rows), row_hashes(session.task, []))
    session.adapter.trained_rows = TrainedRows().with_rows(*hashes)
    return session
