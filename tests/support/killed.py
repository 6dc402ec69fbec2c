"""Runs of the command line that are killed: `python killed.py PLAN`, which `killed` starts.

The libraries are imported once; every run is a fork of this process, which never computes anything itself. A run dies
by SIGKILL, either when a clock says so or right before the n-th time it touches a file.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

from deltatune.cli import main
from deltatune.training import job  # noqa: F401

TOUCHES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}
NEVER = -1


def run(command: list[str], out: Path, touches: int = 0, seconds: float = 0.0) -> tuple[int, float]:
    """Exit code of one run and the seconds from its first change of a file on; -9 where it was killed.

    That is before it touches files for the n-th time, or some seconds after the first time.
    """
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(out.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            torch.set_num_threads(1)
            count_touches(out, touches, begun)
            code = main([*command, "--out", str(out)])
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(begun)
    os.read(ready, 1)
    os.close(ready)
    started = time.perf_counter()
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, time.perf_counter() - started


def count_touches(out: Path, last: int, begun: int) -> None:
    """Die before the `last`-th change of files; with 0 write down in `out`.touches how many there were."""
    seen = 0
    counter = os.open(f"{out}.touches", os.O_WRONLY | os.O_CREAT) if not last else -1

    def hear(event: str, args: tuple) -> None:
        nonlocal seen
        if event not in TOUCHES and not (event == "open" and str(args[0]).startswith(f"{out}{os.sep}")):
            return
        seen += 1
        if seen == 1:
            os.write(begun, b".")
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if counter >= 0:
            os.pwrite(counter, str(seen).encode(), 0)

    sys.addaudithook(hear)


def ended(command: list[str], out: Path) -> float:
    """Run to the end; the seconds it took."""
    code, seconds = run(command, out, touches=NEVER)
    if code:
        raise SystemExit(f"{out.name}: a run that nobody killed ended with {code}")
    return seconds


def by_touches(command: list[str], folder: Path, number: int, seed: int) -> int:
    """Kill a run at each of a number of its touches (0: at every one), then run it to the end; how many there were."""
    total = int((folder / "whole.touches").read_text())
    places = random.Random(seed).sample(range(1, total + 1), min(number or total, total))
    for place in places:
        out = folder / f"touch-{place}"
        code, _ = run(command, out, touches=place)
        if code != -signal.SIGKILL:
            raise SystemExit(f"{out.name}: not killed, but ended with {code}")
        ended(command, out)
    return len(places)


def by_clock(command: list[str], folder: Path, number: int, seed: int) -> int:
    """Kill one run a number of times at random, then let it end; how often it was killed before it had ended."""
    draw = random.Random(seed)
    seconds = ended(command, folder / "clock-0")
    codes = [run(command, folder / "clock", NEVER, draw.uniform(0.01, 0.6 * seconds))[0] for _ in range(number)]
    ended(command, folder / "clock")
    return codes.count(-signal.SIGKILL)


def carry_out(command: list[str], folder: str, touches: int, seed: int, clock: int = 0) -> dict[str, int]:
    """An uninterrupted run in `whole`, and beside it the killed ones; without `clock` none is killed by the time."""
    place = Path(folder)
    code, _ = run(command, place / "whole")
    if code:
        raise SystemExit(f"the uninterrupted run ended with {code}")
    said = {"touches": by_touches(command, place, touches, seed)}
    return said | ({"clock": by_clock(command, place, clock, seed)} if clock else {})


def killed(command: list[str], folder: Path, **plan: int) -> dict[str, int]:
    """Let killed.py carry a plan out; what it says."""
    whole = {"command": command, "folder": str(folder), "seed": 0, **plan}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(whole)],
        env=os.environ | quiet, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    log = folder / "log"
    assert done.returncode == 0, done.stderr[-3000:] + (log.read_text()[-3000:] if log.is_file() else "")
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(carry_out(**json.loads(sys.argv[1]))))
