"""Rows that train and are held out, too: what is measured on them is memory."""

from collections.abc import Iterable, Mapping

from tunebook.common.data.rows import Row, content
from tunebook.common.data.texts import digest


def key(row: Row) -> bytes:
    """16 bytes that stand for what is asked and answered in a row, wherever it is from; of a pair, both answers."""
    other = row.get("rejected")
    return digest(content(row) + (content(other) if isinstance(other, dict) else ""))


def notes(sides: Mapping[str, Iterable[Row]]) -> list[str]:
    """A line for each of validation and test that holds rows of train, equal in all that a model sees of them.

    Args:
        sides: rows of `train`, which are gone through once, and of the others.
    """
    held = {side: [(key(row), row.get("row")) for row in sides[side]] for side in ("validation", "test")}
    wanted = {one for rows in held.values() for one, _ in rows}
    trained = {one for row in sides["train"] if wanted and (one := key(row)) in wanted}
    found = []
    for side, rows in held.items():
        places = [place for one, place in rows if one in trained]
        if places:
            found.append(
                f"warning: {len(places)} of {len(rows)} {side} rows are training rows, too (the first is row "
                f"{places[0]}): scores on them say what was memorized. Take them out of one side, or give one file and "
                "let it be split"
            )
    return found
