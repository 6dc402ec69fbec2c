"""The adapter that a training of preferences starts from, as a frozen copy: rewards are measured against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.store.fingerprint import contents_of
from deltatune.tasks.preferences.pair_collator import REJECTED_IDS
from deltatune.tasks.preferences.preference import START, Prefer
from deltatune.tasks.task import Encoded, Task

OTHER_REFERENCE = "rewards against the model without adapters need no copy: --reference base"


def load_start_(host: Host, folder: Path) -> None:
    """Load the adapter in a folder once more, as the reference. Raises DeltatuneError where it cannot be one."""
    if folder.is_file():
        raise DeltatuneError(f"{folder} is a loralib file, of which there is no second copy; {OTHER_REFERENCE}")
    try:
        host.load(folder, name=START)
        with host.using(START):
            pass
    except DeltatuneError as error:
        raise DeltatuneError(
            f"{folder} cannot be loaded beside itself as a reference; {OTHER_REFERENCE}\n{error}"
        ) from error


def find_start_(host: Host, task: Task, extra: Mapping[str, Any], rows: Sequence[Any]) -> None:
    """Load the adapter that the training of a stored one started from, if the rewards of rows are measured against it.

    extra: what the stored adapter's training wrote into its folder. Raises DeltatuneError if it is no longer there.
    """
    parents = extra.get("parents") or ()
    pairs = isinstance(rows, Encoded) and len(rows) and REJECTED_IDS in rows.rows[0]
    if not isinstance(task, Prefer) or not pairs or task.reference != START or START in host.adapters or not parents:
        return
    folder = Path(parents[-1]["folder"])
    fix = "put it back there, or measure rewards against the model without adapters: --set reference=base"
    what = f"rewards are measured against the adapter that training started from, {folder}"
    if not folder.exists():
        raise DeltatuneError(f"{what}, which is not there; {fix}")
    if contents_of(str(folder)) != parents[-1]["fingerprint"]:
        raise DeltatuneError(f"{what}, which has changed since; {fix}")
    load_start_(host, folder)
