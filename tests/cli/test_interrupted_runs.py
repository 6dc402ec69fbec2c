"""A training that is interrupted says what is kept of it."""

from types import SimpleNamespace

import pytest

from deltatune.cli.ui import training_screen
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.store import run_folder
from deltatune.training import job, train
from support import models
from support.runs import PLAIN, ROWS, TASK, host_with


@pytest.mark.parametrize("kept", [False, True])
def test_the_step_that_is_kept_is_named(kept, tmp_path, monkeypatch, capsys):
    def stopped(ready, folder, record, progress):
        if kept:
            out = folder / run_folder.CHECKPOINTS
            train(host_with(), "a", TASK, ROWS[:16], None, models.tiny_tokenizer(), PLAIN, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", stopped)
    ready = SimpleNamespace(encoded={"train": ROWS[:16]}, session=SimpleNamespace(), settings=PLAIN)
    with pytest.raises(Interrupted) as error:
        training_screen.watched_run(ready, tmp_path, {})
    assert str(error.value).endswith("the same command resumes" if kept else "the same command starts again")
    if kept:
        assert f"step 2 is kept in {tmp_path / run_folder.CHECKPOINTS / 'checkpoint-2'}" in str(error.value)
