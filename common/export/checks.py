"""What the proof says: one line a check, with its bound, and a sentence where it fails."""

from dataclasses import asdict, dataclass
from typing import Any

from tunebook.common import format

FINER = "keep more bits (--dtype float16, --quantization f16), or export the adapter"


@dataclass
class Check:
    """
    Attributes:
        point: 1 prompts, 2 turns, 3 weights, 4 probabilities, 5 answers; as in docs/export.md.
        failure: a sentence for the user; "" where it holds.
    """

    point: int
    name: str
    value: str
    bound: str
    failure: str = ""

    @property
    def holds(self) -> bool:
        return not self.failure


def table(checks: list[Check]) -> str:
    """The proof as a table for a terminal."""
    rows = [
        (str(check.point), check.name, check.value, check.bound, "ok" if check.holds else "FAILED") for check in checks
    ]
    return format.table(("point", "check", "found", "bound", ""), rows, left=(0, 1, 2, 3, 4))


def as_dicts(checks: list[Check]) -> list[dict[str, Any]]:
    return [{**asdict(check), "holds": check.holds} for check in checks]


def failures(checks: list[Check]) -> list[str]:
    return [check.failure for check in checks if check.failure]
