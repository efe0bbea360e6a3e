"""Errors that end a command: invalid input (exit code 2), a failed check (1); faults of many rows in one message."""

import difflib
import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 10  # faults that a message lists; the rest are counted
EXAMPLES = 3  # dropped rows that are told in words
LONGEST = 400  # characters of a library's own words
REMEDY = "--bad_rows drop leaves such rows out and counts them (recipes, inspect, split, augment)"


class UserError(Exception):
    """Bad input: the message names the place and the remedy. The command ends with exit code 2."""


class CheckFailed(Exception):
    """The command ran and the answer is no. The command ends with exit code 1."""


def cannot_load(what: str, error: Exception) -> UserError:
    """The message for `what` (a flag and its value), which a library could not load."""
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason or "custom code" in reason:
        reason = (
            "it comes with Python code of its own (auto_map in a config file), which is never run. Take a model whose "
            "type transformers knows, or save it as one: remove auto_map and name a known model_type"
        )
    elif isinstance(error, pickle.UnpicklingError):
        reason = "its weights are a pickle that holds more than tensors; nothing of it was run. Take safetensors"
    elif not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        reason = f"{type(error).__name__}: {reason}; a file of it may be damaged"  # of a KeyError it is a bare name
    if len(reason) > LONGEST:
        reason = reason[:LONGEST] + " ..."
    return UserError(f"{what} cannot be loaded: {reason}")


def nearest(name: str, known: Iterable[str]) -> str:
    """', nearest is X' for a message, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest is {matches[0]}" if matches else ""


def type_name(value: Any) -> str:
    """What a value is, in a reader's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def counted(rows: int) -> str:
    """1 row, 2 rows."""
    return f"{rows:,} row" + "s" * (rows != 1)


def first_lines(lines: Sequence[str], total: int | None = None) -> str:
    """The first ten of `total` lines, indented for a message, and how many more there are."""
    more = (len(lines) if total is None else total) - SHOWN
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def first_names(names: Sequence[str], shown: int = SHOWN) -> str:
    """a, b and 3 more."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


class RowErrors:
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
            remedy = f"\n  {REMEDY}" if self.of_rows == self.count else ""
            message = f"--dataset {self.source}: {self.expected}{first_lines(self.first, self.count)}{remedy}"
            # A name that is quoted may hold half a character, which a terminal refuses.
            raise UserError(message.encode("utf-8", "backslashreplace").decode())

    def left(self) -> str:
        """What was dropped, in words; "" where nothing was."""
        if not self.dropped:
            return ""
        reasons = ", ".join(f"{rows:,} as {reason}" for reason, rows in self.dropped.items())
        text = f"{counted(self.dropped.total())} dropped: {reasons}; such as {'; '.join(self.examples)}"
        return text.encode("utf-8", "backslashreplace").decode()


class Part:
    """The problems of one of several files, each told with the file's name."""

    def __init__(self, whole: RowErrors, name: str):
        self.whole, self.name = whole, name

    def add(self, text: str) -> None:
        self.whole.add(f"{self.name}: {text}")

    def skip(self, text: str, reason: str = "unreadable") -> None:
        self.whole.skip(f"{self.name}: {text}", reason)
