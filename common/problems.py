"""What is wrong with a source of rows: collected, and raised once; of single rows that are dropped, counted."""

from collections import Counter
from typing import Any

from common.cli import UserError

SHOWN = 10  # problems that a message lists; the rest are counted
EXAMPLES = 3  # dropped rows that are told in words
REMEDY = "--bad_rows drop leaves such rows out and counts them (recipes, inspect, split, augment)"


def sort(value: Any) -> str:
    """What a value is, in a reader's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


class Problems:
    """What is wrong in a source: the first ten in full, the rest as a count, all in one error.

    Args:
        drop: rows that are wrong by themselves are counted in `dropped` by reason, not raised.
    """

    def __init__(self, source: str, drop: bool = False):
        self.source, self.drop = source, drop
        self.first, self.count, self.of_rows, self.expected = [], 0, 0, "it cannot be read as rows"
        self.dropped: Counter[str] = Counter()
        self.examples: list[str] = []

    def add(self, text: str) -> None:
        """Add what keeps the source from being read to its end."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(text)

    def skip(self, text: str, reason: str = "unreadable") -> None:
        """Add what is wrong with one row, after which the next can be read."""
        if self.drop:
            self.dropped[reason] += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(text)
        else:
            self.of_rows += 1
            self.add(text)

    def stop(self) -> None:
        """Raises UserError if there were any."""
        if self.count:
            more = f"\n  and {self.count - SHOWN} more" if self.count > SHOWN else ""
            remedy = f"\n  {REMEDY}" if self.of_rows == self.count else ""
            listed = "\n  ".join(self.first)
            message = f"--dataset {self.source}: {self.expected}\n  {listed}{more}{remedy}"
            # A name that is quoted may hold half a character, which a terminal refuses.
            raise UserError(message.encode("utf-8", "backslashreplace").decode())

    def left(self) -> str:
        """What was dropped, in words; empty where nothing was."""
        if not self.dropped:
            return ""
        reasons = ", ".join(f"{rows:,} as {reason}" for reason, rows in self.dropped.items())
        text = f"{counted(self.dropped.total())} dropped: {reasons}; such as {'; '.join(self.examples)}"
        return text.encode("utf-8", "backslashreplace").decode()


def counted(rows: int) -> str:
    """1 row, 2 rows."""
    return f"{rows:,} row" + "s" * (rows != 1)


class Part:
    """The problems of one of several files, each told with the file's name."""

    def __init__(self, whole: Problems, name: str):
        self.whole, self.name = whole, name

    def add(self, text: str) -> None:
        self.whole.add(f"{self.name}: {text}")

    def skip(self, text: str, reason: str = "unreadable") -> None:
        self.whole.skip(f"{self.name}: {text}", reason)
