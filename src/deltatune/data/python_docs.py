"""The built-in data: the documentation of the running Python, which needs no download and no licence.

A row is the first paragraph of the docstring of one public function, class or method of the standard library. Its label
is the area of its module. Rows differ a little between versions and platforms: compare scores within one.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

AREAS: dict[str, str] = {
    "files and processes": """
        argparse cmd fcntl filecmp fileinput fnmatch getopt getpass glob grp io mmap optparse os pathlib platform
        posixpath pty pwd resource shutil signal stat subprocess syslog tempfile termios tty
    """,
    "networking": """
        ftplib http imaplib ipaddress poplib select selectors smtplib socket socketserver ssl urllib webbrowser wsgiref
        xmlrpc
    """,
    "concurrency": "_thread asyncio concurrent contextvars multiprocessing queue sched threading",
    "mathematics": """
        builtins.bool builtins.complex builtins.float builtins.int cmath decimal fractions math numbers random secrets
        statistics
    """,
    "text": """
        builtins.bytearray builtins.bytes builtins.str codecs difflib encodings gettext locale re shlex string
        stringprep textwrap unicodedata
    """,
    "data formats": """
        base64 binascii bz2 configparser csv dbm email gzip html json lzma mailbox marshal mimetypes netrc pickle
        pickletools plistlib quopri shelve sqlite3 struct tarfile tomllib wave xml zipfile zlib
    """,
    "dates and times": "calendar datetime time zoneinfo",
    "data structures": """
        array bisect builtins.dict builtins.frozenset builtins.list builtins.memoryview builtins.range builtins.set
        builtins.slice builtins.tuple collections copy dataclasses enum graphlib heapq itertools pprint reprlib weakref
    """,
    "testing and debugging": """
        bdb cProfile doctest faulthandler logging pdb profile pstats timeit trace traceback tracemalloc unittest
        warnings
    """,
    "language tools": """
        abc ast atexit code codeop compileall contextlib copyreg ctypes dis functools gc importlib inspect keyword
        modulefinder opcode operator pkgutil py_compile pyclbr pydoc runpy symtable sys sysconfig tabnanny token
        tokenize types typing venv zipapp zipimport
    """,
}
"""Area -> modules of the standard library, their submodules included. Other modules are left out."""

DEFINED_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "os": ("posix", "nt"),
    "posixpath": ("genericpath",),
    "collections": ("_collections_abc",),
    "importlib": ("_frozen_importlib", "_frozen_importlib_external"),
}
"""Module -> other modules that define its public names, where their names do not show it."""

MIN_LENGTH, MAX_LENGTH = 20, 400
"""Characters of a row."""
SHARES = (0.7, 0.1, 0.2)
"""Of train, validation and test. The test split is large, to tell methods apart."""

SIGNATURE = re.compile(r"^[\w.]+\s*\([^\n]*?\)(?:\s*(?:->|--|=>)\s*(?P<result>.*)|\s*:?)$")


@cache
def rows() -> tuple[dict[str, str], ...]:
    """Every distinct row, `{"text", "label", "name"}`, sorted by name.

    Collected in a fresh interpreter without site-packages: libraries patch the standard library when they are imported
    (transformers gives `logging.Logger` new methods), and importing all of it has side effects.
    """
    command = [sys.executable, "-I", "-S", "-W", "ignore", __file__]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def collect() -> list[dict[str, str]]:
    """The rows of this interpreter; imports the modules in `AREAS`."""
    areas = {prefix: area for area, names in AREAS.items() for prefix in names.split()}
    row_of: dict[str, dict[str, str]] = {}
    conflicts: set[str] = set()
    for name, thing in sorted(
        _documented(sorted({prefix.split(".")[0] for prefix in areas})), key=lambda pair: pair[0]
    ):
        text = paragraph(getattr(thing, "__doc__", None))
        area = _area(name, areas)
        if area is None or len(text) < MIN_LENGTH:
            continue
        if row_of.setdefault(text, {"text": text, "label": area, "name": name})["label"] != area:
            conflicts.add(text)
    rows_of_one_area = [row for text, row in row_of.items() if text not in conflicts]
    return sorted(rows_of_one_area, key=lambda row: row["name"])


def paragraph(doc: object) -> str:
    """The first paragraph of a docstring, on one line, without the call signatures before it; "" if there is none."""
    if not isinstance(doc, str):
        return ""
    lines = [line.strip() for line in inspect.cleandoc(doc).split("\n")]
    result = ""
    while lines and (not lines[0] or SIGNATURE.match(lines[0])):
        match = SIGNATURE.match(lines.pop(0))
        result = match["result"] or "" if match else result
        if (
            result and lines and lines[0][:1].islower() and not SIGNATURE.match(lines[0])
        ):  # "D.pop(k) -> v, remove the key and" continues in the next line
            lines.insert(0, result)
            break
    text = " ".join(("\n".join(lines).split("\n\n")[0] or result).split())
    return "" if text.startswith(">>>") else _shorten(text)


def _shorten(text: str) -> str:
    """At most MAX_LENGTH characters, cut after a sentence if there is one in the second half, else after a word."""
    if len(text) <= MAX_LENGTH:
        return text
    head = text[: MAX_LENGTH + 1]
    end = head.rfind(". ")
    return head[: end + 1] if end >= MAX_LENGTH // 2 else head.rsplit(" ", 1)[0][:MAX_LENGTH]


def _area(name: str, areas: dict[str, str]) -> str | None:
    """The area of a dotted name: that of its module, or of its class in `builtins`."""
    root, _, rest = name.partition(".")
    return areas.get(root) or areas.get(f"{root}.{rest.split('.')[0]}")


def _documented(roots: list[str]) -> Iterator[tuple[str, Any]]:
    """(qualified name, object) of every public function, class and method that the modules define themselves."""
    for module in _modules(roots):
        public = set(getattr(module, "__all__", vars(module)))
        for name, thing in sorted(vars(module).items()):
            if name not in public or name.startswith("_") or not _defines(module, thing):
                continue
            qualified = f"{module.__name__}.{name}"
            yield qualified, thing
            if inspect.isclass(thing):
                for member, value in sorted(vars(thing).items()):
                    inner = getattr(value, "__func__", value)  # inside a classmethod or staticmethod
                    if not member.startswith("_") and (inspect.isroutine(inner) or inspect.isclass(inner)):
                        yield f"{qualified}.{member}", inner


def _defines(module: ModuleType, thing: object) -> bool:
    """Whether a function or class is defined in the family of this module, not imported from another one."""
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        return False
    owner = getattr(thing, "__module__", None) or getattr(getattr(thing, "__self__", None), "__name__", "")
    family, home = module.__name__.split(".")[0], str(owner).split(".")[0]
    return home.lstrip("_") == family.lstrip("_") or home in DEFINED_ELSEWHERE.get(family, ())


def _modules(roots: list[str]) -> Iterator[ModuleType]:
    """The modules and their public submodules that this Python and this platform have, in a fixed order."""
    for root in roots:
        module = _module(root)
        if module is None:
            continue
        yield module
        if root != "encodings":  # a hundred code tables without a word of documentation
            below = sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", ())))
            yield from _modules([f"{root}.{name}" for name in below if not name.startswith("_")])


def _module(name: str) -> ModuleType | None:
    """The module, or None where this platform or version has no such thing."""
    try:
        return importlib.import_module(name)
    except Exception:  # ImportError mostly; a platform module may fail with OSError, AttributeError, ... at import
        return None


if __name__ == "__main__":
    print(json.dumps(collect()))
