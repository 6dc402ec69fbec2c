"""Data sets of `datasets`."""

import pytest

from deltatune.data import read
from support.neighbours import works

NAME = "datasets"
PACKAGES = ("datasets",)
REASON = "it holds data, no models"
NOT_APPLICABLE = {"attach": REASON, "save": REASON, "reload": REASON, "serve": REASON}


@works("dataset.save_to_disk(folder)")
def test_train(tmp_path):
    import datasets

    labels = datasets.ClassLabel(names=["bad", "good"])
    rows = {"text": [f"a {word} film, number {i}" for i in range(20) for word in ("good", "bad")], "label": [1, 0] * 20}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(text=datasets.Value("string"), label=labels))
    folder = str(tmp_path / "reviews")
    dataset.save_to_disk(folder)
    data = read(folder)
    assert sorted({row["label"] for split in data.splits().values() for row in split}) == ["bad", "good"]
    with pytest.raises(TypeError):
        read(dataset)
