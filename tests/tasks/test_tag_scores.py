"""Tag scores equal seqeval's and scikit-learn's, also on resamples."""

import warnings

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.metrics.tag_scores import is_entity_scheme, tag_scores

seqeval = pytest.importorskip("seqeval.metrics")
sklearn = pytest.importorskip("sklearn.metrics")

SCHEMES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b"],
    "IOB1": ["O", "I-PER", "I-LOC", "B-PER"],
    "IOBES": ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("PER", "ORG", "MISC"))],
    "untyped": ["O", "B", "I"],
}
PLAIN = ["NN", "VB", "DT", "O"]


def texts(tags, count=60, seed=0, agreement=0.7):
    """Predictions and references of many lengths, one text of them empty."""
    random = np.random.default_rng(seed)
    lengths = [0, 1, *random.integers(1, 25, size=count - 2)]
    references = [[str(tag) for tag in random.choice(tags, size=length)] for length in lengths]
    predictions = [
        [tag if random.random() < agreement else str(random.choice(tags)) for tag in row] for row in references
    ]
    return predictions, references


def peer_entities(predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "f1": seqeval.f1_score(references, predictions),
            "precision": seqeval.precision_score(references, predictions),
            "recall": seqeval.recall_score(references, predictions),
            "f1_macro": seqeval.f1_score(references, predictions, average="macro"),
            "accuracy": seqeval.accuracy_score(references, predictions),
        }


def peer_words(predictions, references):
    own, true = ([tag for row in rows for tag in row] for rows in (predictions, references))
    return {
        "accuracy": sklearn.accuracy_score(true, own),
        "f1_macro": sklearn.f1_score(true, own, average="macro", zero_division=0),
        "f1_micro": sklearn.f1_score(true, own, average="micro", zero_division=0),
    }


@pytest.mark.parametrize("scheme", [*SCHEMES, "plain"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_the_libraries(scheme, seed):
    predictions, references = texts(SCHEMES.get(scheme, PLAIN), seed=seed, agreement=0.3 + 0.2 * seed)
    peer = (peer_words if scheme == "plain" else peer_entities)(predictions, references)
    measured = {name: metric.score() for name, metric in tag_scores(predictions, references).items()}
    assert measured == pytest.approx(peer, abs=1e-12)
    assert 0 < measured["f1_macro"] < 1


@pytest.mark.parametrize("scheme", ["IOB", "IOBES", "plain"])
def test_resamples_equal_copies(scheme):
    # Rare tags: a resample may lack them, and the mean over types is then over fewer.
    tags = SCHEMES.get(scheme, PLAIN)
    predictions, references = texts([tags[0]] * 30 + tags, count=12, seed=5)
    random = np.random.default_rng(0)
    weights = np.stack([np.bincount(random.integers(12, size=12), minlength=12) for _ in range(20)])
    metrics = tag_scores(predictions, references)
    for i, row in enumerate(weights):
        copies = [
            [one for one, times in zip(rows, row, strict=True) for _ in range(times)]
            for rows in (predictions, references)
        ]
        peer = (peer_words if scheme == "plain" else peer_entities)(*copies)
        for name, metric in metrics.items():
            expected = 0.0 if np.isnan(peer[name]) else peer[name]
            assert metric.resampled(weights)[i] == pytest.approx(expected, abs=1e-12), name


def test_an_example_by_hand():
    measured = tag_scores([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC", "I-LOC"]])
    scores = {name: metric.score() for name, metric in measured.items()}
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "f1_macro": 0.5, "accuracy": 0.5}


def test_without_any_entity_scores_are_zero():
    scores = {name: metric.score() for name, metric in tag_scores([["O", "O"]], [["O", "O"]], entities=True).items()}
    assert scores == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "f1_macro": 0.0, "accuracy": 1.0}


def test_bilou_counts_like_iobes():
    predictions, references = texts(SCHEMES["IOBES"])
    renamed = [
        [[tag.replace("E-", "L-").replace("S-", "U-") for tag in row] for row in rows]
        for rows in (predictions, references)
    ]
    expected = {name: metric.score() for name, metric in tag_scores(predictions, references).items()}
    assert {name: metric.score() for name, metric in tag_scores(*renamed).items()} == expected
    assert expected["f1"] > 0


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["O", "I-PER"], True),
        (["B-PER", "S-PER", "E-PER", "I-PER", "O"], True),
        (["U-PER", "O"], True),
        (["O", "B", "I"], True),
        (["B-PER", "I-PER"], True),
        (["NN", "VB"], False),
        (["O", "B-PER", "NN"], False),
        (["O"], False),
        (["O", "X"], False),
        (["S", "E"], False),
        (["right", "wrong"], False),
        (["B-", "O"], False),
    ],
)
def test_schemes(tags, entities):
    assert is_entity_scheme(tags) is entities
    assert is_entity_scheme(reversed(tags)) is entities


def test_rows_of_other_lengths_are_named():
    with pytest.raises(DeltatuneError, match="row 1: 2 predicted tags for 1"):
        tag_scores([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(DeltatuneError, match="1 predictions but 2 examples"):
        tag_scores([["O"]], [["O"], ["O"]])
    with pytest.raises(DeltatuneError, match="nothing to score"):
        tag_scores([], [])


def test_a_tag_that_marks_no_entity_is_refused():
    with pytest.raises(DeltatuneError, match="'NN' is not an entity tag"):
        tag_scores([["NN"]], [["B-PER"]], entities=True)


def test_seqeval_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(DeltatuneError, match=r"deltatune\[metrics\]"):
        tag_scores([["B-PER"]], [["B-PER"]])
