"""`deltatune self-instruct`: instruction data written by a model, from a few tasks that people wrote."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options import OUTPUT, OtherBase, option
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import constant, fields_of
from deltatune.cli.ui.live import Bar, time_left
from deltatune.cli.ui.screen import say, show, table
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, raise_all

if TYPE_CHECKING:
    from deltatune.prompting import Endpoint, Progress

WRITER, GROWTH = "What writes", "What is kept"
"""Groups of options in the help."""
SETTINGS = fields_of("prompting/self_instruct/self_instruct_settings.py", "SelfInstruct")
SERVER = fields_of("prompting/endpoints/openai_server.py", "OpenAICompatible")
LOCAL = fields_of("prompting/endpoints/local_model.py", "LocalModel")
FIELDS = constant("prompting/endpoints/openai_server.py", "FIELDS") or ()
PLAIN_SECONDS = 60
"""Seconds between two lines of progress where the output is no terminal."""


def _growth(name: str, metavar: str = "NUMBER", panel: str = GROWTH) -> Any:
    """The option of a field of SelfInstruct."""
    return option(f"--{name.replace('_', '-')}", panel=panel, metavar=metavar, help=f"{SETTINGS[name].help}.")


def _served(name: str, metavar: str = "NUMBER") -> Any:
    """The option of a field of OpenAICompatible."""
    return option(f"--{name.replace('_', '-')}", panel=WRITER, metavar=metavar, help=f"{SERVER[name].help}.")


def generate_instructions(
    seeds: Annotated[
        Path, typer.Argument(metavar="SEEDS", help="Tasks that people wrote: rows with instruction, input and output.")
    ],
    *,
    out: Annotated[Path, option("--out", "-o", panel=OUTPUT, metavar="FILE", help="Where the rows go: a .jsonl file.")],
    model: Annotated[
        str | None,
        option("--model", "-m", panel=WRITER, metavar="MODEL", help="A model to run here: a folder or a hub name."),
    ] = None,
    adapter: Annotated[
        str | None,
        option("--adapter", "-a", panel=WRITER, metavar="FOLDER", help="An adapter that train wrote, to run here."),
    ] = None,
    other_base: OtherBase = False,
    url: Annotated[str | None, _served("url", "URL")] = None,
    name: Annotated[
        str | None, option("--name", panel=WRITER, metavar="NAME", help="Which of the server's models writes.")
    ] = None,
    key: Annotated[str | None, _served("key", "VARIABLE")] = None,
    form: Annotated[
        str | None,
        option(
            "--form",
            panel=WRITER,
            metavar="KIND",
            help="chat (a message) or plain (a text to go on with). By default chat for a server, plain for a model.",
        ),
    ] = None,
    batch_size: Annotated[
        int, option("--batch-size", panel=WRITER, metavar="PROMPTS", help=f"{LOCAL['batch_size'].help}.")
    ] = LOCAL["batch_size"].default,
    timeout: Annotated[float, _served("timeout", "SECONDS")] = SERVER["timeout"].default,
    retries: Annotated[int, _served("retries")] = SERVER["retries"].default,
    concurrency: Annotated[int, _served("concurrency")] = SERVER["concurrency"].default,
    without: Annotated[
        list[str] | None,
        option(
            "--without",
            panel=WRITER,
            metavar="FIELD",
            help=f"Leave a field out that the server refuses: {', '.join(FIELDS)}. May be given again.",
        ),
    ] = None,
    total: Annotated[int, _growth("total")] = SETTINGS["total"].default,
    mode: Annotated[str, _growth("mode", "KIND")] = SETTINGS["mode"].default,
    human: Annotated[int, _growth("human")] = SETTINGS["human"].default,
    own: Annotated[int, _growth("own")] = SETTINGS["own"].default,
    new: Annotated[int, _growth("new")] = SETTINGS["new"].default,
    cases: Annotated[int, _growth("cases")] = SETTINGS["cases"].default,
    examples: Annotated[int, _growth("examples")] = SETTINGS["examples"].default,
    similarity: Annotated[float, _growth("similarity")] = SETTINGS["similarity"].default,
    prompts: Annotated[int, _growth("prompts")] = SETTINGS["prompts"].default,
    temperature: Annotated[float, _growth("temperature")] = SETTINGS["temperature"].default,
    top_p: Annotated[float, _growth("top_p")] = SETTINGS["top_p"].default,
    max_tokens: Annotated[int, _growth("max_tokens")] = SETTINGS["max_tokens"].default,
    example_tokens: Annotated[int, _growth("example_tokens")] = SETTINGS["example_tokens"].default,
    patience: Annotated[int, _growth("patience")] = SETTINGS["patience"].default,
    rounds: Annotated[int | None, _growth("rounds")] = SETTINGS["rounds"].default,
    seed: Annotated[int, _growth("seed")] = SETTINGS["seed"].default,
) -> None:
    """Grow instruction data from seed tasks: a model writes new ones, and those unlike all others are kept.

    Every round is written when it ends; the same command goes on where the last one ended, and with a larger --total
    it grows further. What is not kept goes beside FILE, each line with its reason.

      deltatune self-instruct seeds.jsonl --url http://localhost:8000/v1 --name my-model --total 200 --out instructions.jsonl
      deltatune self-instruct seeds.jsonl --model gpt2 --mode whole --human 3 --own 0 --total 20 --out instructions.jsonl
    """
    settings = {
        **{"total": total, "mode": mode, "human": human, "own": own, "new": new},
        **{
            "cases": cases,
            "examples": examples,
            "similarity": similarity,
            "prompts": prompts,
            "temperature": temperature,
            "top_p": top_p,
        },
        **{"max_tokens": max_tokens, "example_tokens": example_tokens},
        **{"patience": patience, "rounds": rounds, "seed": seed},
    }
    _check_writer(model, adapter, url, name, key, without)
    from deltatune.data import read_rows
    from deltatune.prompting import SelfInstruct, OpenAICompatible
    from deltatune.prompting import generate_instructions as run

    wanted, rows = SelfInstruct(**settings), read_rows(seeds)  # type: ignore[arg-type]
    writer: Endpoint
    if url is None:
        writer = _local(model, adapter, other_base, form or "plain", batch_size)
    else:
        send = tuple(field for field in FIELDS if field not in (without or ()))
        how: Any = form or "chat"
        writer = OpenAICompatible(url, str(name), how, key, timeout, retries, concurrency=concurrency, request_fields=send)
    progress = GrowingProgress()
    try:
        with progress:
            run(rows, writer, wanted, out, progress)
    except KeyboardInterrupt:
        kept = progress.last.kept if progress.last else 0
        raise Interrupted(f"{count(kept)} instructions are in {out}; the same command goes on") from None
    finally:
        if progress.last and progress.last.round:
            report(progress.last, out)


def _check_writer(
    model: str | None, adapter: str | None, url: str | None, name: str | None, key: str | None, without: Any
) -> None:
    """Raise DeltatuneError unless the options name one writer."""
    problems = []
    if url is None and model is None and adapter is None:
        problems.append("say what writes: --model or --adapter for a model here, --url and --name for a server's")
    if url is not None and (model is not None or adapter is not None):
        problems.append("--url is for a server's model, --model and --adapter for one here: give one of them")
    if url is not None and name is None:
        problems.append("--url needs --name: which of the server's models writes")
    if url is None:
        given = {"--name": name, "--key": key, "--without": without}
        problems += [f"{word} speaks of a server: it needs --url" for word, value in given.items() if value]
    unknown = [field for field in without or () if field not in FIELDS]
    problems += [f"--without {field}: a request has {', '.join(FIELDS)}" for field in unknown]
    raise_all(problems)


def _local(model: str | None, adapter: str | None, other_base: bool, form: Any, batch_size: int) -> Endpoint:
    """The writer that runs here."""
    from deltatune.models.hardware import best_device
    from deltatune.models.loading import load_backbone
    from deltatune.prompting import LocalModel

    if adapter is None:
        found, tokenizer = load_backbone(str(model), answers="text")
        return LocalModel(found.to(best_device()), tokenizer, form, batch_size, label=str(model))  # type: ignore[arg-type]
    from deltatune.cli.open_adapter import NAME, open_adapter

    opened = open_adapter(adapter, model, other_base)
    if opened.task.answers != "text":
        raise DeltatuneError(
            f"{adapter} was trained to label, not to write; an adapter trained with --task generate or lm can write"
        )
    opened.host.use(NAME)
    return LocalModel(opened.host, opened.tokenizer, form, batch_size, label=f"{opened.model} + {adapter}")


class GrowingProgress(Bar):
    """Called after each round; a live line in a terminal, a plain one now and then elsewhere."""

    def __init__(self) -> None:
        super().__init__("growing")
        self.last: Progress | None = None
        self.before = 0
        """Instructions that were there at the start."""
        self.started = self.said = time.perf_counter()

    def __call__(self, step: Progress) -> None:
        """Show a round."""
        if self.last is None:
            self.before = step.kept
            if step.round:
                self.console.print(f"going on after round {step.round} with {count(step.kept)} instructions")
        self.last = step
        words, now = self._words(step), time.perf_counter()
        if self.moved(step.kept, step.total, words):
            return
        if now - self.said > PLAIN_SECONDS:
            self.said = now
            self.console.print(f"{step.kept}/{step.total}  {words}")

    def _words(self, step: Progress) -> str:
        gained, refused = step.kept - self.before, sum(step.rejected.values())
        elapsed = time.perf_counter() - self.started
        left = f"  {time_left((step.total - step.kept) * elapsed / gained)} left" if gained else ""
        return f"round {step.round}  {count(refused)} not kept{left}"


def report(step: Progress, out: Path) -> None:
    """How many were kept, and the others by reason."""
    kept = [("instructions kept", count(step.kept)), ("  their rows", count(step.rows))]
    refused = [(f"not kept: {reason}", count(number)) for reason, number in step.rejected.items()]
    show(table(["what", "number"], [*kept, *refused], right=["number"]), "")
    if step.rejected:
        say(f"Not kept: {out.with_name(f'{out.stem}.rejected.jsonl')}")
    if step.rows:
        say(f"Rows: {out}")
        say(f"Train on them: deltatune train --model MODEL --data {out}")
