"""Prompts in place of an adapter, for `deltatune evaluate` and `deltatune predict`: on a model here or on a server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.options.prompt_options import REQUEST_FIELDS, given, prompt_options, split_assignments
from deltatune.cli.ui.live import Bar
from deltatune.core.errors import DeltatuneError, raise_all

if TYPE_CHECKING:
    from deltatune.data import Data
    from deltatune.prompting.choose_prompts import PromptOptions
    from deltatune.prompting.prompt_method import PromptMethod
    from deltatune.prompting.server_session import ServerSession
    from deltatune.training.session import Session

EXAMPLE = "--method \"ZeroShot(template='{text} It was {mask}.')\""


@dataclass(frozen=True)
class ServerOptions:
    """The options of a model on a server."""

    url: str
    name: str | None
    key: str | None
    form: str
    timeout: float
    retries: int
    concurrency: int
    omit: Sequence[str] | None
    cache: Path | None


def server_options(url: str | None, name: str | None, key: str | None, *more: Any) -> ServerOptions | None:
    """The options of a model on a server; None without --url. Raises DeltatuneError for options that need it."""
    *_, omit, cache = more
    if url is not None:
        return ServerOptions(url, name, key, *more)
    needing = {"--name": name, "--key": key, "--omit": omit, "--cache": cache}
    raise_all([f"{option} requires --url" for option, value in needing.items() if value])
    return None


@dataclass(frozen=True)
class PromptChoice:
    """The options that name a prompt in place of an adapter."""

    method: str | None
    template: str | None
    words: Sequence[str] | None
    describe: str | None
    text: Sequence[str] | None
    label: str | None
    task: str | None
    max_length: int | None
    seed: int
    save: Path | None
    server: ServerOptions | None
    source: str | None = None
    """Labelled rows that are named for the prompt alone."""
    quantize: str | None = None
    """How the linear maps of a model on this machine are stored."""

    @property
    def given(self) -> list[str]:
        """The names of the options that are set."""
        set_here = {
            "--method": self.method, "--url": self.server, "--text": self.text, "--label": self.label,
            "--task": self.task, "--max-length": self.max_length, "--save": self.save, "--seed": self.seed,
            "--data": self.source,
        }  # fmt: skip
        return [*given(self.template, self.words, self.describe), *(name for name, value in set_here.items() if value)]

    def names_prompt(self, adapter: str | None, refused: Mapping[str, Any]) -> bool:
        """Whether there is a prompt in place of an adapter. `refused`: options that only adapters have.

        Raises DeltatuneError unless there is exactly one of the two.
        """
        names = self.given
        asks = set(names) & {"--method", "--template", "--words", "--describe"}
        if adapter is not None:
            what = f"{', '.join(names)}: for a prompt in place of an adapter"
            raise_all([f"{what}; leave --adapter {adapter} out, or name no prompt"] if names else [])
            return False
        if not asks:
            raise DeltatuneError(
                f"name a trained adapter with --adapter, or a prompt for the model's own head, such as {EXAMPLE}"
            )
        raise_all([f"{name} is for adapters; leave it out of a prompt" for name, value in refused.items() if value])
        return True

    def read_method(self) -> PromptMethod:
        """The prompting method. Raises DeltatuneError for one that is trained."""
        from deltatune.prompting.prompt_method import PromptMethod
        from deltatune.prompting.zero_shot import as_prompt_method

        method = as_prompt_method(self.method or "ZeroShot()")
        if not isinstance(method, PromptMethod) or method.trains:
            raise DeltatuneError(
                f"{method!r} is trained: use deltatune train --method {str(method)!r}, then --adapter with its folder"
            )
        return method


@dataclass(frozen=True)
class OpenedPrompt:
    """A prompt that answers rows."""

    session: Session | ServerSession
    method: PromptMethod
    prompts: tuple[str, ...] = ()
    """The prompts, for people."""
    notes: tuple[str, ...] = ()
    """What a user must know of finding them."""
    cost: Mapping[str, Any] | None = None
    """What finding them took, on this machine."""

    def trained_on(self, source: str) -> OpenedPrompt:
        """The same prompt, which was found on rows of this source: only its test rows are new to it."""
        session: Any = self.session
        extra = {"data": {"source": source}}
        if hasattr(session, "endpoint"):
            session.extra = extra
            return self
        return replace(self, session=replace(session, extra=extra))

    def spent(self) -> list[tuple[str, str]]:
        """Lines on the prompts and on what a server was asked."""
        endpoint = getattr(self.session, "endpoint", None)
        lines = [("prompt", prompt) for prompt in self.prompts[:1]]
        if endpoint is not None:
            lines.append(("asked", f"{endpoint.name}: {endpoint.cost.describe()}"))
            if endpoint.cache is not None:
                lines.append(("answers", str(endpoint.cache.file)))
        lines += [("note", note) for note in (*self.notes, *getattr(self.session, "notes", ()))]
        return lines

    def facts(self) -> dict[str, Any]:
        """The same as plain data."""
        session: Any = self.session
        served = {}
        if hasattr(session, "endpoint"):
            served = {"server": session.endpoint.cost.to_json(), "unmatched": session.unmatched}
        notes = [*self.notes, *getattr(session, "notes", ())]
        found = {"method": repr(self.method), "prompts": list(self.prompts), "notes": notes}
        return found | ({"cost": dict(self.cost)} if self.cost else {}) | served


@contextmanager
def opened_prompt(
    choice: PromptChoice, model: str | None, source: str | None, fields: Mapping[str, Any]
) -> Iterator[OpenedPrompt]:
    """The prompt of the options, found on the training rows of a source; without one for the classes that are named.

    `fields` are those of the task that may change after training.
    """
    method = choice.read_method()
    data = _without_rows(choice, method) if source is None else _read(choice, method, source)
    options = prompt_options(data, choice.template, choice.words, choice.describe)
    try:
        with Bar("asking") as bar:
            prompt = (
                _on_this_machine(choice, method, model, data, options, fields)
                if choice.server is None
                else _on_server(choice, method, model, data, options, fields, bar)
            )
            if method.draws and source is not None:
                prompt = prompt.trained_on(source)
            yield prompt
    except DeltatuneError as error:
        if source is not None or "training rows" not in str(error):
            raise
        raise DeltatuneError(f"{error}\n--data names the training rows") from None


def _read(choice: PromptChoice, method: PromptMethod, source: str) -> Data:
    """The data, whose problems matter only if rows are learned from; with all classes that the options name."""
    from deltatune.data.read_data import read_source
    from deltatune.prompting.chain_of_thought import ChainOfThought

    task: Any = choice.task or ("generate" if isinstance(method, ChainOfThought) else None)
    strict = method.draws or not Path(source).is_file()
    data = read_source(source, text=choice.text or (), label=choice.label, task=task, strict=strict)
    signs = any(sign in label for label in data.labels for sign in ",=")
    if data.kind == "classes" and not signs:  # a file to score may lack a class
        named = _named_classes(choice, method)
        if set(data.labels) < set(named):
            return replace(data, labels=named)
    return data


def _on_this_machine(
    choice: PromptChoice,
    method: PromptMethod,
    model: str | None,
    data: Data,
    options: PromptOptions,
    fields: Mapping[str, Any],
) -> OpenedPrompt:
    from deltatune.prompting.prompt_method import PromptRows, with_stored_task
    from deltatune.prompting.prompt_run import find_prompt, open_prompt_session
    from deltatune.training import Settings
    from deltatune.training.open_session import with_fields

    if model is None:
        raise DeltatuneError("--model is needed: the model that reads the prompt; or a server, with --url and --name")
    own = {} if choice.max_length is None else {"max_length": choice.max_length}
    session = open_prompt_session(model, data, own, quantize=choice.quantize)
    method.check_task(session.task)
    fitted, cost = find_prompt(
        session, method, PromptRows(data.train, data.validation), Settings(seed=choice.seed), options
    )
    session = fitted.session
    session = replace(session, task=with_fields(session.task, fields))
    if choice.save is not None:
        with_stored_task(session, {"prompts": list(fitted.prompts)})
        session.host.save(session.name, choice.save)
    return OpenedPrompt(replace(session, notes=()), method, fitted.prompts, fitted.notes, cost.to_json())


def _on_server(
    choice: PromptChoice,
    method: PromptMethod,
    model: str | None,
    data: Data,
    options: PromptOptions,
    fields: Mapping[str, Any],
    bar: Bar,
) -> OpenedPrompt:
    server = choice.server
    assert server is not None
    unknown = [name for name in server.omit or () if name not in REQUEST_FIELDS]
    raise_all([
        *(["--url needs --name, the name of the model on the server"] if server.name is None else []),
        *([f"--url is for a model on a server, --model {model} for one here: give one of the two"] if model else []),
        *(["--save: a prompt is stored with the model that reads it; choose a model here with --model"]
          if choice.save else []),
        *([f"--quantize {choice.quantize}: a server's model is stored as it is; leave it out"]
          if choice.quantize else []),
        *(["--max-length: a server makes its own tokens; leave it out"] if choice.max_length else []),
        *(f"--omit {name}: the fields of a request are {', '.join(REQUEST_FIELDS)}" for name in unknown),
    ])  # fmt: skip
    from deltatune.prompting import OpenAICompatible
    from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint
    from deltatune.prompting.server_session import server_session
    from deltatune.training.open_session import with_fields

    sent = tuple(name for name in REQUEST_FIELDS if name not in (server.omit or ()))
    form: Any = server.form
    endpoint = OpenAICompatible(
        server.url, str(server.name), form, server.key, server.timeout, server.retries,
        concurrency=server.concurrency, request_fields=sent,
    )  # fmt: skip
    cache = (
        server.cache or Path("runs") / f"answers-{re.sub(r'[^A-Za-z0-9.]+', '-', str(server.name)).strip('-.')}.jsonl"
    )
    cache.parent.mkdir(parents=True, exist_ok=True)
    session = server_session(CachedEndpoint(endpoint, cache), method, data, None, options, choice.seed)
    session.task = with_fields(session.task, fields)

    def show_progress(done: int, total: int) -> None:
        bar.update(done, total, "")

    session.on_answer = show_progress
    return OpenedPrompt(session, method, (session.task.describe(),))


# ---- without data


def _without_rows(choice: PromptChoice, method: PromptMethod) -> Data:
    """What the options alone say of the rows: text columns and, for a classification, the classes."""
    from deltatune.data import Data
    from deltatune.prompting.chain_of_thought import ChainOfThought

    if isinstance(method, ChainOfThought):
        columns = tuple(choice.text or _columns(method.prompt) or ("question",))
        return Data("", "", columns, "answer", "text", (), [], [], [])
    template = choice.template or str(getattr(method, "template", ""))
    columns = tuple(choice.text or _columns(template) or ("text",))
    if choice.task == "generate":
        return Data("", "", columns, choice.label or "output", "text", (), [], [], [])
    labels = _classes(choice, method)
    return Data("", "", columns, choice.label or "label", "classes", labels, [], [], [])


def _columns(template: str) -> list[str]:
    if "{" not in template:
        return []
    from deltatune.tasks.prompts.templates import Template

    if "{mask}" in template:
        return list(Template(template).columns)
    return [name for name in dict.fromkeys(re.findall(r"\{(\w+)\}", template)) if not name.isdecimal()]


def _classes(choice: PromptChoice, method: PromptMethod) -> tuple[str, ...]:
    classes = _named_classes(choice, method)
    if len(classes) < 2:
        raise DeltatuneError(
            "which classes are there? Give their words, --words bad=terrible --words good=great; describe them, "
            '--describe "0=spam, 1=a normal message"; or name labelled rows with --data. For texts as answers: --task '
            "generate"
        )
    return classes


def _named_classes(choice: PromptChoice, method: PromptMethod) -> tuple[str, ...]:
    """The classes that words or a description name."""
    from deltatune.prompting.choose_prompts import split_words
    from deltatune.tasks.label_words.verbalizer import read_words

    words = split_words(str(getattr(method, "words", ""))) or split_assignments(choice.words)
    if words:
        return tuple(read_words(words))
    return tuple(dict.fromkeys(re.findall(r"(?:^|[,;\n])\s*([^,;=\n|]+?)\s*=", choice.describe or "")))
