"""The command-line application: its commands, and their common options for help, version and debugging."""

from __future__ import annotations

import io
import os
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from deltatune.cli.commands import (
    combine,
    compare,
    completion,
    continual,
    count,
    data,
    dimension,
    draw,
    env,
    evaluate,
    export,
    facts,
    fit,
    inspect,
    keys,
    latency,
    merge,
    methods,
    predict,
    pretrain,
    quantize,
    results,
    self_instruct,
    serve,
    sites,
    store,
    train,
    watch,
)
from deltatune.cli.commands import run as run_recipe
from deltatune.cli.ui.error_screen import run_guarded
from deltatune.cli.ui.help_screen import Command, Group
from deltatune.core.errors import DeltatuneError

app = typer.Typer(
    name="deltatune",
    cls=Group,
    help="Adapt a frozen pretrained transformer by training few parameters, and find out which method is best.",
    epilog="Start with: deltatune compare",
    no_args_is_help=False,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command, rich_help_panel="Train")(compare.compare)
app.command(cls=Command, rich_help_panel="Train")(train.train)
app.command(cls=Command, rich_help_panel="Train")(run_recipe.run)
app.command(cls=Command, rich_help_panel="Train")(pretrain.pretrain)
app.command(cls=Command, rich_help_panel="Train")(continual.continual)
app.command(cls=Command, rich_help_panel="Train")(dimension.dimension)
app.command(cls=Command, rich_help_panel="Train")(self_instruct.self_instruct)
app.command(cls=Command, rich_help_panel="Train")(watch.watch)
app.command(cls=Command, rich_help_panel="Train")(results.results)
app.command(cls=Command, rich_help_panel="Use")(evaluate.evaluate)
app.command(cls=Command, rich_help_panel="Use")(predict.predict)
app.command(cls=Command, rich_help_panel="Use")(draw.draw)
app.command(cls=Command, rich_help_panel="Use")(serve.serve)
app.command(cls=Command, rich_help_panel="Use")(facts.facts)
app.command(cls=Command, rich_help_panel="Use")(combine.combine)
app.command(cls=Command, rich_help_panel="Use")(merge.merge)
app.command(cls=Command, rich_help_panel="Use")(export.export)
app.command(cls=Command, rich_help_panel="Use")(quantize.quantize)
app.command(cls=Command, rich_help_panel="Use")(inspect.inspect)
app.add_typer(keys.group, name="keys", rich_help_panel="Use")
app.add_typer(store.group, name="store", rich_help_panel="Use")
app.add_typer(data.group, name="data", rich_help_panel="Look up")
app.command(cls=Command, rich_help_panel="Look up")(methods.methods)
app.command(cls=Command, rich_help_panel="Look up")(sites.sites)
app.command(cls=Command, rich_help_panel="Look up")(count.count)
app.command(cls=Command, rich_help_panel="Look up")(fit.fit)
app.command(cls=Command, rich_help_panel="Look up")(latency.latency)
app.command(cls=Command, rich_help_panel="Look up")(env.env)
app.command(cls=Command, rich_help_panel="Look up")(completion.completion)


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and warnings; DELTATUNE_DEBUG=1 does too.")
    ] = False,
) -> None:
    """Options before a command."""
    if version:
        print(f"deltatune {metadata.version('deltatune')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif context.invoked_subcommand != "train" and (os.environ.get("WORLD_SIZE") or "1") != "1":
        raise DeltatuneError(
            f"`deltatune {context.invoked_subcommand}` runs in one process; torchrun and accelerate can only start "
            "`deltatune train`"
        )


def run(argv: list[str]) -> int:
    """Run a command line and return the exit code."""
    debug = "--debug" in argv or os.environ.get("DELTATUNE_DEBUG", "") not in ("", "0")
    argv = [word for word in argv if word != "--debug"]  # it may be anywhere
    command = typer.main.get_command(app)
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows and dashes shows ? instead
    options = argv[: argv.index("--")] if "--" in argv else argv
    return run_guarded(lambda: _run(command, argv), debug, "--json" in options)


def _run(command: Any, argv: list[str]) -> Any:
    result = command.main(args=argv, prog_name="deltatune", standalone_mode=False)
    sys.stdout.flush()  # a full disk or a closed pipe shows here
    return result


def _open_standard_streams() -> None:
    """Open the null device for output streams that are closed, so that no file that is written gets their numbers."""
    if sys.stdout is not None and sys.stderr is not None:
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
