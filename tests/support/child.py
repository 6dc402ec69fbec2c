"""Running a part of a test in a child of the test's process, which may limit itself or become another user."""

import os
from collections.abc import Callable


def in_child(act: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """The exit code and the text that `act` returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code, said = act()
            os.write(writer, said.encode()[-4000:])
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
