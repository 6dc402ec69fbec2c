"""Inputs and targets of pretraining objectives: counts, shares and positions against the published ones.

Tolerances are six standard deviations of the binomial law at the number of draws, at fixed seeds.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorForLanguageModeling

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining import (
    causal_labels,
    corrupt_spans,
    fill_spans,
    mask_tokens,
    noise_counts,
    prefix_labels,
    prepend_sentinel,
    sentinel_ids,
    span_lengths,
    split_document,
    split_prefix,
)
from deltatune.tasks.pretraining.random_draws import permutation, random_partition
from deltatune.tasks.task import IGNORED
from support.models import MASK, VOCABULARY

SENTINELS = list(range(32099, 31999, -1))
EOS = 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def near(results, share, draws):
    """Whether a count is what `draws` draws with this probability give."""
    return abs(results - share * draws) <= 6 * math.sqrt(draws * share * (1 - share)) + 1e-9


def masked(ids, draws=None, **options):
    special = [False] * len(ids)
    special[0] = special[-1] = True
    return mask_tokens(ids, special, draws or generator(), mask_id=MASK, vocabulary=VOCABULARY, **options)


# --- masked tokens ---


@pytest.mark.parametrize(("length", "chosen"), [(4, 1), (10, 2), (64, 10), (128, 19), (512, 77)])
def test_as_many_tokens_are_chosen_as_in_bert(length, chosen):
    ids = list(range(1000, 1000 + length))
    for seed in range(20):
        inputs, labels = masked(ids, generator(seed))
        places = [place for place, label in enumerate(labels) if label != IGNORED]
        assert len(places) == chosen
        assert 0 not in places
        assert length - 1 not in places
        assert all(labels[place] == ids[place] for place in places)
        assert all(a == b for place, (a, b) in enumerate(zip(inputs, ids, strict=True)) if place not in places)


def test_shares_of_masked_random_and_kept_tokens_and_every_place_alike():
    ids, draws, kinds, places = list(range(1000, 1102)), generator(), Counter(), Counter()
    for _ in range(2000):
        inputs, labels = masked(ids, draws)
        for place, label in enumerate(labels):
            if label != IGNORED:
                token = inputs[place]
                kinds["mask" if token == MASK else "kept" if token == label else "random"] += 1
                places[place] += 1
                assert token in (MASK, label) or 0 <= token < VOCABULARY
    total = kinds.total()
    assert total == 2000 * 15
    lucky = 0.1 / VOCABULARY  # a random token that is the mask token
    assert near(kinds["mask"], 0.8 + lucky, total)
    assert near(kinds["random"], 0.1 - lucky, total)
    assert near(kinds["kept"], 0.1, total)
    assert set(places) == set(range(1, 101))
    assert all(near(count, 0.15, 2000) for count in places.values())


def test_random_tokens_are_uniform_over_the_vocabulary_or_the_ids_given():
    ids, draws = list(range(1000, 1010)), generator()
    drawn = Counter(
        token for _ in range(1000) for token in masked(ids, draws, rate=1.0, shares=(0, 1, 0))[0] if token < 1000
    )
    assert set(drawn) == set(range(VOCABULARY))
    assert drawn.total() == 8000
    assert all(near(count, 1 / VOCABULARY, 8000) for count in drawn.values())
    only = mask_tokens(
        ids, [False] * 10, draws, mask_id=MASK, vocabulary=[7, 9], rate=1.0, shares=(0, 1, 0), choose="each"
    )
    assert set(only[0]) == {7, 9}


@pytest.mark.parametrize(("shares", "expected"), [((1, 0, 0), {MASK}), ((0, 0, 1), {5, 6, 7, 8})])
def test_shares_of_one_kind_alone(shares, expected):
    inputs, labels = masked([0, 5, 6, 7, 8, 0], rate=1.0, shares=shares)
    assert set(inputs[1:-1]) == expected
    assert labels == [IGNORED, 5, 6, 7, 8, IGNORED]


def test_each_chooses_every_token_with_the_rate_and_sometimes_none():
    draws, counts = generator(), Counter()
    for _ in range(3000):
        counts[sum(label != IGNORED for label in masked(list(range(22)), draws, choose="each")[1])] += 1
    assert near(sum(n * times for n, times in counts.items()), 0.15, 3000 * 20)
    for n in range(5):
        assert near(counts[n], math.comb(20, n) * 0.15**n * 0.85 ** (20 - n), 3000), n


def test_each_against_the_collator_of_hugging_face(tiny_tokenizer):
    text = "the film was great and the plot is not bad it was a very good film"
    ids = tiny_tokenizer(text)["input_ids"]
    special = [id in tiny_tokenizer.all_special_ids for id in ids]
    peer = DataCollatorForLanguageModeling(tiny_tokenizer, seed=0)
    shape, counts = (len(ids),), {"ours": Counter(), "theirs": Counter()}
    draws, rounds = generator(), 1500
    batch = peer([{"input_ids": ids} for _ in range(rounds)])
    theirs = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    for row in theirs:
        _count(ids, special, *row, counts["theirs"])
    for _ in range(rounds):
        row = mask_tokens(ids, special, draws, mask_id=MASK, vocabulary=len(tiny_tokenizer), choose="each")
        assert torch.tensor(row[0]).shape == torch.tensor(row[1]).shape == shape
        _count(ids, special, *row, counts["ours"])
    chosen = rounds * (len(ids) - 2)
    for results in counts.values():
        assert near(results.total(), 0.15, chosen)
        assert near(results["mask"], 0.15 * (0.8 + 0.1 / VOCABULARY), chosen)
        assert near(results["random"], 0.15 * 0.1 * (1 - 2 / VOCABULARY), chosen)


def _count(ids, special, inputs, labels, results):
    for id, is_special, token, label in zip(ids, special, inputs, labels, strict=True):
        assert label == IGNORED or (label == id and not is_special)
        assert label != IGNORED or token == id
        if label != IGNORED:
            results["mask" if token == MASK else "kept" if token == id else "random"] += 1


# --- units ---

UNITS = [[1], [2, 3], [4], [5, 6, 7], [8], [9, 10], [11], [12], [13, 14], [15], [16], [17], [18]]


def test_units_are_taken_whole_and_fill_the_number_of_tokens():
    ids, draws, counts = list(range(1000, 1020)), generator(), Counter()
    for _ in range(500):
        labels = masked(ids, draws, units=UNITS)[1]
        places = {place for place, label in enumerate(labels) if label != IGNORED}
        chosen = [unit for unit in UNITS if places.issuperset(unit)]
        assert sorted(place for unit in chosen for place in unit) == sorted(places)
        assert len(places) == 3  # round(0.15 * 20): units of one token always fill what is left
        counts.update(len(unit) for unit in chosen)
    assert counts[3] > 0
    assert counts[2] > 0


def test_a_unit_that_exceeds_the_number_is_passed_over_and_the_shortest_taken_where_none_fits():
    ids = list(range(1000, 1010))  # 2 tokens are to be chosen
    for seed in range(20):
        labels = masked(ids, generator(seed), units=[[1, 2, 3], [4, 5], [6, 7, 8]])[1]
        assert [place for place, label in enumerate(labels) if label != IGNORED] == [4, 5]
        labels = masked(ids, generator(seed), units=[[1, 2, 3, 4], [5, 6, 7]])[1]
        assert [place for place, label in enumerate(labels) if label != IGNORED] == [5, 6, 7]


def test_units_with_special_tokens_are_never_chosen():
    inputs, labels = masked([0, 5, 6, 0], rate=1.0, units=[[0, 1], [2]])
    assert labels == [IGNORED, IGNORED, 6, IGNORED]
    assert inputs[:2] == [0, 5]
    assert masked([0, 0], rate=1.0) == ([0, 0], [IGNORED, IGNORED])


def test_masked_random_or_kept_is_decided_for_each_piece_or_once_for_a_unit():
    ids, units = [0, 10, 11, 0], [[1, 2]]
    kinds = {False: Counter(), True: Counter()}
    for alike, results in kinds.items():
        draws = generator()
        for _ in range(2000):
            inputs = masked(ids, draws, rate=1.0, units=units, alike=alike)[0]
            results[inputs[1] == MASK, inputs[2] == MASK] += 1
    lucky = 0.1 / VOCABULARY
    assert near(kinds[False][True, True], (0.8 + lucky) ** 2, 2000)
    assert near(kinds[False][True, False], (0.8 + lucky) * (0.2 - lucky), 2000)
    assert near(kinds[True][True, True], 0.8, 2000)
    assert kinds[True][True, False] + kinds[True][False, True] <= 10  # by luck alone: 0.4 are expected


def test_each_unit_is_chosen_with_the_rate_whatever_its_length():
    draws, results = generator(), Counter()
    for _ in range(3000):
        labels = masked(list(range(1000, 1020)), draws, units=UNITS, choose="each")[1]
        results.update(at for at, unit in enumerate(UNITS) if labels[unit[0]] != IGNORED)
    assert all(near(results[at], 0.15, 3000) for at in range(len(UNITS)))


def test_masks_depend_on_the_generator_alone():
    ids = list(range(1000, 1100))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = masked(ids, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert masked(ids, generator(3)) == first != masked(ids, generator(4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"shares": (0.8, 0.1, 0.2)}, "sum to 1"),
        ({"units": [[1, 2], [2]]}, "token 2 belongs to two units"),
        ({"units": [[9]]}, "token 9"),
    ],
)
def test_wrong_masking_is_refused(options, words):
    with pytest.raises(DeltatuneError, match=words):
        masked([0, 5, 6, 0], **options)
    with pytest.raises(DeltatuneError, match="of 2 tokens"):
        mask_tokens([1, 2], [False], generator(), mask_id=0, vocabulary=5)


# --- spans ---


@pytest.mark.parametrize(("inputs", "raw", "target"), [(512, 568, 114), (128, 141, 29), (3, 2, 3)])
def test_how_much_text_makes_inputs_of_a_length(inputs, raw, target):
    assert span_lengths(inputs) == (raw, target)
    corrupted, asked = corrupt_spans(list(range(2, 2 + raw)), SENTINELS, EOS, generator())
    assert len(corrupted) <= inputs
    assert len(asked) == target


def test_counts_of_noise_at_512():
    assert noise_counts(568) == (85, 28)
    assert noise_counts(2) == (1, 1)


@given(st.integers(2, 400), st.floats(0.02, 0.95), st.floats(1, 10), st.integers(0, 2**31))
def test_inputs_and_targets_together_are_the_text(length, density, mean, seed):
    ids = list(range(100, 100 + length))
    reserve = list(range(40000, 39500, -1))
    inputs, targets = corrupt_spans(ids, reserve, EOS, generator(seed), density, mean)
    noise, spans = noise_counts(length, density, mean)
    used = [token for token in inputs if token >= 39000]
    assert inputs[0] == ids[0]
    assert inputs[-1] == targets[-1] == EOS
    assert inputs[-2] == used[-1]
    assert used == reserve[:spans] == [token for token in targets if token >= 39000]
    assert targets[0] == reserve[0]
    assert len(targets) == noise + spans + 1
    assert len(inputs) == length - noise + spans + 1
    assert fill_spans(inputs[:-1], targets[:-1], reserve) == ids


@given(st.integers(3, 300), st.sampled_from([0.1, 0.15, 0.3, 0.5]), st.sampled_from([1.0, 3.0, 8.0]))
def test_no_longer_text_fits(inputs, density, mean):
    raw, target = span_lengths(inputs, density, mean)
    made = [len(part) for part in corrupt_spans(list(range(raw)), SENTINELS * 3, EOS, generator(), density, mean)]
    assert made[0] <= inputs
    assert made[1] == target
    if density != 0.5:
        longer = [len(p) for p in corrupt_spans(list(range(raw + 1)), SENTINELS * 3, EOS, generator(), density, mean)]
        assert longer[0] > inputs


def test_spans_are_three_tokens_long_on_average():
    ids, draws, lengths, places = list(range(100, 300)), generator(), Counter(), Counter()
    for _ in range(600):
        targets = corrupt_spans(ids, SENTINELS, None, draws)[1]
        starts = [at for at, token in enumerate(targets) if token >= 32000] + [len(targets)]
        lengths.update(end - start - 1 for start, end in itertools.pairwise(starts))
        places.update(token for token in targets if token < 32000)
    assert noise_counts(200) == (30, 10)
    assert lengths.total() == 6000
    assert sum(n * times for n, times in lengths.items()) == 18000
    # a random composition of 30 into 10: P(first part = k) = C(29 - k, 8) / C(29, 9)
    for k in range(1, 8):
        assert near(lengths[k], math.comb(29 - k, 8) / math.comb(29, 9), 6000), k
    assert places[100] == 0
    assert places[299] == 600


def test_every_way_to_lay_spans_is_equally_likely():
    assert noise_counts(10, 0.3, 1.5) == (3, 2)  # 6 partitions of 7 kept tokens and 2 of 3 lost ones
    draws, results = generator(), Counter()
    for _ in range(3000):
        results[tuple(corrupt_spans(list(range(10)), [99, 98], None, draws, 0.3, 1.5)[1])] += 1
    assert len(results) == 12
    assert all(near(times, 1 / 12, 3000) for times in results.values())


@pytest.mark.parametrize(("total", "count"), [(5, 2), (6, 3), (4, 4), (7, 1)])
def test_every_partition_is_equally_likely(total, count):
    draws = generator()
    results = Counter(tuple(random_partition(total, count, draws)) for _ in range(2000))
    possible = math.comb(total - 1, count - 1)
    assert len(results) == possible
    assert all(sum(p) == total and min(p) > 0 for p in results)
    assert all(near(times, 1 / possible, 2000) for times in results.values())


def test_order_is_a_permutation():
    assert sorted(permutation(50, generator())) == list(range(50)) != permutation(50, generator())


def test_spans_depend_on_the_generator_alone():
    ids = list(range(100))
    assert corrupt_spans(ids, SENTINELS, EOS, generator(1)) == corrupt_spans(ids, SENTINELS, EOS, generator(1))
    assert corrupt_spans(ids, SENTINELS, EOS, generator(1)) != corrupt_spans(ids, SENTINELS, EOS, generator(2))


def test_sentinels_by_name(tiny_tokenizer):
    from support import models

    other = models.tiny_tokenizer()
    with pytest.raises(DeltatuneError, match=r"no sentinels.*add_tokens"):
        sentinel_ids(other)
    with pytest.raises(DeltatuneError, match=r"no token '<s9>'.*add_tokens"):
        sentinel_ids(other, ["good", "<s9>"])
    assert sentinel_ids(other, ["good", "bad"]) == other.convert_tokens_to_ids(["good", "bad"])
    other.add_tokens([f"<extra_id_{i}>" for i in (2, 11, 0, 1)], special_tokens=True)  # as the error says
    assert sentinel_ids(other) == other.convert_tokens_to_ids([f"<extra_id_{i}>" for i in (0, 1, 2, 11)])


def test_corruption_that_cannot_be_is_refused():
    with pytest.raises(DeltatuneError, match="28 spans, and there are 3 sentinels"):
        corrupt_spans(list(range(568)), SENTINELS[:3], EOS, generator())
    with pytest.raises(DeltatuneError, match="2 tokens or more, not 1"):
        corrupt_spans([5], SENTINELS, EOS, generator())
    with pytest.raises(DeltatuneError, match=r"density=1.0"):
        corrupt_spans([5, 6], SENTINELS, EOS, generator(), density=1.0)
    with pytest.raises(DeltatuneError, match="3 tokens or more"):
        span_lengths(2)


def test_an_answer_without_a_span_or_with_words_before_the_first_one():
    assert fill_spans([5, 99, 6, 98], [7, 99, 8, 8], [99, 98]) == [5, 8, 8, 6]


def test_targets_behind_a_sentinel():
    assert prepend_sentinel([4, 5, 1], 32099) == [32099, 4, 5, 1]


# --- prefixes and whole texts ---


def test_prefixes_are_cut_uniformly():
    ids, draws = list(range(11)), generator()
    cuts = Counter(len(split_prefix(ids, draws)[0]) for _ in range(3000))
    assert set(cuts) == set(range(1, 11))
    assert all(near(times, 0.1, 3000) for times in cuts.values())
    prefix, rest = split_prefix(ids, draws)
    assert prefix + rest == ids
    inputs, labels = prefix_labels(prefix, rest)
    assert inputs == ids
    assert labels == [IGNORED] * len(prefix) + rest
    with pytest.raises(DeltatuneError, match="2 tokens or more, not 1"):
        split_prefix([5], draws)


def test_labels_of_a_causal_model_and_documents_apart():
    assert causal_labels([4, 5, 6]) == [4, 5, 6]
    assert causal_labels([4, 5, 6, 7], starts=[0, 2]) == [IGNORED, 5, IGNORED, 7]
    assert split_document(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert split_document([], 3) == []
    with pytest.raises(DeltatuneError, match="pieces of 0"):
        split_document([1], 0)
