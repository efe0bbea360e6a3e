"""Lengths of encoded rows, in tokens: read from their Arrow columns, and counted for a report."""

from typing import Any

from tunebook.common.data.statistics import spread

IGNORE_INDEX = -100  # the label of a token that does not train, as in torch's cross entropy
LOSS_WEIGHTS = "loss_weights"  # the column of encoded rows, and the entry of batches, with what labels weigh
CANDIDATES = (256, 512, 1024, 2048, 4096)  # lengths people train at


def lengths_of(dataset: Any) -> Any:
    """int64 (N,): tokens of each row of a datasets.Dataset with lists `input_ids`."""
    import numpy

    ids = dataset.select_columns("input_ids").with_format("arrow")
    parts = [batch["input_ids"].combine_chunks().value_lengths() for batch in ids.iter(batch_size=10_000)]
    return numpy.concatenate([numpy.zeros(0, numpy.int64), *parts]).astype(numpy.int64)


def token_counts(dataset: Any) -> tuple[Any, Any]:
    """Tokens of each encoded row and how many of them train: two int64 arrays."""
    import numpy as np

    total, trained = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in dataset.with_format("arrow").iter(batch_size=10_000):
        labels = batch["labels"].combine_chunks()
        starts = labels.offsets.to_numpy().astype(np.int64)
        flat = labels.values.to_numpy()[: starts[-1]] != IGNORE_INDEX
        before = np.concatenate(([0], np.cumsum(flat)))
        total.append(np.diff(starts))
        trained.append(before[starts[1:]] - before[starts[:-1]])
    return np.concatenate(total), np.concatenate(trained)


def token_statistics(total: Any, trained: Any) -> dict[str, Any]:
    """Token counts of encoded rows: spreads, the trained share, and what each candidate length would cost.

    Args:
        total, trained: int arrays as `token_counts` gives them.

    Returns:
        rows, tokens, trained_tokens, trained_share, spread, trained_spread, and cuts: a list of
        {"max_length", "rows_over", "rows_share", "dropped_share", "cut_share"}; the last two are shares of all tokens
        lost where longer rows are dropped, or cut.
    """
    import numpy as np

    every = int(total.sum())
    cuts = []
    for limit in CANDIDATES:
        over = total[total > limit]
        share = 1 / (every or 1)
        cuts.append(
            {
                "max_length": limit,
                "rows_over": int(over.size),
                "rows_share": over.size / (total.size or 1),
                "dropped_share": float(over.sum() * share),
                "cut_share": float((over - limit).sum() * share),
            }
        )
    return {
        "rows": int(total.size),
        "tokens": every,
        "trained_tokens": int(trained.sum()),
        "trained_share": float(np.sum(trained) / (every or 1)),
        "spread": spread(total),
        "trained_spread": spread(trained),
        "cuts": cuts,
    }


def histogram(values: Any, bins: int = 40) -> dict[str, Any]:
    """Counts in equal steps up to the 99.5th percentile; what lies above is in the last bar.

    Returns:
        {"step": width of a bar, "counts": [int], "beyond": how many of the last bar lie above it}.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=np.int64)
    if not numbers.size:
        return {"step": 1, "counts": [], "beyond": 0}
    top = max(float(np.percentile(numbers, 99.5)), 1.0)
    step = int(top) // bins + 1
    places = np.minimum(numbers // step, bins - 1)
    counts = np.bincount(places, minlength=1)
    return {"step": step, "counts": counts.tolist(), "beyond": int((numbers >= step * bins).sum())}
