"""Several sources mixed by rows or by tokens, no row twice, shuffled by seed."""

from typing import TYPE_CHECKING, Any

from tunebook.common.errors import UserError
from tunebook.common.tokens.lengths import lengths_of

if TYPE_CHECKING:
    import datasets
    import numpy

Share = float | int | None
BATCH = 10_000  # rows whose lengths are read at once


def mix(
    dataset: "datasets.Dataset", weights: dict[str, Share], unit: str = "rows", seed: int = 0
) -> "tuple[datasets.Dataset, dict[str, dict[str, int]]]":
    """The rows that make the mix, in a random order, and how many of each source they are.

    Args:
        weights: source -> an int (so many rows, or all if there are fewer), a float up to 1.0 (a share of what is left
            beside the counted rows; they need not add up to 1), or None: beside shares what they leave of 1, otherwise
            all rows. A share with no other beside it is of its own rows.
        unit: what shares are of, "rows" or "tokens". The total is the most that the scarcest source allows, so that no
            row comes twice; token shares hold to within a row.

    Returns:
        (the mix; {source: {"rows", "tokens", "of_rows"} and, where too few rows are there, "asked"}). One source with
        no share is returned as it is.

    Raises:
        UserError: a source of which no row is left, or shares that leave nothing to one without.
    """
    import numpy as np

    if unit not in ("rows", "tokens"):
        raise UserError(f"shares={unit}: shares count rows or tokens")
    names, codes = _sources(dataset)
    lengths = lengths_of(dataset)
    if strangers := set(names) - weights.keys():
        raise ValueError(f"rows of {', '.join(sorted(strangers))}, which has no entry in weights")
    places = {source: np.flatnonzero(codes == names.get(source, -1)) for source in weights}
    if empty := [source for source in weights if not len(places[source])]:
        raise UserError(f"--dataset {', '.join(empty)}: no row is left for the mix after preparation")
    if all(share is None for share in weights.values()) and len(weights) == 1:
        return dataset, {source: _count(rows, rows, lengths) for source, rows in places.items()}
    generator = np.random.default_rng(seed)
    order = {source: generator.permutation(rows) for source, rows in places.items()}
    taken = _take(order, _weights(weights), weights, lengths if unit == "tokens" else np.ones_like(lengths))
    report = {}
    for source, share in weights.items():
        report[source] = _count(taken[source], places[source], lengths)
        if isinstance(share, int) and share > len(places[source]):
            report[source]["asked"] = share
    chosen = generator.permutation(np.concatenate(list(taken.values())))
    print(summary(report))
    return dataset.select(chosen), report


def summary(report: dict[str, dict[str, int]]) -> str:
    """What was mixed, for people: `a.json 700 of 900 rows (61.2 % of tokens), ...`."""
    tokens = max(1, sum(entry["tokens"] for entry in report.values()))
    return ", ".join(
        f"{source} {entry['rows']:,} of {entry['of_rows']:,} rows"
        + (f", {entry['asked']:,} were asked for" if "asked" in entry else "")
        + f" ({entry['tokens'] / tokens:.1%} of tokens)"
        for source, entry in report.items()
    )


def _count(taken: "numpy.ndarray", of: "numpy.ndarray", lengths: "numpy.ndarray") -> dict[str, int]:
    return {"rows": len(taken), "tokens": int(lengths[taken].sum()), "of_rows": len(of)}


def _sources(dataset: "datasets.Dataset") -> tuple[dict[str, int], Any]:
    """Source name -> code, and each row's code, int64."""
    import numpy as np

    names: dict[str, int] = {}
    codes = [np.empty(0, np.int64)]
    for table in dataset.select_columns("source").with_format("arrow").iter(batch_size=BATCH):
        encoded = table["source"].combine_chunks().dictionary_encode()  # type: ignore[index]
        own = np.array([names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()], np.int64)
        codes.append(own[encoded.indices.to_numpy()])
    return names, np.concatenate(codes)


def _weights(shares: dict[str, Share]) -> dict[str, float]:
    """Source -> weight, for the sources that have a share or get what is left of 1."""
    weights = {source: float(share) for source, share in shares.items() if isinstance(share, float)}
    without = [source for source, share in shares.items() if share is None]
    if weights and without:
        left = 1 - sum(weights.values())
        if left <= 1e-9:
            raise UserError(
                f"--dataset: the shares leave nothing for {', '.join(without)}; give it one, or less to others"
            )
        weights |= dict.fromkeys(without, left / len(without))
    return weights


def _take(order: dict, weights: dict[str, float], shares: dict[str, Share], size: Any) -> dict[str, Any]:
    """Of each source's rows in their random order the first ones that make its share of `size`, summed."""
    import numpy as np

    taken = {source: rows[: shares[source]] for source, rows in order.items() if source not in weights}
    if not weights:
        return taken
    sums = {source: np.cumsum(size[order[source]]) for source in weights}
    alone = len(weights) == 1  # a share with no other to weigh against is of its own rows
    total = min(sums[source][-1] / (1 if alone else weight) for source, weight in weights.items())
    for source, weight in weights.items():
        target, sizes = total * weight, sums[source]
        after = int(np.searchsorted(sizes, target - 1e-6))  # sizes[after] is the first sum that reaches the target
        before = sizes[after - 1] if after else 0
        nearer = after + (after < len(sizes) and sizes[min(after, len(sizes) - 1)] - target <= target - before)
        taken[source] = order[source][: max(1, nearer)]
    return {source: taken[source] for source in order}
