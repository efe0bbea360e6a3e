"""Rows that train and are held out, too: what is measured on them is memory."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from common.columns import NAMES

CONTENT = sorted(NAMES | {"rejected"})  # what a model sees of a row


def digest(row: dict[str, Any]) -> bytes:
    """16 bytes that stand for what is asked and answered in a row, wherever it is from."""
    content = repr([row.get(name) or None for name in CONTENT])
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def notes(sides: Mapping[str, Iterable[dict[str, Any]]]) -> list[str]:
    """A line for each of validation and test that holds rows of train, equal in all that a model sees of them.

    Args:
        sides: rows of `train`, which are gone through once, and of the others.
    """
    held = {side: [(digest(row), row.get("row")) for row in sides[side]] for side in ("validation", "test")}
    wanted = {key for rows in held.values() for key, _ in rows}
    trained = {key for row in sides["train"] if wanted and (key := digest(row)) in wanted}
    found = []
    for side, rows in held.items():
        places = [place for key, place in rows if key in trained]
        if places:
            found.append(
                f"warning: {len(places)} of {len(rows)} {side} rows are training rows, too (the first is row "
                f"{places[0]}): scores on them say what was memorized. Take them out of one side, or give one file and "
                "let it be split"
            )
    return found
