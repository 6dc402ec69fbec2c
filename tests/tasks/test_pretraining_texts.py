"""Words, entities and sentence pairs, the units of pretraining objectives."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining import (
    Entity,
    add_disjoint,
    entity_names,
    mask_tokens,
    pair_documents,
    parse_entities,
    replace_entities,
    token_units,
    units_of_spans,
    word_offsets,
    word_units,
    word_units_by_marks,
)
from deltatune.tasks.task import IGNORED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def near(results, share, draws):
    return abs(results - share * draws) <= 6 * math.sqrt(draws * share * (1 - share)) + 1e-9


def unigram(split: bool) -> PreTrainedTokenizerFast:
    """SentencePiece's shape: spaces are ▁, with a pre-tokenizer (T5) or a normalizer alone (Llama)."""
    pieces = ["<unk>", "</s>", "▁", "▁good", "▁un", "▁film", *"abcdefghijklmnopqrstuvwxyz,."]
    tokenizer = Tokenizer(Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def byte_bpe() -> PreTrainedTokenizerFast:
    pieces = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe"]
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def read(tokenizer, *texts):
    """The words as strings."""
    encoding = tokenizer(*[[text] for text in texts])
    pieces = tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])
    return [
        ["".join(pieces[place] for place in unit) for unit in words(encoding, tokenizer)]
        for words in (by_ids, by_marks)
    ]


def by_ids(encoding, tokenizer):
    return word_units(encoding, tokenizer)[0]


def by_marks(encoding, tokenizer):
    return word_units_by_marks(encoding["input_ids"], tokenizer)[0]


# --- words ---


def test_words_of_wordpiece(tiny_tokenizer):
    expected = ["good", "b##o##a##t", "!", "the", "x##y", "film"]
    assert read(tiny_tokenizer, "good boat! the", "xy film") == [expected, expected]


def test_words_of_byte_level_bpe():
    by_word_ids, by_marks_alone = read(byte_bpe(), "ab, the cat")
    assert by_word_ids == ["ab", ",", "Ġthe", "Ġcat"]
    assert by_marks_alone == ["ab,", "Ġthe", "Ġcat"]  # the marks do not tell of the comma


@pytest.mark.parametrize("split", [True, False])
def test_words_of_sentencepiece_with_and_without_a_pre_tokenizer(split):
    expected = ["▁good", "▁unsure,", "▁film"]
    assert read(unigram(split), "good unsure, film") == [expected, expected]


def test_words_of_several_rows_hold_no_special_token(tiny_tokenizer):
    encoding = tiny_tokenizer(["good boat", "film"], ["is", "very bad"])
    for words, ids in zip(word_units(encoding, tiny_tokenizer), encoding["input_ids"], strict=True):
        ordinary = [at for at, id in enumerate(ids) if id not in tiny_tokenizer.all_special_ids]
        assert [place for unit in words for place in unit] == ordinary


def test_whole_words_are_masked_together(tiny_tokenizer):
    encoding = tiny_tokenizer(["good boat is abcd the film was not very xy and this plot is bad it is awful"])
    ids, words = encoding["input_ids"][0], word_units(encoding, tiny_tokenizer)[0]
    special = [id in tiny_tokenizer.all_special_ids for id in ids]
    draws, seen = generator(), Counter()
    for _ in range(200):
        labels = mask_tokens(ids, special, draws, mask_id=4, vocabulary=101, units=words)[1]
        assert sum(label != IGNORED for label in labels) == round(0.15 * len(ids)) == 4
        for at, unit in enumerate(words):
            hidden = [labels[place] != IGNORED for place in unit]
            assert all(hidden) or not any(hidden)
            seen[at] += hidden[0]
    assert set(seen) == set(range(len(words)))
    assert min(seen.values()) > 0


def test_words_of_a_segmentation():
    text = "使用语言模型"
    assert word_offsets(["使用", "语言", "模型"], text) == [(0, 2), (2, 4), (4, 6)]
    assert word_offsets(["the", "the"], "the other the") == [(0, 3), (5, 8)]
    with pytest.raises(DeltatuneError, match=r"'模具'.*after character 4"):
        word_offsets(["使用", "语言", "模具"], text)
    offsets = [(0, 0), *((at, at + 1) for at in range(6)), (0, 0)]
    special = [True, *[False] * 6, True]
    assert units_of_spans(word_offsets(["使用", "语言", "模型"], text), offsets, special) == [[1, 2], [3, 4], [5, 6]]


# --- entities ---

TEXT = "Ada Lovelace met Charles Babbage in London."
SPANS = [[17, 32, "person"], [0, 12, "person"], [36, 42, "place"]]


def test_entities_become_units_of_all_their_tokens(tiny_tokenizer):
    encoding = tiny_tokenizer([TEXT], return_offsets_mapping=True, return_special_tokens_mask=True)
    special = [bool(flag) for flag in encoding["special_tokens_mask"][0]]
    units = units_of_spans(parse_entities(TEXT, SPANS), encoding["offset_mapping"][0], special)
    pieces = tiny_tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])
    letters = ["".join(pieces[place].removeprefix("##") for place in unit) for unit in units]
    assert letters == ["adalovelace", "charlesbabbage", "london"]
    words = word_units(encoding, tiny_tokenizer)[0]
    both = add_disjoint(units, words)
    assert sorted(place for unit in both for place in unit) == [
        at for at, is_special in enumerate(special) if not is_special
    ]
    assert [unit for unit in both if unit not in units] == [words[2], words[5], words[7]]  # met, in, the full stop
    assert token_units([True, False, False]) == [[1], [2]]


def test_an_entity_that_was_cut_off_is_no_unit():
    assert units_of_spans([(0, 3), (20, 30)], [(0, 2), (2, 4), (4, 8)], [False] * 3) == [[0, 1]]


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([[0, 50]], "does not lie in its 43 characters"),
        ([[5, 5]], "does not lie"),
        ([[0, 5], [4, 8]], "entities at 0 and 4 overlap"),
        (["Ada"], "'Ada' is not an entity"),
        ([[0]], r"\[0\] is not an entity"),
        ([[0.0, 5.0]], "is not an entity"),
    ],
)
def test_wrong_entities_are_refused(spans, words):
    with pytest.raises(DeltatuneError, match=rf"row 3.*{words}"):
        parse_entities(TEXT, spans, "row 3")


def test_names_of_a_corpus():
    corpus = [(TEXT, parse_entities(TEXT, SPANS)), ("Paris is old", parse_entities("Paris is old", [[0, 5, "place"]]))]
    assert entity_names(corpus) == {"person": ("Ada Lovelace", "Charles Babbage"), "place": ("London", "Paris")}


NAMES = {"person": ("Ada Lovelace", "Alan Turing", "Charles Babbage"), "place": ("London", "Paris")}


def test_entities_are_replaced_by_others_of_their_kind():
    entities, draws, counts = parse_entities(TEXT, SPANS), generator(), Counter()
    for _ in range(2000):
        new = replace_entities(TEXT, entities, NAMES, draws)
        for old, moved, changed in zip(entities, new.entities, new.replaced, strict=True):
            before, after = TEXT[old.start : old.end], new.text[moved.start : moved.end]
            assert (before != after) == changed
            assert after in NAMES[old.kind]
            assert moved.kind == old.kind
        assert not any(one and other for one, other in zip(new.replaced, new.replaced[1:], strict=False))
        back, at = "", 0
        for old, moved in zip(entities, new.entities, strict=True):  # what is between entities stays
            back += new.text[at : moved.start] + TEXT[old.start : old.end]
            at = moved.end
        assert back + new.text[at:] == TEXT
        counts.update(at for at, changed in enumerate(new.replaced) if changed)
    # the second only where the first was not, the third only where the second was not
    assert near(counts[0], 1 / 2, 2000)
    assert near(counts[1], 1 / 4, 2000)
    assert near(counts[2], 3 / 8, 2000)


def test_an_entity_without_another_name_of_its_kind_stays():
    new = replace_entities(TEXT, parse_entities(TEXT, SPANS), {"place": ("London",)}, generator(), rate=1.0)
    assert new == (TEXT, parse_entities(TEXT, SPANS), [False] * 3)
    assert replace_entities(TEXT, [Entity(36, 42)], {"": ("London", "Rome")}, generator(), 1.0).text.endswith(
        "in Rome."
    )


# --- next sentences ---


def corpus(documents=30, sentences=12, seed=0):
    """Documents whose tokens tell where they come from: document * 10000 + sentence * 100 + place."""
    draws = generator(seed)
    return [
        [
            [d * 10000 + s * 100 + place for place in range(int(torch.randint(3, 12, (), generator=draws)))]
            for s in range(sentences)
        ]
        for d in range(documents)
    ]


def test_pairs_as_in_bert():
    documents, draws, randoms, total = corpus(), generator(), 0, 0
    for _ in range(20):
        results = pair_documents(documents, draws, max_tokens=60)
        for a, b, is_random in results:
            assert a
            assert b
            assert len(a) + len(b) <= 60
            (one,), other = {token // 10000 for token in a}, {token // 10000 for token in b}
            assert len(other) == 1
            assert is_random == (other != {one})
            assert _runs_on(a)
            assert _runs_on(b)
            if not is_random:
                assert b[0] // 100 - a[-1] // 100 in (0, 1) or len(a) + len(b) == 60
            total += 1
            randoms += is_random
    assert total > 1500
    # a single sentence left over is always paired at random: more than a half, as with BERT's code
    assert 0.5 < randoms / total < 0.62


def _runs_on(tokens):
    """Whether tokens are a stretch of one document."""
    sentences = [token // 100 for token in tokens]
    return all(0 <= other - one <= 1 for one, other in itertools.pairwise(sentences))


def test_half_of_the_pairs_are_random_where_no_passage_is_one_sentence():
    documents = [[[d * 100 + s] * 5 for s in range(2)] for d in range(40)]
    draws = generator()
    results = [pair for _ in range(50) for pair in pair_documents(documents, draws, max_tokens=10, short=0.0)]
    first = [pair for pair in results if pair.a[0] % 100 == 0]
    assert len(first) == 2000  # each document begins one pair
    assert near(sum(pair.is_random for pair in first), 0.5, 2000)
    again = [pair for pair in results if pair.a[0] % 100 == 1]  # the sentence that was put back, alone
    assert len(again) == sum(pair.is_random for pair in first)
    assert all(pair.is_random for pair in again)


def test_random_passages_come_from_every_other_document():
    documents = [[[d] * 4] for d in range(6)]  # one sentence each: always random
    draws = generator()
    results = [pair for _ in range(500) for pair in pair_documents(documents, draws, 8)]
    assert all(pair.is_random and pair.a[0] != pair.b[0] for pair in results)
    assert len(results) == 3000
    drawn = Counter((pair.a[0], pair.b[0]) for pair in results)
    assert len(drawn) == 30
    assert all(near(times, 1 / 5, 500) for times in drawn.values())


def test_what_was_not_used_is_put_back():
    documents = corpus(4, 9)
    for seed in range(20):
        results = pair_documents(documents, generator(seed), max_tokens=10_000, short=0.0)
        for number, document in enumerate(documents):
            read = [
                token for a, b, is_random in results if a[0] // 10000 == number for token in (a if is_random else a + b)
            ]
            assert read == [token for sentence in document for token in sentence]


def test_short_pairs():
    documents = [[[1]] * 400, [[2]] * 400]
    draws = generator()
    lengths = [
        max(len(a) + len(b) for a, b, _ in results)
        for results in ([pair for pair in pair_documents(documents, draws, 50) if pair.a[0] == 1] for _ in range(600))
    ]
    short = sum(length < 50 for length in lengths)
    assert near(short, 0.1 * 48 / 49, 600)  # of the drawn lengths 2 to 50 one is not shorter
    assert pair_documents(documents, generator(), 50, short=0.0)[0].a


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_pairs_of_any_length_are_stretches_of_their_documents(seed, most):
    documents = corpus(3, 5, seed)
    for a, b, is_random in pair_documents(documents, generator(seed), most):
        assert len(a) >= 1
        assert len(b) >= 1
        assert len(a) + len(b) <= most
        assert _runs_on(a)
        assert _runs_on(b)
        assert is_random == (a[0] // 10000 != b[0] // 10000)


def test_too_many_tokens_go_from_both_ends_of_the_longer_passage():
    documents = [[list(range(100, 140))], [list(range(200, 210))]]
    draws, fronts, n = generator(), 0, 0
    for _ in range(300):
        a, b, _ = pair_documents(documents, draws, 30, short=0.0)[0]
        assert len(a) == 20
        assert b == documents[1][0]
        fronts, n = fronts + a[0] - 100, n + 20
    assert near(fronts, 0.5, n)


def test_pairs_depend_on_the_generator_alone():
    documents = corpus()
    assert pair_documents(documents, generator(1), 60) == pair_documents(documents, generator(1), 60)
    assert pair_documents(documents, generator(1), 60) != pair_documents(documents, generator(2), 60)


def test_pairs_that_cannot_be_are_refused():
    with pytest.raises(DeltatuneError, match="there is 1 document with text"):
        pair_documents([[[1, 2]], [[]], []], generator(), 20)
    with pytest.raises(DeltatuneError, match="2 or more"):
        pair_documents(corpus(2, 2), generator(), 1)


# --- three relations ---


def relation_of(a, b):
    """What two passages of `corpus` are: 0 the next, 1 another document's, 2 of the same one but apart."""
    if a[0] // 10000 != b[0] // 10000:
        return 1
    last, first = a[-1] // 100, b[0] // 100
    if last <= first <= last + 1:
        return 0
    before = b[-1] // 100 < a[0] // 100 - 1
    assert before or first > last + 1, "a passage that touches the first one is neither next nor apart"
    return 2


def test_three_relations_are_drawn_alike_and_are_what_they_say():
    documents, draws, counts = corpus(sentences=14), generator(), Counter()
    for _ in range(20):
        for pair in pair_documents(documents, draws, max_tokens=60, short=0.0, classes=3):
            assert len(pair.a) + len(pair.b) <= 60
            assert _runs_on(pair.a)
            assert _runs_on(pair.b)
            if len(pair.a) + len(pair.b) < 60:  # else ends were cut, which moves passages apart
                assert relation_of(pair.a, pair.b) == pair.label
            assert pair.is_random == (pair.label == 1)
            counts[pair.label] += 1
    total = sum(counts.values())
    assert total > 1500
    # next needs two sentences, as with two classes; the rest is shared alike
    assert 0.25 < counts[0] / total < 0.36
    assert abs(counts[1] - counts[2]) < 0.08 * total


def test_a_document_without_a_passage_apart_has_the_other_two_relations():
    documents = [[[d * 10000 + s * 100 + place for place in range(5)] for s in range(3)] for d in range(40)]
    labels = Counter(
        pair.label
        for seed in range(20)
        for pair in pair_documents(documents, generator(seed), 15, short=0.0, classes=3)
        if pair.a[0] % 10000 == 0 and len(pair.a) == 10
    )
    assert set(labels) == {0, 1}  # behind two sentences the third is the next one, and before them is nothing
    assert near(labels[0], 0.5, sum(labels.values()))


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_three_relations_of_any_length(seed, most):
    for a, b, label in pair_documents(corpus(3, 5, seed), generator(seed), most, classes=3):
        assert a
        assert b
        assert len(a) + len(b) <= most
        assert (label == 1) == (a[0] // 10000 != b[0] // 10000)


def test_two_relations_are_drawn_as_before():
    """The pairs of stored objectives stay the same: the first ones of a seed, as they were before there were three."""
    results = pair_documents(corpus(4, 9), generator(7), 60)
    assert [(pair.a[0], len(pair.a), pair.b[0], len(pair.b), int(pair.label)) for pair in results[:6]] == [
        (0, 56, 700, 4, 0), (800, 4, 20600, 29, 1), (10000, 46, 30700, 13, 1),
        (10800, 3, 20800, 10, 1), (20000, 25, 100, 35, 1), (20300, 32, 20700, 18, 0),
    ]  # fmt: skip
