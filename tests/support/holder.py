"""Another process that has the lock of a folder."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from deltatune.store import folder_lock
if sys.argv[2] == "without":
    folder_lock.fcntl = None
with folder_lock.FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that has the lock, with `flock` or as on a file system without it."""

    def __init__(self, folder: Path, flock: bool = True) -> None:
        command = [sys.executable, "-c", PROGRAM, str(folder), "with" if flock else "without"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"

    def end(self, signal_number: int = 0) -> None:
        """End it, by itself or by a signal."""
        if signal_number:
            self.process.send_signal(signal_number)
        self.process.communicate()
