"""`deltatune keys`: the API keys of `deltatune serve --keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltatune.cli.options.shared_options import Json, option
from deltatune.cli.ui.help_screen import Command, Group, fields_of
from deltatune.cli.ui.screen import console, print_json, say, show, table

LIMITS = "Limits"
FIELDS = fields_of("serving/server/guard/api_keys.py", "ApiKey")

group = typer.Typer(cls=Group, help="Make, list and remove the keys of a server.", invoke_without_command=True)
"""The commands of `deltatune keys`."""

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of keys, as `deltatune serve --keys` reads it.")]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="What logs and lists call the key.")]


@group.callback()
def start(context: typer.Context) -> None:
    """Print the help where no command is named."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@group.command(cls=Command)
def add(
    file: File,
    name: KeyName,
    requests_per_minute: Annotated[
        int | None,
        option("--requests-per-minute", panel=LIMITS, metavar="NUMBER", help="Requests in any 60 seconds."),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        option("--tokens-per-minute", panel=LIMITS, metavar="NUMBER", help="Tokens in any 60 seconds."),
    ] = None,
    requests_at_once: Annotated[
        int | None,
        option("--requests-at-once", panel=LIMITS, metavar="NUMBER", help="Requests that run at the same time."),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        option(
            "--adapters",
            panel=LIMITS,
            metavar="PATTERN",
            help="Adapters that it may use, such as german or 'legal-*'; several times for several. The bare model is "
            "called base. Default: all.",
        ),
    ] = None,
    admin: Annotated[bool, option("--admin", panel=LIMITS, help=FIELDS["admin"].help)] = False,
    metrics: Annotated[bool, option("--metrics", panel=LIMITS, help=FIELDS["metrics"].help)] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: the file has its SHA-256 alone.

    The file is made where there is none. A running server knows the key at once.

      deltatune keys add keys.json anna
      deltatune keys add keys.json ben --requests-per-minute 60 --adapters german --adapters 'legal-*'
      deltatune keys add keys.json operator --admin
    """
    from deltatune.serving.server.guard.api_keys import ApiKey, add_key

    key = ApiKey(
        name=name,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        requests_at_once=requests_at_once,
        adapters=tuple(adapters or ["*"]),
        admin=admin,
        metrics=metrics,
    )
    secret = add_key(file, key)
    if as_json:
        print_json({"name": name, "key": secret})
    else:
        say(secret)
    console(stderr=True).print(f"This is the key of {name}. It is stored nowhere: keep it.", markup=False)


@group.command("list", cls=Command)
def list_(file: File, as_json: Json = False) -> None:
    """List the keys of a file and what each may.

    The keys themselves are stored nowhere.

      deltatune keys list keys.json
    """
    from deltatune.serving.server.guard.api_keys import read_keys

    keys = read_keys(file)
    limits = ["requests_per_minute", "tokens_per_minute", "requests_at_once"]
    if as_json:
        shown = ["name", *limits, "adapters", "admin", "metrics"]
        print_json([{field: getattr(key, field) for field in shown} for key in keys])
        return
    rows = []
    for key in keys:
        numbers = [f"{limit:,}" if (limit := getattr(key, field)) is not None else "–" for field in limits]
        rights = "admin" if key.admin else "metrics" if key.metrics else "–"
        rows.append([key.name, *numbers, " ".join(key.adapters), rights])
    heads = ["name", "requests a minute", "tokens a minute", "at once", "adapters", "rights"]
    show(table(heads, rows, right=heads[1:4]) if rows else "no keys")


@group.command(cls=Command)
def remove(file: File, name: KeyName, as_json: Json = False) -> None:
    """Take a key out of a file.

    A running server refuses it from then on.

      deltatune keys remove keys.json anna
    """
    from deltatune.serving.server.guard.api_keys import remove_key

    remove_key(file, name)
    if as_json:
        print_json({"removed": name})
        return
    say(f"removed {name}")
