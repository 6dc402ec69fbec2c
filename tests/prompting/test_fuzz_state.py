"""The state of a Self-Instruct run: mutated, a pipe or a dangling link, it is a plain error or what was saved."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.self_instruct.saved_state import SavedState
from support.fuzz import mutations, outcome

IDENTITY = {"endpoint": "m", "seeds": "0f", "seed_tasks": 6, "top_p": 0.9}
ROWS = [{"instruction": "Say a.", "round": 1}, {"instruction": "Say b.", "round": 2}]


def contents(out: Path) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
    with SavedState(out, IDENTITY) as state:
        return state.round, state.rows("kept"), state.rows("rejected")


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_mutated_state_is_refused_or_equal(tmp_path: Path, count: int) -> None:
    saved = tmp_path / "saved"
    with SavedState(saved / "rows.jsonl", IDENTITY) as state:
        state.add_(1, ROWS[:1], [])
        state.add_(2, ROWS[1:], [{"reason": "short", "round": 2}])
    expected = contents(saved / "rows.jsonl")
    for file in ("rows.state.json", "rows.jsonl"):
        for name, content in mutations((saved / file).read_bytes(), 5, count // 2):
            target = tmp_path / "b"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(saved, target)
            (target / file).write_bytes(content)
            found = outcome(lambda target=target: contents(target / "rows.jsonl"), f"{file} {name}")
            if not isinstance(found, DeltatuneError):
                assert found[1:] == expected[1:], f"{file} {name}"


def test_pipes_and_dangling_links_do_not_block(tmp_path: Path) -> None:
    for name, what in (("rows.jsonl", "pipe"), ("rows.rejected.jsonl", "pipe"), ("rows.state.json", "link")):
        folder = tmp_path / name
        folder.mkdir()
        os.mkfifo(folder / name) if what == "pipe" else (folder / name).symlink_to("nowhere")
        with pytest.raises(DeltatuneError, match=f"cannot write .*{name}: it is a {what}"):
            SavedState(folder / "rows.jsonl", IDENTITY)
