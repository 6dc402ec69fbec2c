"""A server answers texts: a vision model is refused before an engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.serving.open_service import open_service
from deltatune.store.adapter_store import AdapterStore
from support.media import save_vit

pytest.importorskip("PIL.Image")


def test_a_vision_model_is_not_served(tmp_path: Path) -> None:
    model = save_vit(tmp_path / "vit")
    store = AdapterStore(tmp_path / "store")
    with (
        pytest.raises(DeltatuneError, match="reads image files, and requests carry texts"),
        open_service(store, str(model)),
    ):
        pass
