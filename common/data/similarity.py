"""An exact similarity join: all pairs of texts whose sets of character 5-grams reach a Jaccard similarity.

A prefix filter, a position filter and a bitmap filter name candidates, and each is verified, so that no pair is
missed, unlike with MinHash. Grams are compared by 52 bits of a hash: over a million pairs of texts the chance of one
wrong count is about one in a million.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

GRAM = 5  # characters
ID_BITS = 52
ID_MASK = np.uint64((1 << ID_BITS) - 1)
PART_TEXTS = 1 << (64 - ID_BITS)  # a text's place in its part and a gram's hash share 64 bits
PART_CHARACTERS = 2_000_000
BUCKETS = 22  # bits: how often a gram occurs is counted in 4 million buckets
BLOCK = 1 << 19  # candidate pairs looked at in one go
ENTRIES = 1 << 21  # rare grams of texts that are joined in one go
EPSILON = 1e-9  # so that 0.8 / 1.8 * 18 counts as 8

Wanted = Callable[[np.ndarray, np.ndarray], np.ndarray]


def join(
    texts: list[str], threshold: float, wanted: Wanted | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Arrays (i, j, similarity) of the pairs of distinct, normalized texts at or above the threshold.

    Args:
        wanted: takes arrays i and j, says (bool) which of these pairs matter; the others are not verified.
    """
    seen = np.empty(0, dtype=np.int64)
    for i, j in candidates(texts, threshold, wanted):
        seen = np.concatenate([seen, np.minimum(i, j) * len(texts) + np.maximum(i, j)])
        if len(seen) > 4 * BLOCK:
            seen = np.unique(seen)
    seen = np.unique(seen)
    for start in range(0, len(seen), PART_TEXTS):
        yield verified(texts, *np.divmod(seen[start : start + PART_TEXTS], max(len(texts), 1)), threshold)


def verified(
    texts: list[str], i: np.ndarray, j: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of the pairs (texts[i], texts[j]) whose similarity reaches the threshold, with it."""
    order = np.lexsort((j, i))
    i, j = i[order], j[order]
    similarity = np.zeros(len(i))
    lengths = np.array([len(texts[a]) + len(texts[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)])
    for part in _parts(lengths // 4):  # few of the texts of so many pairs are distinct
        similarity[part] = _similarity(texts, i[part], j[part])
    kept = similarity >= threshold - EPSILON
    return i[kept], j[kept], similarity[kept]


def _similarity(texts: list[str], i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The Jaccard similarity of each pair; i is ascending."""
    chosen, place = np.unique(np.concatenate([i, j]), return_inverse=True)
    names: list[int] = chosen.tolist()
    found = [
        (_grams([texts[name] for name in names[part]]), part.stop - part.start)
        for part in _parts(np.array([len(texts[name]) for name in names]))
    ]
    sizes = np.concatenate([_counts(grams, count) for grams, count in found])
    # Small numbers in the place of hashes, so that a text's grams can be marked in a table.
    distinct, grams = np.unique(np.concatenate([grams & ID_MASK for grams, _ in found]), return_inverse=True)
    of = np.split(grams, np.cumsum(sizes)[:-1])
    marked = np.zeros(len(distinct), dtype=bool)
    left, right = place[: len(i)].tolist(), place[len(i) :].tolist()
    shared = np.zeros(len(i))
    starts = np.flatnonzero(np.append(True, i[1:] != i[:-1])).tolist()
    for start, stop in zip(starts, [*starts[1:], len(i)], strict=True):
        marked[of[left[start]]] = True
        for pair in range(start, stop):
            shared[pair] = np.count_nonzero(marked[of[right[pair]]])
        marked[of[left[start]]] = False
    return shared / (sizes[left] + sizes[right] - shared)


def _parts(lengths: np.ndarray) -> Iterator[slice]:
    """Consecutive slices of at most PART_TEXTS texts and, beyond the first, PART_CHARACTERS characters."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        room = (ends[start - 1] if start else 0) + PART_CHARACTERS
        stop = min(max(int(np.searchsorted(ends, room, side="right")), start + 1), start + PART_TEXTS, len(lengths))
        yield slice(start, stop)
        start = stop


def _grams(texts: list[str]) -> np.ndarray:
    """The distinct grams of at most PART_TEXTS texts, sorted, as uint64: place of the text << 52 | hash of the gram.

    A text shorter than a gram is filled up and is one gram.
    """
    lengths = np.array([max(len(text), GRAM) for text in texts])
    joined = "".join(text if len(text) >= GRAM else text.ljust(GRAM, "\0") for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    hashes = codes[: len(codes) - GRAM + 1].copy()
    for offset in range(1, GRAM):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += codes[offset : len(codes) - GRAM + 1 + offset]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)  # the high bits now depend on every character
    inside = np.ones(len(codes), dtype=bool)
    ends = np.cumsum(lengths)
    for offset in range(1, GRAM):
        inside[ends - offset] = False  # a gram that starts here would run into the next text
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths - GRAM + 1)
    keys = np.sort(owner << np.uint64(ID_BITS) | hashes[inside[: len(hashes)]] >> np.uint64(64 - ID_BITS))
    return keys[np.append(True, keys[1:] != keys[:-1])]


def _counts(grams: np.ndarray, size: int) -> np.ndarray:
    return np.bincount((grams >> np.uint64(ID_BITS)).astype(np.int64), minlength=size)


@dataclass
class _Index:
    """Of each text the number of grams, a bitmap of them, and of all texts how often a gram's bucket occurs."""

    sizes: np.ndarray  # int64 (texts,)
    bitmaps: np.ndarray  # uint64 (texts, words): the parity of the number of grams that fall on each bit
    often: np.ndarray  # uint64 (buckets,): about 128 * log2 of the count, 12 bits


def _index(texts: list[str]) -> _Index:
    sizes = np.zeros(len(texts), dtype=np.int64)
    bitmaps = np.zeros((len(texts), _bitmap_words(texts)), dtype=np.uint64)
    often = np.zeros(1 << BUCKETS, dtype=np.int64)
    for part in _parts(np.array([len(text) for text in texts])):
        grams = _grams(texts[part])
        sizes[part] = _counts(grams, part.stop - part.start)
        starts = np.cumsum(sizes[part]) - sizes[part]
        bit = np.uint64(1) << (grams & np.uint64(63))
        word = grams >> np.uint64(6) & np.uint64(bitmaps.shape[1] - 1)
        for column in range(bitmaps.shape[1]):
            bitmaps[part, column] = np.bitwise_xor.reduceat(np.where(word == column, bit, np.uint64(0)), starts)
        often += np.bincount(_bucket(grams), minlength=len(often))
    return _Index(sizes, bitmaps, (128 * np.log2(np.maximum(often, 1))).astype(np.uint64))


def _bitmap_words(texts: list[str]) -> int:
    """A power of two: 4 for short texts, more for long ones, whose grams would fill a small bitmap; 256 MB at most."""
    wanted = min(3 * sum(map(len, texts)) / max(len(texts), 1) / 64, (1 << 25) / max(len(texts), 1))
    return 1 << int(np.clip(np.ceil(np.log2(max(wanted, 1))), 2, 6))


def _bucket(grams: np.ndarray) -> np.ndarray:
    return ((grams & ID_MASK) >> np.uint64(ID_BITS - BUCKETS)).astype(np.int64)


def _prefixes(texts: list[str], index: _Index, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(key, text, place in the text) of the rarest grams of each text: two similar texts share at least one.

    Rarest first is only the best order; any order that is the same for all texts is right, and so are two grams
    with one key, which merely add candidates.
    """
    lengths = index.sizes - np.ceil(threshold * index.sizes - EPSILON).astype(np.int64) + 1
    found = []
    for part in _parts(np.array([len(text) for text in texts])):
        grams = _grams(texts[part])
        id40 = (grams & ID_MASK) >> np.uint64(12)
        owner = grams & ~ID_MASK
        keys = np.sort(owner | index.often[_bucket(grams)] << np.uint64(40) | id40)
        text = (keys >> np.uint64(ID_BITS)).astype(np.int64)
        sizes = index.sizes[part]
        place = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = place < lengths[part][text]
        found.append((keys[kept] & ID_MASK, (text[kept] + part.start).astype(np.int32), place[kept].astype(np.int32)))
    keys, text, place = (np.concatenate(column) for column in zip(*found, strict=True))
    return keys, text, place


def candidates(
    texts: list[str], threshold: float, wanted: Wanted | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of pairs (i, j) that may reach the threshold; every pair that does is in at least one block."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; a similarity is over 0 and at most 1")
    if len(texts) < 2:
        return
    index = _index(texts)
    keys, text, place = _prefixes(texts, index, threshold)
    order = np.argsort(index.sizes, kind="stable")  # texts by size: rank
    rank = np.empty(len(texts), dtype=np.int64)
    rank[order] = np.arange(len(texts))
    sizes = index.sizes[order]
    smallest = np.searchsorted(sizes, np.ceil(threshold * sizes - EPSILON))  # the least rank that can be similar
    # The smaller text of a pair needs fewer of its rare grams than the larger one.
    few = index.sizes - np.ceil(2 * threshold / (1 + threshold) * index.sizes - EPSILON).astype(np.int64) + 1
    parts = np.uint64(len(keys) // ENTRIES + 1)
    for part in range(int(parts)):
        chosen = np.flatnonzero(keys % parts == part)
        key = np.unique(keys[chosen], return_inverse=True)[1]
        at = key * len(texts) + rank[text[chosen]]
        sort = np.argsort(at, kind="stable")
        at, key, chosen = at[sort], key[sort], chosen[sort]
        short = np.flatnonzero(place[chosen] < few[text[chosen]])
        low = np.searchsorted(at[short], key * len(texts) + smallest[rank[text[chosen]]])
        high = np.searchsorted(at[short], at)
        yield from _expanded(index, threshold, wanted, (text[chosen], place[chosen], short, low, high))


def _expanded(
    index: _Index, threshold: float, wanted: Wanted | None, table: tuple[np.ndarray, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs that the ranges low..high name, BLOCK at a time, filtered by position, `wanted` and bitmap."""
    text, place, short, low, high = table
    counts = np.maximum(high - low, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts) and ends[-1]:
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + BLOCK, side="right")), start + 1)
        larger = np.repeat(np.arange(start, stop), counts[start:stop])
        offset = np.arange(len(larger)) - (
            np.repeat(ends[start:stop] - counts[start:stop], counts[start:stop]) - before
        )
        smaller = short[low[larger] + offset]
        start = stop
        i, j = text[larger], text[smaller]
        ni, nj = index.sizes[i], index.sizes[j]
        needed = np.ceil(threshold / (1 + threshold) * (ni + nj) - EPSILON)  # shared grams
        kept = np.minimum(ni - place[larger], nj - place[smaller]) >= needed
        if wanted is not None:
            kept &= wanted(i, j)
        i, j, most = i[kept], j[kept], (ni + nj - 2 * needed)[kept]  # grams in one text alone, at most
        alike = np.bitwise_count(index.bitmaps[i] ^ index.bitmaps[j]).sum(axis=1) <= most + 2 * EPSILON
        if alike.any():
            pair = np.unique(i[alike].astype(np.int64) << 32 | j[alike])
            yield pair >> 32, pair & 0xFFFFFFFF
