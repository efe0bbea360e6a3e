"""What is wrong with a source of rows: collected, and raised once."""

from typing import Any

from common.cli import UserError

SHOWN = 10  # problems that a message lists; the rest are counted


def sort(value: Any) -> str:
    """What a value is, in a reader's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


class Problems:
    """What is wrong in a source: the first ten in full, the rest as a count, all in one error."""

    def __init__(self, source: str):
        self.source, self.first, self.count, self.expected = source, [], 0, "it cannot be read as rows"

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(text)

    def stop(self) -> None:
        """Raises UserError if there were any."""
        if self.count:
            more = f"\n  and {self.count - SHOWN} more" if self.count > SHOWN else ""
            listed = "\n  ".join(self.first)
            message = f"--dataset {self.source}: {self.expected}\n  {listed}{more}"
            # A name that is quoted may hold half a character, which a terminal refuses.
            raise UserError(message.encode("utf-8", "backslashreplace").decode())
