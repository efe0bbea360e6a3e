"""Packing: every row in one bin, no bin too full, and as few bins as plain best-fit decreasing makes."""

import random

import pytest

from tunebook.common.batching.packing import pack


def plain(lengths, limit):
    """Best-fit decreasing by looking at every bin."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda place: rooms[place])] -= length
        else:
            rooms.append(limit - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_equals_plain_best_fit(seed):
    rng = random.Random(seed)
    limit = rng.choice([7, 64, 513])
    lengths = [rng.randint(1, limit) for _ in range(rng.randint(0, 300))]
    bins = pack(lengths, limit)
    assert sorted(place for members in bins for place in members) == list(range(len(lengths)))
    assert sorted(limit - sum(lengths[place] for place in members) for members in bins) == plain(lengths, limit)


@pytest.mark.parametrize("lengths", [[5, 9], [0, 3]])
def test_rows_that_fit_no_bin(lengths):
    with pytest.raises(ValueError, match="a bin takes 1 to 8"):
        pack(lengths, 8)
