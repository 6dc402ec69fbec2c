"""Adapters on the Hugging Face hub: their folders are uploaded with a model card, fetched by name and verified."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, first_line, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import expanded
from deltatune.store.model_saving.model_card import model_card

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OPTIONS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr", "tags")
CARD = "README.md"


def local_folder(place: str, revision: str | None) -> tuple[Path, str]:
    """The folder or file of an adapter on this machine, and a name for it: the last part of its own.

    A folder that is there wins over a name on the hub; else a name of the form `user/name` is fetched. Raises
    DeltatuneError where the hub has none or cannot be reached.
    """
    path = expanded(place)
    if os.path.lexists(path) or not HUB_NAME.fullmatch(place):
        if revision is not None:
            raise DeltatuneError(f"revision={revision!r}: {place} is a folder; only names on the hub have revisions")
        return path, _as_name(path.stem) if path.is_file() else path.name
    return _fetched(place, revision), _as_name(place.partition("/")[2])


def _as_name(text: str) -> str:
    """A name that an adapter may have: `add.detail v2` -> `add_detail_v2`, `8bit` -> `_8bit`."""
    name = re.sub(r"[^\w-]", "_", text)
    return name if not name[:1].isdigit() else f"_{name}"


def _fetched(repo_id: str, revision: str | None) -> Path:
    """The snapshot of a repository in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        # no Python, no pickles: nothing of them is ever read
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:  # what the hub, the network and the disk say has no common class
        folders = [item.name for item in Path.cwd().iterdir() if item.is_dir()]
        here = f"no folder here is called {repo_id!r}{nearest(repo_id, folders)}"
        at = f" at revision {revision!r}" if revision else ""
        reason = first_line(error)
        raise DeltatuneError(f"{here}, and as a name on the hub{at} it cannot be loaded: {reason}") from error


def push(host: Host, name: str, repo_id: str, options: Mapping[str, Any]) -> str:
    """Upload an adapter's folder in one commit. Returns the address of the commit.

    Raises DeltatuneError for unknown options and for what the hub refuses.
    """
    unknown = [option for option in options if option not in OPTIONS]
    raise_all(
        [f"push_to_hub has no option {option!r}{nearest(option, OPTIONS)}" for option in unknown],
        f"options: {', '.join(OPTIONS)}" if unknown else "",
    )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    given = dict(options)
    api, tags = HfApi(token=given.pop("token", None)), given.pop("tags", None)
    message = given.pop("commit_message", None) or f"Upload adapter {name}"
    with tempfile.TemporaryDirectory() as draft:
        folder = host.save(name, Path(draft) / "adapter")
        try:
            repo_id = api.create_repo(repo_id, private=given.pop("private", None), exist_ok=True).repo_id
            branch = given.get("revision")
            if branch is not None and not branch.startswith("refs/pr"):
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            if not api.file_exists(repo_id, CARD, revision=branch):
                (folder / CARD).write_text(model_card(host, name, repo_id, tags or ()), encoding="utf-8")
            # files of an earlier adapter would not be those of the new manifest
            old = ["adapter*", "trained_rows.safetensors", "manifest.json"]
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=old, **given
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = first_line(error)
            raise DeltatuneError(f"the hub did not take {name!r} as {repo_id}: {reason}") from error
    return str(done.commit_url)
