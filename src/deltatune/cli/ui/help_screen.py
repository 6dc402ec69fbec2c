"""Help screens: usage, description, options in groups, as plain text of at most 100 columns.

Help texts and defaults come from the source of dataclasses, so that help does not import torch. Typer's own renderers
draw boxes, or list all options in one group.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from deltatune.cli.ui.error_screen import CLOSED_PIPE, silence_stdout
from deltatune.cli.ui.output_mode import QUIET_HELP, output_mode

OUTPUT = "Output"
"""Group of the options that every command has."""
RENAMED_OPTIONS = {
    "latency": {"--batch": "--batch-size", "--length": "--max-length"},
    "dimension": {"--max": "--largest"},
}
"""Earlier names of options that scripts may still have, by command."""
MAX_WIDTH = 100
MAX_NAME_WIDTH = 28
"""Columns for the names of options; the text of a longer name starts on the next line."""
Entries = list[tuple[str, str]]
"""Pairs of a name and its help text."""


class Command(typer.core.TyperCommand):
    """A command with this help screen and --quiet; with --json, which its function declares, stdout is JSON alone."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_quiet_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words after the command; options by an earlier name are those of today, with a note."""
        renamed = RENAMED_OPTIONS.get(self.name or "", {})
        for place, word in enumerate(args):
            if word == "--":
                break
            name, sign, value = word.partition("=")
            if name in renamed:
                args[place] = f"{renamed[name]}{sign}{value}"
                if not {"-q", "--quiet"} & set(args):
                    print(f"note: {name} is now {renamed[name]}", file=sys.stderr)
        self._refuse_repeated(ctx, args)
        return super().parse_args(ctx, args)

    def _refuse_repeated(self, ctx: Any, args: list[str]) -> None:
        """Fail for an option of one value that is given twice, of which the parser would take the last."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in dict.fromkeys(given):
            many = parameter.param_type_name != "option" or parameter.multiple or getattr(parameter, "is_flag", False)
            if not many and given.count(parameter) > 1:
                ctx.fail(f"{max(parameter.opts, key=len)} is given {given.count(parameter)} times but takes one value.")

    def invoke(self, ctx: Any) -> Any:
        """Run the command with the standard streams that its options leave it."""
        quiet = bool(ctx.params.pop("quiet", False))
        try:
            with output_mode(bool(ctx.params.get("as_json")), quiet):
                return super().invoke(ctx)
        except BrokenPipeError:  # typer would leave with 1, as where something failed
            silence_stdout()
            raise typer.Exit(CLOSED_PIPE) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help screen."""
        formatter.write(help_text(self, ctx, _arguments(self), _options(self, ctx)))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Parts of the usage line: NAME, NAME... for several, [NAME] where it may be left out; no hidden arguments."""
        shown = [p for p in self.params if p.param_type_name == "argument" and not getattr(p, "hidden", False)]
        names = [str(p.metavar).removesuffix("...") + "..." * (p.nargs == -1) for p in shown]
        pieces = [name if p.required else f"[{name}]" for name, p in zip(names, shown, strict=True)]
        return [str(self.options_metavar), *pieces]


@cache
def _quiet_option() -> Any:
    """The parameter of --quiet, as typer makes it from a function."""

    def silent(
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET_HELP, rich_help_panel=OUTPUT)] = False,
    ) -> None: ...

    program = typer.Typer(add_completion=False)
    program.command()(silent)
    return typer.main.get_command(program).params[0]


class Group(typer.core.TyperGroup):
    """The program: its commands in groups, then its options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help screen."""
        groups: dict[str, Entries] = {}
        for name, command in self.commands.items():
            text = inspect.cleandoc(command.help or "").partition("\n\n")[0]
            groups.setdefault(str(getattr(command, "rich_help_panel", None) or "Commands"), []).append((name, text))
        formatter.write(help_text(self, ctx, groups, _options(self, ctx)))


def help_text(command: Any, ctx: Any, *parts: dict[str, Entries]) -> str:
    """Return the help screen as text."""
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    pieces = " ".join(command.collect_usage_pieces(ctx))
    blocks = [f"Usage: {ctx.command_path} {pieces}", _fill(command.help or "", width)]
    for part in parts:
        blocks += [f"{title}:\n{_entries(entries, width)}" for title, entries in part.items() if entries]
    if command.epilog:
        blocks.append(_fill(command.epilog, width))
    return "\n\n".join(blocks) + "\n"


def _fill(text: str, width: int) -> str:
    """Wrap paragraphs to the width; examples, which are indented, keep their lines."""
    return "\n\n".join(_paragraph(text, width) for text in inspect.cleandoc(text).split("\n\n"))


def _paragraph(text: str, width: int) -> str:
    if text.startswith("deltatune "):  # what follows a first line loses its indent where no other line has less
        return textwrap.indent(text, "  ")
    return text if text.startswith(" ") else textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)


def _entries(entries: Entries, width: int) -> str:
    """Format names on the left, texts on the right."""
    column = min(MAX_NAME_WIDTH, max(len(name) for name, _ in entries) + 4)
    return "\n".join(_entry(name, text, column, width) for name, text in entries)


def _entry(name: str, text: str, column: int, width: int) -> str:
    lines = textwrap.wrap(text, max(20, width - column), break_on_hyphens=False) or [""]
    head = "  " + name
    first = [head.ljust(column) + lines[0]] if len(head) + 2 <= column else [head, " " * column + lines[0]]
    return "\n".join(line.rstrip() for line in [*first, *(" " * column + line for line in lines[1:])])


def _arguments(command: Any) -> dict[str, Entries]:
    arguments = [p for p in command.params if p.param_type_name == "argument" and p.help and not p.hidden]
    return {"Arguments": [(p.metavar, _text(p)) for p in arguments]}


def _options(command: Any, ctx: Any) -> dict[str, Entries]:
    """Options by group, in the order of the command's parameters; options without a group come last."""
    shown = [p for p in command.get_params(ctx) if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    titles = list(dict.fromkeys(getattr(p, "rich_help_panel", None) for p in shown))
    named = [title for title in titles if title]
    groups: dict[str, Entries] = {title: [] for title in [*named, "Other" if named else "Options"]}
    for parameter in shown:
        title = getattr(parameter, "rich_help_panel", None) or ("Other" if named else "Options")
        groups[title].append((_names(parameter), _text(parameter)))
    return groups


def _names(parameter: Any) -> str:
    """`-m, --model MODEL`, `--dense/--no-dense`, with long names aligned."""
    short = [name for name in parameter.opts if not name.startswith("--")]
    long = [name for name in parameter.opts if name.startswith("--")]
    names = ", ".join(short + long)
    names = names if short else "    " + names
    if parameter.secondary_opts:
        names += "/" + "/".join(parameter.secondary_opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'VALUE'}"


def _text(parameter: Any) -> str:
    """The help text with the default, or [required]."""
    text = parameter.help or ""
    if parameter.required:
        return f"{text} [required]"
    default = parameter.default
    if isinstance(default, bool) or not isinstance(default, (str, int, float)) or default == "":
        return text
    return f"{text} [default: {default if isinstance(default, str) else format(default, 'g')}]"


ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Field:
    """Docstring and default of a dataclass field."""

    help: str
    """The docstring, without the final full stop."""
    default: Any
    """The default if it is a literal, else None."""
    choices: tuple[str, ...] = ()
    """The values of a field annotated with Literal."""


@cache
def fields_of(file: str, name: str) -> dict[str, Field]:
    """Read the fields of a dataclass from a file of this package, such as `training/settings.py`."""
    return fields_in((ROOT / file).read_text(encoding="utf-8"), name)


def fields_in(source: str, name: str) -> dict[str, Field]:
    """Read the fields of a dataclass from source code; class variables are not fields."""
    body = next(
        (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name), []
    )
    fields = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _class_variable(node):
            fields[node.target.id] = Field(_docstring(after), _literal(node.value), _choices(node.annotation))
    return fields


def _class_variable(node: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(node.annotation)


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split()).removesuffix(".")
    return ""


def _choices(annotation: ast.expr) -> tuple[str, ...]:
    match annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            choices = _literal(values)
            return choices if isinstance(choices, tuple) else (choices,)
    return ()


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def constant(file: str, name: str) -> Any:
    """Read a literal constant from the top level of a file."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _literal(node.value)
    return None


def parameter(file: str, function: str, name: str) -> Any:
    """Read the literal default of a keyword parameter of a function."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return next((_literal(value) for argument, value in defaults if argument.arg == name), None)
    return None
