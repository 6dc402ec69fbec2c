"""Tokenizers of metrics: captions, Chinese and Japanese, other scripts."""

from itertools import zip_longest

import pytest

from deltatune.tasks.metrics.generation import guess_characters, text_scores
from deltatune.tasks.metrics.generation.tokenizers import caption_words

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


def scores(predictions, references, **choices):
    return {name: metric.score() for name, metric in text_scores(predictions, references, **choices).items()}


def test_captions_are_split_like_stanfords():
    text = "He said 'hello' -- and (left) at 10:30 a.m.; it's $3.50, isn't it? A 5-star pub, £20-25..."
    expected = "he said hello and ( left ) at 10:30 a.m. it 's $ 3.50 is n't it a 5-star pub £ 20-25"
    assert caption_words(text) == expected.split()


CHINESE = ["我喜欢吃苹果。", "他今天去北京了"], [["我爱吃苹果。", "我喜欢苹果"], ["他今天去了北京"]]


def test_characters():
    predictions, references = CHINESE
    measured = scores(predictions, references, characters=True)
    bleu = sacrebleu.corpus_bleu(predictions, list(zip_longest(*references)), tokenize="zh").score
    ter = sacrebleu.corpus_ter(predictions, list(zip_longest(*references)), normalized=True, asian_support=True).score
    assert measured["bleu"] == pytest.approx(bleu / 100, abs=1e-9)
    assert measured["ter"] == pytest.approx(ter / 100, abs=1e-9)
    # 5 of 6 characters are measured in the first reference's 5; all 7 in the second row's, where 6 are in order.
    assert measured["rouge1"] == pytest.approx((2 * 5 / (6 + 5) + 1) / 2)
    assert measured["rougeL"] == pytest.approx((2 * 5 / (6 + 5) + 6 / 7) / 2)
    whole = scores(predictions, references)
    for name in ("meteor", "nist", "cider", "bleu"):
        assert measured[name] > whole[name], name


def test_other_scripts_have_words_too():
    measured = scores(["кошка сидит дома"], [["кошка спит дома"]], names=["rouge1", "rougeL"])
    assert measured == pytest.approx({"rouge1": 2 / 3, "rougeL": 2 / 3})


def test_guessing_characters():
    assert guess_characters(CHINESE[1])
    assert guess_characters([["東京に行きました"]])
    assert not guess_characters([["The word 苹果 means apple."]])
    assert not guess_characters([["한국어 문장입니다"], ["текст"], [""]])
    assert not guess_characters([])


def test_vowel_signs_belong_to_words():
    measured = scores(["बिल्ली घर में सोती है"], [["बिल्ली घर में बैठी है"]], names=["rouge1"])
    assert measured == pytest.approx({"rouge1": 4 / 5})
    assert caption_words("बिल्ली घर में") == ["बिल्ली", "घर", "में"]
