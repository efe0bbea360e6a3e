"""Splits and folds in which near-duplicates stay together."""

import logging
from collections.abc import Sequence

import numpy as np

from tunebook.common.data import dedup, similarity
from tunebook.common.data.spec import SPLITS
from tunebook.common.data.texts import NEAR_DUPLICATE_LIMIT, normalized
from tunebook.common.errors import UserError

SIZES = (85, 10, 5)
log = logging.getLogger(__name__)


def assign(
    texts: Sequence[str],
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    strata: Sequence[str] | None = None,
    near: bool | None = None,
    threshold: float = 0.8,
) -> np.ndarray:
    """The split of each row: int8, 0 train, 1 validation, 2 test (as many as `sizes` has entries).

    Near-duplicates, and rows joined by a chain of them, are in one split. The order of the rows does not matter.

    Args:
        texts: what each row asks.
        sizes: shares of the rows, of any sum.
        strata: a name for each row; each name's rows are divided by `sizes` as well as its groups allow.
        near: False groups only texts that are equal but for case and white space; None decides by `method`.
        threshold: Jaccard similarity of the character 5-grams from which two texts are near-duplicates.

    Raises:
        UserError: sizes that are no shares, or strata of another length.
    """
    if len(sizes) < 2 or min(sizes) < 0 or sum(sizes) <= 0 or not all(np.isfinite(sizes)):
        raise UserError(f"sizes {list(sizes)}: expected at least two shares, none negative, such as 85 10 5")
    if strata is not None and len(strata) != len(texts):
        raise UserError(f"strata has {len(strata)} names for {len(texts)} rows; one a row is expected")
    if near is None:
        near = len(texts) <= NEAR_DUPLICATE_LIMIT
        if not near:
            log.warning("split: %s", method(len(texts)))
    group = dedup.groups(texts, threshold if near else None)
    return _place(group, _shuffled(texts, group, seed), np.array(sizes, dtype=float), strata)


def method(rows: int, near: bool | None = None) -> str:
    """How `assign` groups so many rows, in words."""
    if near or (near is None and rows <= NEAR_DUPLICATE_LIMIT):
        return "near-duplicates stay in one split"
    why = "" if near is False else f": {rows:,} rows are more than {NEAR_DUPLICATE_LIMIT:,}"
    return (
        f"rows that are equal but for case and white space stay in one split; near-duplicates are not looked for{why}"
    )


def asked(questions: Sequence[str], systems: Sequence[str]) -> Sequence[str]:
    """The texts that identify rows: the questions, or each after its system text where a set has its documents there.

    Returns:
        `questions` itself where they are enough.
    """
    if 2 * len(set(systems)) <= len(set(questions)) or len(set(systems)) == 1:
        return questions
    with_systems = [f"{system}\n{question}" for system, question in zip(systems, questions, strict=True)]
    near = 0.8 if len(questions) <= NEAR_DUPLICATE_LIMIT else None
    distinct, distinct_questions = (len(np.unique(dedup.groups(texts, near))) for texts in (with_systems, questions))
    return with_systems if distinct > 2 * distinct_questions else questions


def unfilled(texts: Sequence[str], splits: np.ndarray, sizes: Sequence[float], threshold: float | None = 0.8) -> str:
    """Why splits that were requested are empty; "" where all have rows.

    `threshold`: None where only equal texts were kept together.
    """
    empty = [SPLITS[split] for split, size in enumerate(sizes) if size > 0 and not (splits == split).any()]
    if not empty or not len(texts):
        return ""
    largest = int(np.bincount(dedup.groups(texts, threshold)).max())
    alike = "ask nearly the same" if threshold else "ask the same"
    why = f"{largest:,} of {len(texts):,} rows {alike}, and such rows stay in one split"
    return f"no rows for {' and '.join(empty)}: {why if largest > 1 else f'{len(texts)} rows are too few'}"


def folds(texts: Sequence[str], k: int, seed: int = 0, strata: Sequence[str] | None = None) -> np.ndarray:
    """The fold of each row for cross-validation, 0 to k - 1 (int8), equal in size, near-duplicates in one fold.

    Raises:
        UserError: k is under 2, over 100, or more than the number of groups of near-duplicates.
    """
    if not 2 <= k <= 100:
        raise UserError(f"{k} folds: expected 2 to 100")
    found = assign(texts, [1] * k, seed, strata)
    if len(np.unique(found)) < k:
        raise UserError(f"{len(texts)} rows cannot fill {k} folds: near-duplicates stay in one fold; ask for fewer")
    return found


def length_strata(texts: Sequence[str], bins: int = 4) -> list[str]:
    """For each text the name of its length bin; the bins hold about equally many texts."""
    lengths = np.array([len(text) for text in texts])
    cuts = np.unique(np.quantile(lengths, np.arange(1, bins) / bins)) if len(texts) else []
    return [f"length bin {place + 1}" for place in np.searchsorted(cuts, lengths, side="left").tolist()]


def leaks(texts: Sequence[str], splits: np.ndarray, threshold: float = 0.8) -> list[tuple[int, int, float]]:
    """Near-duplicate pairs (i, j, similarity), i < j, whose rows are in different splits.

    All pairs of texts are compared anew; nothing of the grouping is used.
    """
    digest = dedup.digests(texts)
    _, speakers = np.unique(np.stack([digest, splits.astype(np.uint64)]), axis=1, return_index=True)
    speakers = np.sort(speakers)
    split, digest = splits[speakers], digest[speakers]
    pairs = _repeats(speakers, digest)
    chosen: list[int] = speakers.tolist()
    kept = [normalized(texts[place]) for place in chosen]
    for i, j, alike in similarity.join(kept, threshold, lambda i, j: split[i] != split[j]):
        unequal = digest[i] != digest[j]  # equal ones are in `pairs`
        i, j = speakers[i[unequal]], speakers[j[unequal]]
        pairs += zip(np.minimum(i, j).tolist(), np.maximum(i, j).tolist(), alike[unequal].tolist(), strict=True)
    return sorted(pairs)


def _repeats(speakers: np.ndarray, digest: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of rows with one text: speakers of equal digest are in different splits."""
    order = np.lexsort((speakers, digest))
    same = np.flatnonzero(digest[order][1:] == digest[order][:-1])
    return [(int(speakers[order[place]]), int(speakers[order[place + 1]]), 1.0) for place in same.tolist()]


def _shuffled(texts: Sequence[str], group: np.ndarray, seed: int) -> np.ndarray:
    """A random number for each group (uint64), from the texts of its rows and the seed alone."""
    digest = dedup.digests(texts)
    smallest = np.full(group.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, group, digest)
    key = np.random.default_rng(seed).integers(0, 1 << 63, size=2, dtype=np.uint64)
    mixed = smallest ^ key[0]
    for shift in (30, 27, 31):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * (key[1] << np.uint64(1) | np.uint64(1))
    return mixed ^ mixed >> np.uint64(32)


def _place(group: np.ndarray, chance: np.ndarray, sizes: np.ndarray, strata: Sequence[str] | None) -> np.ndarray:
    """The split of each row: whole groups, sizes met in rows; a stratum's rounding is made good by the next one."""
    rows = np.bincount(group)
    stratum = np.zeros(len(rows), dtype=np.int64)
    if strata is not None:
        # A group is whole, whatever the strata of its rows: it counts in the one that its first row has.
        stratum = np.unique(np.asarray(strata), return_inverse=True)[1][np.unique(group, return_index=True)[1]]
    split = np.zeros(len(rows), dtype=np.int8)
    filled, before = np.zeros(len(sizes)), 0
    for name in range(stratum.max(initial=-1) + 1):
        members = np.flatnonzero(stratum == name)
        before += rows[members].sum()
        room = _targets(before, sizes) - filled
        split[members] = _fill(rows[members], chance[members], room)
        filled += np.bincount(split[members], weights=rows[members], minlength=len(sizes))
    return split[group]


def _targets(rows: int, sizes: np.ndarray) -> np.ndarray:
    """Whole rows for each split, in proportion to `sizes`; one that is asked for gets one where there are enough."""
    exact = rows * sizes / sizes.sum()
    whole = np.floor(exact)
    whole[np.argsort(whole - exact, kind="stable")[: round(rows - whole.sum())]] += 1
    for split in np.flatnonzero((sizes > 0) & (whole == 0)):
        if whole.max() > 1:
            whole[whole.argmax()] -= 1
            whole[split] = 1
    return whole


def _fill(rows: np.ndarray, chance: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The split of each group: those of several rows first, each in a split drawn by the room that is left."""
    room = room.copy()
    order = np.lexsort((chance, -rows))
    several = int((rows > 1).sum())
    split = np.zeros(len(rows), dtype=np.int8)
    for place in order[:several].tolist():
        weight = np.where(room >= rows[place], room, 0.0)
        if weight.sum() > 0:
            drawn = chance[place] / 2.0**64 * weight.sum()
            split[place] = min(int(np.searchsorted(np.cumsum(weight), drawn, side="right")), len(room) - 1)
        else:
            split[place] = room.argmax()  # fits nowhere whole: where it overflows least
        room[split[place]] -= rows[place]
    single = order[several:]
    # What a too large group took from its split is taken from the others' room, the roomiest first.
    room = np.maximum(room, 0)
    while room.sum() > len(single):
        room[room.argmax()] -= 1
    room = room.astype(np.int64)
    room[room.argmax()] += len(single) - room.sum()
    split[single] = np.repeat(np.arange(len(room)), room)
    return split
