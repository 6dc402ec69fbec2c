"""Hashes of rows: equal for equal rows, different for other texts and labels, and no text in them."""

import numpy as np
import pytest

from deltatune.core.trained_rows import TrainedRows, overlap, rows_of_all
from deltatune.tasks import Classify, ExtractiveQA, Generate, LanguageModel, Tag
from deltatune.tasks.row_hashes import row_hashes

TASK = Classify(labels=("bad", "good"), text=("text",))


def test_a_row_is_recognised_whatever_its_blanks_and_unicode_form():
    one, other = row_hashes(
        TASK, [{"text": "caf\u00e9  good", "label": "good"}, {"text": "cafe\u0301 good\n", "label": "good"}]
    )
    assert one == other


def test_another_label_is_told_from_another_text():
    rows = [{"text": text, "label": label} for text in "abcdefgh" for label in ("bad", "good")]
    hashes = row_hashes(TASK, rows)
    assert len(set(hashes.tolist())) == 16
    known = hashes[::2]  # each text with the label bad
    found = overlap(hashes, known)
    assert (found.same_label, found.other_label, found.rows) == (8, 8, 16)
    assert overlap(row_hashes(TASK, [{"text": "z", "label": "bad"}]), known).rows == 0


def test_every_kind_of_row_has_a_hash():
    tag = Tag(tags=("O", "B-X"), text=("tokens",), label="tags")
    rows = {
        tag: [{"tokens": ["a", "b"], "tags": tags} for tags in (["O", "O"], ["O", "B-X"])],
        ExtractiveQA(): [
            {"question": "q", "context": "c d", "answers": [{"text": t, "start": s}]} for t, s in (("c", 0), ("d", 2))
        ],
        Generate(text=("input",), label="output"): [{"input": "a", "output": o, "references": [o]} for o in "bc"],
        LanguageModel(text=("text",)): [{"text": "a"}, {"text": "b"}],
        Classify(labels=(), text=("text",)): [{"text": "a", "label": value} for value in (1.0, 2.0)],
    }
    for task, two in rows.items():
        hashes = row_hashes(task, two)
        assert len(set(hashes.tolist())) == 2, task
        same_text = len({int(value) >> 16 for value in hashes}) == 1
        assert same_text == (not isinstance(task, LanguageModel)), task


def test_rows_of_several_adapters_add_up():
    first = TrainedRows().with_rows(np.asarray([3, 1, 3], np.uint64), np.asarray([9], np.uint64))
    assert first.train.tolist() == [1, 3]
    both = rows_of_all([first, TrainedRows().with_rows(np.asarray([2], np.uint64), np.asarray([], np.uint64))])
    assert (both.train.tolist(), both.validation.tolist(), both.complete) == ([1, 2, 3], [9], True)
    assert not rows_of_all([first, None]).complete


def test_a_picture_is_its_file_whatever_its_caption(tmp_path):
    pytest.importorskip("diffusers")
    from deltatune.data.media.media_files import MediaFile
    from deltatune.tasks.diffusion.text_to_image import TextToImage

    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    one, two = (MediaFile(tmp_path / name, name) for name in "ab")
    hashes = row_hashes(TextToImage(), [{"image": one, "text": "a cat"}])
    same = row_hashes(TextToImage(), [{"image": two, "text": "a cat"}, {"image": one, "text": "a dog"}])
    assert (overlap(same, hashes).same_label, overlap(same, hashes).other_label) == (0, 1)
