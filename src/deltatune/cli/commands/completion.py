"""`deltatune completion`: tab completion for bash, zsh and fish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from deltatune.cli import COMPLETE
from deltatune.cli.completion_words import SHELLS
from deltatune.cli.options.shared_options import OUTPUT, Json, option
from deltatune.cli.ui.screen import print_json, print_text, say
from deltatune.core.errors import DeltatuneError, nearest

SCRIPTS = {
    "bash": f"""\
_deltatune() {{
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${{line%%$'\\t'*}}")
    done < <({COMPLETE}=bash "${{COMP_WORDS[0]/#\\~/$HOME}}" "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null)
}}
complete -o default -F _deltatune deltatune
""",
    "zsh": f"""\
#compdef deltatune
_deltatune() {{
    local line
    local -a found
    while IFS= read -r line; do
        if [[ $line == *$'\\t'* ]]; then
            found+=("${{${{line%%$'\\t'*}}//:/\\\\:}}:${{line#*$'\\t'}}")
        else
            found+=("${{line//:/\\\\:}}")
        fi
    done < <({COMPLETE}=zsh "${{words[1]/#\\~/$HOME}}" "${{(@Q)words[2,CURRENT]}}" 2>/dev/null)
    if (( ${{#found}} )); then
        _describe -V deltatune found
    else
        _files
    fi
}}
if ! (( $+functions[compdef] )); then
    autoload -Uz compinit && compinit
fi
compdef _deltatune deltatune
""",
    "fish": f"""\
function __deltatune_complete
    set -l typed (commandline -opc)
    set -l found (env {COMPLETE}=fish $typed[1] $typed[2..-1] (commandline -ct) 2>/dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c deltatune -f -a '(__deltatune_complete)'
""",
}
"""What each shell reads. The first word is the program as the user typed it, of whichever environment."""


def completion(
    shell: Annotated[
        str | None,
        typer.Argument(metavar="SHELL", help=f"{', '.join(SHELLS)}. Default: the login shell.", show_default=False),
    ] = None,
    install: Annotated[
        bool, option("--install", panel=OUTPUT, help="Write the script where the shell reads it, for new terminals.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Complete commands, options and their values with the tab key: methods, metrics, tasks, adapters of a store.

    Without --install the script is printed.

      deltatune completion --install
      deltatune completion zsh --install
      source <(deltatune completion bash)
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        if shell is None:
            said = f"the login shell is {name!r}" if name else "the variable SHELL names no shell"
            raise DeltatuneError(f"{said}; name one of {', '.join(SHELLS)}: deltatune completion bash --install")
        raise DeltatuneError(f"no script for the shell {name!r}{nearest(name, SHELLS)}; shells: {', '.join(SHELLS)}")
    if not install:
        print_json({"shell": name, "script": SCRIPTS[name]}) if as_json else print_text(SCRIPTS[name])
        return
    files = installed(name)
    if as_json:
        print_json({"shell": name, "files": [str(file) for file in files]})
        return
    for file in files:
        say(f"written: {file}")
    say("New terminals complete; this one after: exec " + name, aside=True)


def installed(shell: str) -> list[Path]:
    """Write a shell's script, and for bash and zsh the line that reads it; the files that were written or changed."""
    from deltatune.store.atomic_files import write_file

    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "deltatune"
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    script = config / "fish/completions/deltatune.fish" if shell == "fish" else data / f"completion.{shell}"
    script.parent.mkdir(parents=True, exist_ok=True)
    write_file(script, SCRIPTS[shell])
    if shell == "fish":
        return [script]
    start = Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc" if shell == "zsh" else Path.home() / ".bashrc"
    line = f"[ -f '{script}' ] && . '{script}'  # deltatune completion"
    before = start.read_text(encoding="utf-8") if start.exists() else ""
    if line in before.splitlines():
        return [script]
    with start.open("a", encoding="utf-8") as file:
        file.write(f"{'' if before.endswith(chr(10)) or not before else chr(10)}{line}\n")
    return [script, start]
