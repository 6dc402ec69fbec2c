"""Generation metrics equal the libraries', and the reference programs' where their figures were noted."""

import random
import sys

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.metrics.generation import METRICS, text_scores
from deltatune.tasks.metrics.generation.tokenizers import splitter
from deltatune.tasks.metrics.metric_facts import listed_facts, lower_is_better

LOWER = {metric for metric in listed_facts() if lower_is_better(metric)}

sacrebleu = pytest.importorskip("sacrebleu")
tokenizer_13a = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
meteor_score = pytest.importorskip("nltk.translate.meteor_score").meteor_score
corpus_nist = pytest.importorskip("nltk.translate.nist_score").corpus_nist

CORPUS = [
    (
        "The Punter is a cheap pub near the river.",
        [
            "The Punter is a low-priced pub by the river.",
            "Near the river there is a cheap pub, The Punter.",
            "The Punter is a pub near the river. It's cheap.",
        ],
    ),
    (
        "It's not family-friendly and costs £20-25.",
        ["It isn't family-friendly; its prices are £20-25.", "Prices of £20-25, and it's not family-friendly."],
    ),
    (
        "A man is riding a brown horse on the beach",
        [
            "A man riding a horse on the beach.",
            "A man rides a brown horse along the sea",
            "someone on a horse at the beach",
            "A person rides a horse on the sand.",
        ],
    ),
    ("", ["There is no answer to that."]),
    (
        "Two dogs are playing with a red ball in the grass.",
        ["Two dogs play with a ball.", "Two dogs are playing with a red ball in the grass."],
    ),
    ("a a a a the the the", ["A cat sat on the mat.", "The cat is on a mat."]),
    (
        "In 1990, he won 1,000 games (a record).",
        ["He won 1,000 games in 1990, which is a record.", "In 1990 he won a record 1,000 games!"],
    ),
    ("O'Neill can't say \"yes\" to everyone's plans.", ["O'Neill cannot say yes to all plans."]),
    (
        "Il caffè è vicino al fiume.",
        ["Il caffè si trova vicino al fiume.", "Il bar è vicino al fiume & al parco."],
    ),
    (
        "The pub is cheap.",
        [
            "The restaurant serves Japanese food at 3.50 or less.",
            "Japanese food, less than 3.50",
            "The restaurant is Japanese.",
        ],
    ),
]
# Of coco-caption (pycocoevalcap 1.2, Stanford's tokenizer, CiderScorer), an example at a time.
CIDER = [
    5.002086859053226, 3.001406020353609, 2.6049584428037558, 0.0, 5.810518744398627, 0.1675073065473788,
    4.544288105402435, 2.522760522266286, 3.9168712418494596, 0.06770816285684489,
]  # fmt: skip
# Of mteval-v13a.pl as the E2E challenge has it (with varying numbers of references): all references, the first ones.
NIST, NIST_FIRST = 5.4279680153, 3.6136933039

WORDS = [
    *("the", "The", "cat", "sat", "on", "a", "mat,", "and", "it's", "family-friendly", ".", "don't", "3.5", "10-20"),
    *(
        "£20",
        "running",
        "runs",
        "ran",
        "city",
        "Café",
        "caffè",
        "naïve",
        "don’t",
        "Alimentum",
        "(near)",
        "&",
        "serving",
    ),
    *('"Burger', 'King"', "日本", "текст", "\n"),
]


def corpus(seed, count=40, most=5):
    """Texts and up to `most` references each that share words with them; some are empty."""
    own = random.Random(seed)

    def changed(words):
        return [own.choice(WORDS) if own.random() < 0.3 else word for word in words if own.random() > 0.1]

    predictions, references = [], []
    for i in range(count):
        words = own.choices(WORDS, k=own.randrange(30))
        predictions.append("" if i % 13 == 0 else " ".join(changed(words)))
        references.append([" ".join(changed(words)) for _ in range(own.randrange(1, most + 1))])
    references[1], references[2], predictions[2] = [""], [""], ""
    return predictions, references


def streams(references):
    """As sacrebleu takes them: the first of each text, the second of each, ..."""
    return [[own[i] if i < len(own) else None for own in references] for i in range(max(map(len, references)))]


class NoSynonyms:
    def synsets(self, word):
        return []


def peers(predictions, references):
    rouges = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(rouges)
    measured = [scorer.score_multi(own, text) for text, own in zip(predictions, references, strict=True)]
    split = tokenizer_13a.Tokenizer13a()
    meteors = [
        meteor_score([split(one).split() for one in own], split(text).split(), wordnet=NoSynonyms())
        for text, own in zip(predictions, references, strict=True)
    ]
    return {
        "bleu": sacrebleu.corpus_bleu(predictions, streams(references)).score / 100,
        "chrf": sacrebleu.corpus_chrf(predictions, streams(references)).score / 100,
        "ter": sacrebleu.corpus_ter(predictions, streams(references)).score / 100,
        **{name: np.mean([one[name].fmeasure for one in measured]) for name in rouges},
        "meteor": np.mean(meteors),
    }


def scores(predictions, references, *rest):
    return {name: metric.score() for name, metric in text_scores(predictions, references, *rest).items()}


@pytest.mark.parametrize("seed", range(5))
def test_equal_the_libraries(seed):
    predictions, references = corpus(seed, most=1 + seed)
    expected = peers(predictions, references)
    assert scores(predictions, references, tuple(expected)) == pytest.approx(expected, abs=1e-9)


def test_equal_the_libraries_on_sentences():
    predictions, references = zip(*CORPUS, strict=True)
    expected = peers(predictions, references)
    assert scores(predictions, references, tuple(expected)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("i", range(len(CORPUS)))
def test_one_text_equals_the_libraries(i):
    predictions, references = [CORPUS[i][0]], [CORPUS[i][1]]
    expected = peers(predictions, references)
    assert scores(predictions, references, tuple(expected)) == pytest.approx(expected, abs=1e-9)


def test_cider_equals_the_reference_code():
    predictions, references = zip(*CORPUS, strict=True)
    metric = text_scores(predictions, references, ["cider"])["cider"]
    np.testing.assert_allclose(metric.resampled(np.eye(len(CORPUS))), CIDER, atol=1e-9)
    assert metric.score() == pytest.approx(2.7638105405531626, abs=1e-9)


def test_nist_equals_mteval():
    predictions, references = zip(*CORPUS, strict=True)
    assert scores(predictions, references, ["nist"])["nist"] == pytest.approx(NIST, abs=1e-9)
    first = [own[:1] for own in references]
    assert scores(predictions, first, ["nist"])["nist"] == pytest.approx(NIST_FIRST, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_nist_with_one_reference_equals_nltk(seed):
    # With several ones nltk counts the hits of the best reference, mteval the most of any.
    predictions, references = corpus(seed)
    first = [own[:1] for own in references]
    words = splitter()
    expected = corpus_nist(
        [[words(own[0].lower())] for own in first], [words(text.lower()) for text in predictions]
    )  # fmt: skip
    assert scores(predictions, first, ["nist"])["nist"] == pytest.approx(expected, abs=1e-9)


def repeated(rows, weights):
    return [row for row, times in zip(rows, weights, strict=True) for _ in range(times)]


def test_resamples_equal_copies():
    predictions, references = corpus(7, count=25)
    draws = np.random.default_rng(0).integers(25, size=(6, 25))
    weights = np.stack([np.bincount(row, minlength=25) for row in draws])
    metrics = text_scores(predictions, references)
    for i, row in enumerate(weights):
        expected = peers(repeated(predictions, row), repeated(references, row))
        for name, score in expected.items():
            assert metrics[name].resampled(weights)[i] == pytest.approx(score, abs=1e-9), name
    for metric in metrics.values():
        assert metric.resampled(np.ones((1, 25)))[0] == pytest.approx(metric.score(), abs=1e-12)


def test_what_is_undefined_is_zero():
    predictions, references = corpus(3, count=20)
    for name, metric in text_scores(predictions, references).items():
        assert np.isfinite(metric.resampled(np.eye(20))).all(), name
        assert metric.resampled(np.zeros((1, 20)))[0] == 0.0, name


@pytest.mark.parametrize(("text", "own"), [("", [""]), ("", ["a b"]), ("a b", [""]), ("a", ["b", ""]), ("?", ["!"])])
def test_hardly_a_text(text, own):
    expected = peers([text], [own])
    measured = scores([text], [own])
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert measured["cider"] == measured["nist"] == 0.0
    assert measured["em"] == float(text in own)


def test_the_right_text():
    texts = ["The cat sat on the mat today.", "Dogs do not like the rain at all."]
    measured = scores(texts, [[text] for text in texts])
    ones = ("bleu", "rouge1", "rouge2", "rougeL", "rougeLsum", "chrf", "em")
    assert {name: measured[name] for name in ones} == pytest.approx(dict.fromkeys(ones, 1.0))
    assert measured["ter"] == 0.0
    assert measured["cider"] == pytest.approx(10.0)
    assert 0.99 < measured["meteor"] < 1.0  # one chunk costs γ / matches³


def test_exact_match_ignores_white_space_alone():
    assert scores([" a\n b ", "A b"], [["x", "a b"], ["a b"]], ["em"]) == {"em": 0.5}


def test_lower_is_better():
    assert set(METRICS) & LOWER == {"ter"}
    good, bad = (scores([text], [["a small cat sat here"]], ["ter"])["ter"] for text in ("a cat sat here", "no " * 20))
    assert good < 1 < bad


def test_wrong_rows_are_named():
    with pytest.raises(DeltatuneError, match="row 1: it has no reference"):
        text_scores(["a", "b"], [["a"], []])
    with pytest.raises(DeltatuneError, match="row 0: its references are a text"):
        text_scores(["a"], ["a"])
    with pytest.raises(DeltatuneError, match=r"row 0: .* must be texts"):
        text_scores([None], [["a"]])
    with pytest.raises(DeltatuneError, match="1 predictions but 2"):
        text_scores(["a"], [["a"], ["b"]])
    with pytest.raises(DeltatuneError, match="nothing to score"):
        text_scores([], [])


def test_unknown_names():
    with pytest.raises(DeltatuneError, match="'rougel' is not a metric of generated text, did you mean 'rougeL'"):
        text_scores(["a"], [["a"]], ["rougel"])


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("bleu", "sacrebleu", "sacrebleu"),
        ("nist", "sacrebleu.tokenizers.tokenizer_13a", "sacrebleu"),
        ("rougeL", "rouge_score.rouge_scorer", "rouge-score"),
        ("meteor", "nltk.stem.porter", "nltk"),
    ],
)
def test_packages_are_an_extra(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DeltatuneError, match=rf"{package}: pip install \"deltatune\[metrics\]\""):
        text_scores(["a"], [["a"]], [name])


def test_em_and_cider_need_no_package(monkeypatch):
    for module in ("sacrebleu", "rouge_score.rouge_scorer", "nltk.stem.porter"):
        monkeypatch.setitem(sys.modules, module, None)
    assert scores(["a", "b"], [["a"], ["c"]], ["em", "cider"])["em"] == 0.5
