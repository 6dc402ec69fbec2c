"""`deltatune self-instruct`: instruction data that a model generates from seed tasks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.quantize_options import AdapterQuantize
from deltatune.cli.options.shared_options import OUTPUT, Json, OtherBase, option
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import constant, fields_of
from deltatune.cli.ui.live import Bar, time_left
from deltatune.cli.ui.screen import print_json, say, show, table
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, raise_all

if TYPE_CHECKING:
    from deltatune.prompting import Endpoint, GenerationProgress

GENERATOR, FILTERING = "Generator model", "Filtering"
"""Groups of options in the help."""
SETTINGS = fields_of("prompting/self_instruct/self_instruct_settings.py", "SelfInstruct")
SERVER = fields_of("prompting/endpoints/openai_server.py", "OpenAICompatible")
LOCAL = fields_of("prompting/endpoints/local_model.py", "LocalModel")
REQUEST_FIELDS = constant("prompting/endpoints/openai_server.py", "REQUEST_FIELDS") or ()
PLAIN_SECONDS = 60
"""Seconds between two lines of progress if the output is not a terminal."""


def _setting(name: str, metavar: str = "NUMBER", panel: str = FILTERING) -> Any:
    """The option of a field of SelfInstruct."""
    return option(f"--{name.replace('_', '-')}", panel=panel, metavar=metavar, help=f"{SETTINGS[name].help}.")


def _server(name: str, metavar: str = "NUMBER") -> Any:
    """The option of a field of OpenAICompatible."""
    return option(f"--{name.replace('_', '-')}", panel=GENERATOR, metavar=metavar, help=f"{SERVER[name].help}.")


def self_instruct(
    seeds: Annotated[
        Path, typer.Argument(metavar="SEEDS", help="Seed tasks: rows with instruction, input and output.")
    ],
    *,
    out: Annotated[Path, option("--out", "-o", panel=OUTPUT, metavar="FILE", help="Output file, ending in .jsonl.")],
    model: Annotated[
        str | None,
        option("--model", "-m", panel=GENERATOR, metavar="MODEL", help="Local model: a folder or a hub name."),
    ] = None,
    adapter: Annotated[
        str | None,
        option("--adapter", "-a", panel=GENERATOR, metavar="FOLDER", help="Adapter for the local model, from train."),
    ] = None,
    other_base: OtherBase = False,
    quantize: AdapterQuantize = None,
    url: Annotated[str | None, _server("url", "URL")] = None,
    name: Annotated[
        str | None, option("--name", panel=GENERATOR, metavar="NAME", help="Name of the model on the server.")
    ] = None,
    key: Annotated[str | None, _server("key", "VARIABLE")] = None,
    form: Annotated[
        str | None,
        option(
            "--form",
            panel=GENERATOR,
            metavar="KIND",
            help="chat (a user message) or plain (text to continue). Default: chat for a server, plain for a model.",
        ),
    ] = None,
    batch_size: Annotated[
        int, option("--batch-size", panel=GENERATOR, metavar="PROMPTS", help=f"{LOCAL['batch_size'].help}.")
    ] = LOCAL["batch_size"].default,
    timeout: Annotated[float, _server("timeout", "SECONDS")] = SERVER["timeout"].default,
    retries: Annotated[int, _server("retries")] = SERVER["retries"].default,
    concurrency: Annotated[int, _server("concurrency")] = SERVER["concurrency"].default,
    omit: Annotated[
        list[str] | None,
        option(
            "--omit",
            panel=GENERATOR,
            metavar="FIELD",
            help=f"Leave out a request field that the server rejects: {', '.join(REQUEST_FIELDS)}. Repeatable.",
        ),
    ] = None,
    temperature: Annotated[float, _setting("temperature", panel=GENERATOR)] = SETTINGS["temperature"].default,
    top_p: Annotated[float, _setting("top_p", panel=GENERATOR)] = SETTINGS["top_p"].default,
    max_tokens: Annotated[int, _setting("max_tokens", panel=GENERATOR)] = SETTINGS["max_tokens"].default,
    example_tokens: Annotated[int, _setting("example_tokens", panel=GENERATOR)] = SETTINGS["example_tokens"].default,
    total: Annotated[int, _setting("total")] = SETTINGS["total"].default,
    mode: Annotated[str, _setting("mode", "KIND")] = SETTINGS["mode"].default,
    seed_tasks: Annotated[int, _setting("seed_tasks")] = SETTINGS["seed_tasks"].default,
    generated_tasks: Annotated[int, _setting("generated_tasks")] = SETTINGS["generated_tasks"].default,
    new_tasks: Annotated[int, _setting("new_tasks")] = SETTINGS["new_tasks"].default,
    example_tasks: Annotated[int, _setting("example_tasks")] = SETTINGS["example_tasks"].default,
    examples: Annotated[int, _setting("examples")] = SETTINGS["examples"].default,
    similarity: Annotated[float, _setting("similarity")] = SETTINGS["similarity"].default,
    prompts: Annotated[int, _setting("prompts")] = SETTINGS["prompts"].default,
    patience: Annotated[int, _setting("patience")] = SETTINGS["patience"].default,
    rounds: Annotated[int | None, _setting("rounds")] = SETTINGS["rounds"].default,
    seed: Annotated[int, _setting("seed")] = SETTINGS["seed"].default,
    as_json: Json = False,
) -> None:
    """Generate instruction data from seed tasks with a model, and keep what is dissimilar (Wang et al. 2022).

    Every round is saved when it ends. The same command resumes after the last finished round, and with a larger
    --total it continues. Rejected texts go into a file beside the output, each line with its reason.

      deltatune self-instruct seeds.jsonl --url http://localhost:8000/v1 --name my-model --out instructions.jsonl
      deltatune self-instruct seeds.jsonl --model gpt2 --mode whole --total 20 --out instructions.jsonl
    """
    fields = {
        "total": total,
        "mode": mode,
        "seed_tasks": seed_tasks,
        "generated_tasks": generated_tasks,
        "new_tasks": new_tasks,
        "example_tasks": example_tasks,
        "examples": examples,
        "similarity": similarity,
        "prompts": prompts,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "example_tokens": example_tokens,
        "patience": patience,
        "rounds": rounds,
        "seed": seed,
    }
    _check_generator(model, adapter, url, name, key, omit, quantize)
    from deltatune.data import read_rows
    from deltatune.prompting import OpenAICompatible, SelfInstruct, generate_instructions

    settings, rows = SelfInstruct(**fields), read_rows(seeds)  # type: ignore[arg-type]
    endpoint: Endpoint
    if url is None:
        endpoint = _local_model(model, adapter, other_base, form or "plain", batch_size, quantize)
    else:
        sent = tuple(field for field in REQUEST_FIELDS if field not in (omit or ()))
        prompt_form: Any = form or "chat"
        endpoint = OpenAICompatible(
            url, str(name), prompt_form, key, timeout, retries, concurrency=concurrency, request_fields=sent
        )
    progress = GenerationBar()
    try:
        with progress:
            generate_instructions(rows, endpoint, settings, out, progress)
    except KeyboardInterrupt:
        kept = progress.last.kept if progress.last else 0
        raise Interrupted(f"{count(kept)} instructions are in {out}; the same command resumes") from None
    finally:
        if progress.last and progress.last.round and not as_json:
            report(progress.last, out)
    if as_json:
        last = progress.last
        made = {"instructions": last.kept, "rows": last.rows, "rejected": dict(last.rejected)} if last else {}
        print_json({"out": str(out), **made})


def _check_generator(
    model: str | None,
    adapter: str | None,
    url: str | None,
    name: str | None,
    key: str | None,
    omit: Any,
    quantize: str | None,
) -> None:
    """Raise DeltatuneError unless the options name one generator model."""
    problems = []
    if url is None and model is None and adapter is None:
        problems.append("name a model: --model or --adapter for a local one, --url and --name for one on a server")
    if url is not None and (model is not None or adapter is not None):
        problems.append("--url is for a model on a server, --model and --adapter for a local one: give one of the two")
    if url is not None and quantize is not None:
        problems.append(f"--quantize {quantize}: a server's model is stored as it is; leave it out")
    if url is not None and name is None:
        problems.append("--url needs --name, the name of the model on the server")
    if url is None:
        given = {"--name": name, "--key": key, "--omit": omit}
        problems += [f"{option_name} requires --url" for option_name, value in given.items() if value]
    unknown = [field for field in omit or () if field not in REQUEST_FIELDS]
    problems += [f"--omit {field}: the fields of a request are {', '.join(REQUEST_FIELDS)}" for field in unknown]
    raise_all(problems)


def _local_model(
    model: str | None, adapter: str | None, other_base: bool, form: Any, batch_size: int, quantize: str | None
) -> Endpoint:
    """The endpoint for a local model, with or without an adapter."""
    from deltatune.prompting import LocalModel
    from deltatune.training.open_session import open_adapter, open_host

    if adapter is None:
        host, tokenizer = open_host(str(model), "text", quantize=quantize)
        return LocalModel(host, tokenizer, form, batch_size, label=str(model))
    session = open_adapter(adapter, model, other_base, quantize=quantize)
    if session.task.answers != "text":
        raise DeltatuneError(
            f"{adapter} predicts labels and cannot generate text; use an adapter trained with --task generate or lm"
        )
    session.host.use(session.name)
    return LocalModel(session.host, session.tokenizer, form, batch_size, label=f"{session.model} + {adapter}")


class GenerationBar(Bar):
    """Shows each round: a live line in a terminal, else a plain line now and then."""

    def __init__(self) -> None:
        super().__init__("generating")
        self.last: GenerationProgress | None = None
        self.before = 0
        """Instructions that existed at the start."""
        self.started = self.printed = time.perf_counter()

    def __call__(self, progress: GenerationProgress) -> None:
        """Show a round."""
        if self.last is None:
            self.before = progress.kept
            if progress.round:
                self.console.print(f"resuming after round {progress.round} with {count(progress.kept)} instructions")
        self.last = progress
        text, now = self._text(progress), time.perf_counter()
        if self.update(progress.kept, progress.total, text):
            return
        if now - self.printed > PLAIN_SECONDS:
            self.printed = now
            self.console.print(f"{progress.kept}/{progress.total}  {text}")

    def _text(self, progress: GenerationProgress) -> str:
        gained, rejected = progress.kept - self.before, sum(progress.rejected.values())
        elapsed = time.perf_counter() - self.started
        left = f"  {time_left((progress.total - progress.kept) * elapsed / gained)} left" if gained else ""
        return f"round {progress.round}  {count(rejected)} rejected{left}"


def report(progress: GenerationProgress, out: Path) -> None:
    """Print how many texts were kept, and how many rejected by reason."""
    kept = [("instructions kept", count(progress.kept)), ("  their rows", count(progress.rows))]
    rejected = [(f"rejected: {reason}", count(number)) for reason, number in progress.rejected.items()]
    show(table(["what", "number"], [*kept, *rejected], right=["number"]), "")
    if progress.rejected:
        say(f"Rejected: {out.with_name(f'{out.stem}.rejected.jsonl')}")
    if progress.rows:
        say(f"Rows: {out}")
        say(f"Train on them: deltatune train --model MODEL --data {out}", aside=True)
