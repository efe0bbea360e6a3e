"""Training rows that are in validation or test, too."""

from collections.abc import Iterable, Mapping

from tunebook.common.data.rows import Row, content
from tunebook.common.data.texts import digest


def key(row: Row) -> bytes:
    """16 bytes that stand for what is asked and answered in a row, wherever it is from; of a pair, both answers."""
    other = row.get("rejected")
    return digest(content(row) + (content(other) if isinstance(other, dict) else ""))


def notes(splits: Mapping[str, Iterable[Row]]) -> list[str]:
    """A line for each of validation and test that holds rows of train, equal in all that a model sees of them."""
    heldout = {split: [(key(row), row.get("row")) for row in splits[split]] for split in ("validation", "test")}
    heldout_keys = {identity for rows in heldout.values() for identity, _ in rows}
    overlapping = {identity for row in splits["train"] if heldout_keys and (identity := key(row)) in heldout_keys}
    lines = []
    for split, rows in heldout.items():
        places = [place for identity, place in rows if identity in overlapping]
        if places:
            lines.append(
                f"warning: {len(places)} of {len(rows)} {split} rows are training rows, too (the first is row "
                f"{places[0]}): scores on them say what was memorized. Take them out of one split, or give one file "
                "and let it be split"
            )
    return lines
