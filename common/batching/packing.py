"""Packing: rows concatenated into sequences of at most max_length tokens."""

from collections.abc import Sequence
from typing import Any

from tunebook.common.tokens.lengths import LOSS_WEIGHTS


def pack(lengths: Sequence[int] | Any, max_length: int) -> list[list[int]]:
    """Row indices by bin, by best-fit decreasing: the longest row first, each into the fullest bin that takes it.

    Memory and time grow with the number of rows alone (Johnson 1973; at most 11/9 of the fewest bins + 4).

    Raises:
        ValueError: a row is longer than max_length, or has no token.
    """
    import numpy

    sizes = numpy.asarray(lengths, dtype=numpy.int64)
    if len(sizes) and (sizes.max() > max_length or sizes.min() < 1):
        raise ValueError(f"rows have {sizes.min()} to {sizes.max()} tokens; a bin takes 1 to {max_length}")
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(max_length)]  # room -> bins that have it
    rooms = 0  # bit r is set where with_room[r] holds a bin
    for place in numpy.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[place])
        fits = rooms >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1  # the least room that is enough
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = max_length, len(bins)
            bins.append([])
        bins[chosen].append(place)
        left = room - size
        if left:
            with_room[left].append(chosen)
            rooms |= 1 << left
    return bins


def pack_dataset(dataset: Any, max_length: int) -> Any:
    """The encoded rows of encoding.encode in bins of at most max_length tokens.

    Returns:
        A datasets.Dataset with int32 lists `input_ids` and `labels`, the documents of a bin one after the other, and
        `seq_lengths`, their lengths; and float32 lists `loss_weights` where rows have weights.
    """
    import secrets

    import datasets
    import numpy
    import pyarrow

    table = dataset.with_format("arrow")[:]
    ids = table["input_ids"].combine_chunks()
    lengths = ids.value_lengths().to_numpy()
    bins = pack(lengths, max_length)
    order = numpy.array([place for members in bins for place in members], dtype=numpy.int64)
    rows = numpy.concatenate([[0], numpy.cumsum([len(members) for members in bins], dtype=numpy.int64)])
    tokens = numpy.concatenate([[0], numpy.cumsum(lengths[order], dtype=numpy.int64)])[rows]
    ends = pyarrow.array(tokens.astype(numpy.int32))
    columns = {
        name: pyarrow.ListArray.from_arrays(ends, table[name].combine_chunks().take(pyarrow.array(order)).flatten())
        for name in ("input_ids", "labels")
    }
    if LOSS_WEIGHTS in dataset.column_names:  # rows without weights of their own have 1
        row_weights = table[LOSS_WEIGHTS].combine_chunks().take(pyarrow.array(order))
        has_weights = numpy.repeat(row_weights.value_lengths().to_numpy() > 0, lengths[order])
        weights = numpy.ones(len(has_weights), numpy.float32)
        weights[has_weights] = row_weights.flatten().to_numpy()
        columns[LOSS_WEIGHTS] = pyarrow.ListArray.from_arrays(ends, pyarrow.array(weights))
    sizes = pyarrow.array(lengths[order].astype(numpy.int32))
    columns["seq_lengths"] = pyarrow.ListArray.from_arrays(pyarrow.array(rows.astype(numpy.int32)), sizes)
    return datasets.Dataset(pyarrow.table(columns), fingerprint=secrets.token_hex(8))
