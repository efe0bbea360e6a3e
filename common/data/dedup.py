"""Exact and near-duplicates, and the groups that they form."""

from collections.abc import Iterable, Sequence

import numpy as np

from tunebook.common.data import similarity
from tunebook.common.data.texts import digest, normalized


def digests(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit number for each text (uint64); equal for texts that are equal once normalized."""
    hashes = (digest(normalized(text), 8) for text in texts)
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)


def near(texts: Sequence[str], threshold: float = 0.8) -> list[tuple[int, int, float]]:
    """Pairs (i, j, similarity) with i < j and similarity >= threshold, sorted.

    Each repeat of a normalized text is paired with its first occurrence alone (similarity 1.0).
    """
    firsts, inverse = distinct(texts)
    pairs = [(int(firsts[group]), place, 1.0) for place, group in enumerate(inverse.tolist()) if firsts[group] != place]
    for i, j, alike in similarity.join(_normals(texts, firsts), threshold):
        a, b = firsts[i], firsts[j]
        pairs += zip(np.minimum(a, b).tolist(), np.maximum(a, b).tolist(), alike.tolist(), strict=True)
    return sorted(pairs)


def _normals(texts: Sequence[str], places: np.ndarray) -> list[str]:
    chosen: list[int] = places.tolist()
    return [normalized(texts[place]) for place in chosen]


def distinct(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the first of each distinct text (ascending), and for each text which of those it equals (int64)."""
    _, firsts, inverse = np.unique(digests(texts), return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return firsts[order], rank[inverse]


def groups(texts: Sequence[str], threshold: float | None = 0.8) -> np.ndarray:
    """The group of each text (int64, from 0): texts joined by a chain of near-duplicates share one.

    `threshold` None groups only texts that are equal once normalized.
    """
    firsts, inverse = distinct(texts)
    if threshold is None:
        return inverse
    root = np.arange(len(firsts))
    normals = _normals(texts, firsts)
    for pairs in similarity.candidates(normals, threshold, lambda i, j: root[i] != root[j]):
        order = np.lexsort((pairs[0], pairs[1]))
        i, j = pairs[0][order], pairs[1][order]
        per_text = 1
        while len(i):
            # First one pair for each j: in a cluster these join it, and its other pairs need no proof.
            selected = np.arange(len(j)) - np.searchsorted(j, j) < per_text
            _union(root, *similarity.verified(normals, i[selected], j[selected], threshold)[:2])
            remaining = ~selected & (root[i] != root[j])
            i, j, per_text = i[remaining], j[remaining], 4 * per_text
    return np.unique(root, return_inverse=True)[1][inverse]


def _union(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Join the pairs in place; afterwards every member again names the smallest of its group."""
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        while a != root[a]:
            a = root[a]
        while b != root[b]:
            b = root[b]
        root[max(a, b)] = min(a, b)
    while len(i) and not np.array_equal(root, root[root]):
        root[:] = root[root]
