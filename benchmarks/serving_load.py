"""Many clients with different adapters on `deltatune serve`, every answer compared with the one given offline.

    python -m benchmarks.serving_load --minutes 5 --clients 64

Windows take turns: texts by adapters, the same texts by the bare base, and everything (texts, classes, tags) by
adapters of 16 methods, with fewer of them in memory than there are. Answers are computed before, one by one, by
`host.generate` and `predict`. A wrong answer is a failure, unless two logits of it are nearer than rounding.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.measure import append
from benchmarks.serve_command import ServeCommand, serve_command
from benchmarks.served_questions import Question, on_base, open_base, questions, write_adapters, write_base
from deltatune.store.adapter_store import AdapterStore

CLOSE = 1e-4
"""Difference of two scores that counts as none: rows of a pass are added up in another order than alone."""
CASES = ("adapters, texts", "bare base, texts", "adapters, everything")


@dataclass
class Case:
    """What came of the windows of one case."""

    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    ties: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    """Seconds until the first token of a stream."""
    whole: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Counts, rates and percentiles."""
        return {
            "requests": self.requests,
            "wrong": len(self.wrong),
            "ties": self.ties,
            "failed": self.failed,
            "tokens": self.tokens,
            "tokens a second": self.tokens / max(self.seconds, 1e-9),
            "requests a second": self.requests / max(self.seconds, 1e-9),
            "first token": percentiles(self.first),
            "whole": percentiles(self.whole),
        }


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="serving-load-") as place:
        folder = Path(place)
        base = write_base(folder / "base", arguments.base)
        host = open_base(base)
        begun = time.perf_counter()
        tasks = write_adapters(folder / "new", host, arguments.adapters, str(base))
        asked = questions(host, tasks, arguments.rounds)
        bare = on_base(host, asked)
        print(f"{len(asked) + len(bare)} answers computed offline in {time.perf_counter() - begun:.0f} s", flush=True)
        del host
        store = AdapterStore(folder / "store")
        store.add_all(folder / "new")
        store.close()
        options = ["--model", str(base), "--store", str(folder / "store"), "--precision", "float32"]
        options += ["--adapters-in-memory", str(arguments.in_memory)]
        with serve_command(folder, options, arguments.threads) as server:
            figures = asyncio.run(load(server, asked, bare, arguments))
    report(figures, arguments)
    good = not any(case["wrong"] or case["failed"] for case in figures["cases"].values())
    sys.exit(0 if good else 1)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_load", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="default 5")
    parser.add_argument("--window", type=float, default=10.0, help="seconds of a case before the next one; default 10")
    parser.add_argument("--base", choices=("llama", "gpt2"), default="llama")
    counts = {"clients": 64, "adapters": 64, "in_memory": 56, "rounds": 2, "threads": 2}
    for name, value in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--json", default="", help="append the figures to this file, one JSON object a line")
    return parser.parse_args()


async def load(
    server: ServeCommand, asked: Sequence[Question], bare: Sequence[Question], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Send requests for as long as was asked for."""
    cases = {name: Case() for name in CASES}
    of_case = dict(zip(CASES, ([q for q in asked if q.writes], bare, asked), strict=True))
    limits = httpx.Limits(max_connections=arguments.clients, max_keepalive_connections=arguments.clients)
    async with httpx.AsyncClient(base_url=server.address, timeout=300, limits=limits, trust_env=False) as http:
        await window(http, Case(), asked, arguments, 0, min(arguments.window, 5.0))  # warms up
        memory = [(0.0, server.memory())]
        begun = time.perf_counter()
        turn = 0
        while time.perf_counter() - begun < 60 * arguments.minutes:
            name = CASES[turn % len(CASES)]
            await window(http, cases[name], of_case[name], arguments, turn, arguments.window)
            turn += 1
            memory.append((time.perf_counter() - begun, server.memory()))
        numbers = await asyncio.to_thread(server.metrics)
    return {
        "cases": {name: case.figures() for name, case in cases.items()},
        "examples": [each for case in cases.values() for each in case.wrong[:3]],
        "memory": [{"seconds": round(at), "bytes": size} for at, size in memory],
        "engine": numbers,
    }


async def window(
    http: httpx.AsyncClient,
    case: Case,
    asked: Sequence[Question],
    arguments: argparse.Namespace,
    turn: int,
    seconds: float,
) -> None:
    """All clients ask, one request after another each, until the time is over and the last answer has come."""
    begun = time.perf_counter()
    draws = [random.Random(f"{turn} {place}") for place in range(arguments.clients)]
    await asyncio.gather(*(client(http, case, asked, draw, begun + seconds) for draw in draws))
    case.seconds += time.perf_counter() - begun


async def client(
    http: httpx.AsyncClient, case: Case, asked: Sequence[Question], draw: random.Random, until: float
) -> None:
    while time.perf_counter() < until:
        question = draw.choice(asked)
        begun = time.perf_counter()
        try:
            if question.writes and draw.random() < 0.5:
                answer, first = await streamed(http, question)
                case.first.append(first - begun)
            else:
                answer = await whole(http, question)
        except (httpx.HTTPError, AnswerError) as error:
            kind = str(error) if isinstance(error, AnswerError) else type(error).__name__
            case.failed[kind] = case.failed.get(kind, 0) + 1
            continue
        case.whole.append(time.perf_counter() - begun)
        case.requests += 1
        case.tokens += question.tokens
        if not same(answer, question.answer):
            case.ties += question.is_tie
            if not question.is_tie:
                case.wrong.append({
                    "body": question.body, "answer": answer, "offline": question.answer, "margin": question.margin
                })  # fmt: skip


class AnswerError(Exception):
    """An answer that is an error."""


async def whole(http: httpx.AsyncClient, question: Question) -> Any:
    """The answer in one piece: a text, or a list of answers to rows."""
    response = await http.post(question.path, json=question.body)
    if response.status_code != 200:
        raise AnswerError(f"{response.status_code} {response.text[:200]}")
    content = response.json()
    return content["choices"][0]["text"] if question.writes else content["data"]


async def streamed(http: httpx.AsyncClient, question: Question) -> tuple[str, float]:
    """The answer of a stream, and when its first token came."""
    text, first = "", 0.0
    async with http.stream("POST", question.path, json=question.body | {"stream": True}) as response:
        if response.status_code != 200:
            raise AnswerError(f"{response.status_code} {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            first = first or time.perf_counter()
            if line.startswith("data: {"):
                content = json.loads(line.removeprefix("data: "))
                if "error" in content:
                    raise AnswerError(str(content["error"]))
                text += "".join(choice["text"] for choice in content["choices"])
    return text, first


def same(answer: Any, offline: Any) -> bool:
    """Whether all that the offline answer says is said, numbers within rounding."""
    if isinstance(offline, dict):
        return isinstance(answer, dict) and all(key in answer and same(answer[key], offline[key]) for key in offline)
    if isinstance(offline, (list, tuple)):
        return len(answer) == len(offline) and all(map(same, answer, offline))
    return abs(answer - offline) <= CLOSE if isinstance(offline, float) else bool(answer == offline)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of 50, 95 and 99 %."""
    ordered = sorted(seconds)
    return {f"p{share}": ordered[int(share / 100 * (len(ordered) - 1))] for share in (50, 95, 99)} if ordered else {}


def report(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the figures; append one JSON line with everything."""
    print(
        f"\nserving_load, {arguments.clients} clients, {arguments.adapters} adapters, {arguments.base}\n{'':24}", end=""
    )
    print(
        f"{'requests':>9}{'wrong':>6}{'ties':>5}{'failed':>7}{'tok/s':>7}{'first ms 50, 95, 99 %':>24}{'whole ms':>22}"
    )
    for name, case in figures["cases"].items():
        times = [" ".join(f"{1e3 * value:6.0f}" for value in case[key].values()) for key in ("first token", "whole")]
        failed = sum(case["failed"].values())
        print(f"{name:24}{case['requests']:9}{case['wrong']:6}{case['ties']:5}{failed:7}", end="")
        print(f"{case['tokens a second']:7.0f}{times[0]:>24}{times[1]:>22}")
        for kind, count in case["failed"].items():
            print(f"    {count} x {kind}")
    for example in figures["examples"]:
        print(f"wrong: {json.dumps(example)}")
    sizes = [entry["bytes"] / 1e6 for entry in figures["memory"]]
    print(f"memory of the server: {sizes[0]:.0f} MB at first, {max(sizes):.0f} at most, {sizes[-1]:.0f} at the end")
    print("engine: " + ", ".join(f"{name} {value:g}" for name, value in figures["engine"].items()))
    append(arguments, {"benchmark": "serving_load", "torch": torch.__version__, **figures})


if __name__ == "__main__":
    main()
