"""Rows that train and are held out, too: what is measured on them is memory."""

from collections.abc import Iterable, Mapping

from tunebook.common.data.rows import Row, content
from tunebook.common.data.texts import digest


def key(row: Row) -> bytes:
    """16 bytes that stand for what is asked and answered in a row, wherever it is from; of a pair, both answers."""
    other = row.get("rejected")
    return digest(content(row) + (content(other) if isinstance(other, dict) else ""))


def notes(splits: Mapping[str, Iterable[Row]]) -> list[str]:
    """A line for each of validation and test that holds rows of train, equal in all that a model sees of them.

    Args:
        splits: rows of `train`, which are gone through once, and of the others.
    """
    held = {split: [(key(row), row.get("row")) for row in splits[split]] for split in ("validation", "test")}
    wanted = {one for rows in held.values() for one, _ in rows}
    trained = {one for row in splits["train"] if wanted and (one := key(row)) in wanted}
    found = []
    for split, rows in held.items():
        places = [place for one, place in rows if one in trained]
        if places:
            found.append(
                f"warning: {len(places)} of {len(rows)} {split} rows are training rows, too (the first is row "
                f"{places[0]}): scores on them say what was memorized. Take them out of one split, or give one file "
                "and let it be split"
            )
    return found
