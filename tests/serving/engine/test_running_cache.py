"""The cache of running rows against lists of what each row has written, over random joins, steps and leaves."""

import random

import pytest
import torch

from deltatune.serving.engine.prompt_cache import BLOCK, PromptCache
from deltatune.serving.engine.running_cache import RunningCache

LAYERS, HEADS, WIDTH = 2, 2, 3


def states(length, draw):
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    return [tuple(torch.randn(HEADS, length, WIDTH + i, generator=generator) for i in range(2)) for _ in range(LAYERS)]


def step(cache, kept, draw):
    """Write a column for every row, as a pass does, and check what attention sees of all columns."""
    cache.make_room_for_step()
    rows = len(kept)
    new = [states(1, draw) for _ in range(rows)]
    chosen, mask = cache.choose(0, rows), cache.mask()
    for layer in range(LAYERS):
        keys, values = (torch.stack([row[layer][i] for row in new]) for i in range(2))
        seen = chosen.update(keys, values, layer)
        assert chosen.get_seq_length(layer) + 1 == seen[0].shape[2] == mask.shape[1]
        for i in range(rows):
            kept[i][layer] = tuple(torch.cat([kept[i][layer][n], new[i][layer][n]], 1) for n in range(2))
            for n in range(2):
                length = kept[i][layer][n].shape[1]
                assert torch.equal(seen[n][i, :, -length:], kept[i][layer][n])
                assert mask[i].tolist() == [0] * (mask.shape[1] - length) + [1] * length
                assert torch.isfinite(seen[n][i]).all(), "what is masked may still spoil a sum"
    cache.advance()


@pytest.mark.parametrize("seed", range(16))
def test_every_row_sees_what_it_has_written(seed):
    draw, cache, kept = random.Random(seed), RunningCache(), []
    longest = draw.choice([5, 40, 300, 300])
    for _ in range(120):
        action = draw.random()
        if action < 0.25 and len(kept) < 9:
            row = states(draw.choice([draw.randint(1, longest), draw.randint(1, 6)]), draw)
            assert cache.join(row) == len(kept)
            kept.append(list(row))
        elif action < 0.45 and kept:
            place = draw.randrange(len(kept))
            if draw.random() < 0.3:  # a row whose values are no numbers leaves no trace
                for layer in cache.layers:
                    layer.stored_keys[place] = torch.nan
            moved = cache.leave(place)
            last = kept.pop()
            assert moved == (None if place == len(kept) else len(kept))
            if moved is not None:
                kept[place] = last
        elif kept:
            step(cache, kept, draw)
    while kept:
        cache.leave(len(kept) - 1)
        kept.pop()
    assert cache.bytes == 0


def test_a_long_row_joins_where_places_are_missing_and_the_others_are_short():
    draw, cache = random.Random(3), RunningCache()
    kept = [list(states(length, draw)) for length in (3, 2, 4, 100)]
    for row in kept:
        cache.join(row)
    cache.leave(3)
    kept[3] = list(states(5, draw))
    kept.append(list(states(90, draw)))
    for row in kept[3:]:
        cache.join(row)
    step(cache, kept, draw)


def test_the_cache_shrinks_when_its_longest_row_is_gone():
    draw, cache = random.Random(0), RunningCache()
    cache.join(states(5, draw))
    cache.join(states(4000, draw))
    large = cache.bytes
    cache.leave(1)
    kept = [[tuple(tensor.clone() for tensor in layer) for layer in cache.states(0)]]
    for _ in range(5000):
        cache.make_room_for_step()
        if cache.bytes < large / 4:
            break
        cache.end = cache.columns  # as if all columns up to the last had been written
        cache.lengths = [5]
    assert cache.bytes < large / 4
    assert kept[0][0][0].shape[1] == 5


def test_blocks_of_prompts_are_found_by_all_tokens_before_them():
    draw, cache = random.Random(1), PromptCache(1 << 20)
    ids = [draw.randrange(100) for _ in range(70)]
    row = states(70, draw)
    row = [(keys, values) for keys, values in row]
    cache.keep("a", ids, row)
    count, found = cache.find("a", ids)
    assert count == 64
    for (keys, values), (own_keys, own_values) in zip(found, row, strict=True):
        assert torch.equal(keys, own_keys[:, :64])
        assert torch.equal(values, own_values[:, :64])
    assert cache.find("a", ids[:64])[0] == 48, "the last token of a prompt is always read"
    assert cache.find("a", [*ids[:40], 101, *ids[41:]])[0] == 32
    assert cache.find("a", [101, *ids[1:]])[0] == 0
    assert cache.find("b", ids)[0] == 0
    assert cache.hits == 3


def test_blocks_used_longest_ago_go_first_and_the_ends_of_prompts_before_their_starts():
    draw = random.Random(2)
    block = sum(k[:, :BLOCK].nbytes + v[:, :BLOCK].nbytes for k, v in states(BLOCK, draw))
    cache = PromptCache(6 * block)
    prompts = [[draw.randrange(100) for _ in range(65)] for _ in range(2)]
    cache.keep("", prompts[0], states(65, draw))
    cache.keep("", prompts[1], states(65, draw))
    assert cache.bytes == 6 * block
    assert [cache.find("", ids)[0] for ids in prompts] == [2 * BLOCK, 4 * BLOCK]
