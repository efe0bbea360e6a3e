"""Texts of a conversation replaced by marks, to see what a template does with each of them."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from tunebook.common.tokens import thinking

Span = tuple[int, int]
MARK = re.compile(r"Zq(\d+)zQ")  # letters and digits: no filter of a template changes them


class Leaf(NamedTuple):
    """A text of a conversation: `turn` counts from 0; `what` is text, thinking or call."""

    turn: int
    what: str
    value: str


def mark(turns: list[dict], roles: tuple[str, ...] = ()) -> tuple[list[dict], list[Leaf]]:
    """The conversation with a mark for every text that a template could write, and the texts in their order.

    The marks of a conversation's first turns are the same however it goes on. Blank texts stay, as templates ask
    whether a text is empty; so do numbers, argument and tool names, and the ids of calls. `roles`: the turns to mark;
    () marks all.
    """
    leaves: list[Leaf] = []

    def put(turn: int, what: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(turn, what, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [put(turn, what, inner) for inner in value]
        if not isinstance(value, str) or not value.strip():
            return value
        leaves.append(Leaf(turn, what, value))
        return f"Zq{len(leaves) - 1}zQ"

    found = []
    for place, turn in enumerate(turns):
        said = turn.get("content")
        if len(turn) == 2 and not roles and said and not said.isspace() and thinking.CLOSE not in said:
            leaves.append(Leaf(place, "text", said))  # most turns are a role and a text
            found.append({"role": turn["role"], "content": f"Zq{len(leaves) - 1}zQ"})
            continue
        if roles and turn["role"] not in roles:
            found.append(turn)
            continue
        new = dict(turn)
        if turn["role"] == "assistant":
            for key in thinking.KEYS:
                if key in turn:
                    new[key] = put(place, "thinking", turn[key])
        parts = thinking.split(turn.get("content")) if turn["role"] == "assistant" else None
        if parts:
            opening, thought, closing, said = parts
            new["content"] = opening + put(place, "thinking", thought) + closing + put(place, "text", said)
        elif "content" in turn:
            new["content"] = put(place, "text", turn["content"])
        if turn.get("tool_calls"):
            new["tool_calls"] = [_called(call, partial(put, place, "call")) for call in turn["tool_calls"]]
        found.append(new)
    return found, leaves


def _called(call: Any, put: Any) -> Any:
    """A call with marks for its function's name and for the texts in its arguments."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _called(call["function"], put)}
    return {key: put(value) if key in ("name", "arguments") else value for key, value in call.items()}


@dataclass(frozen=True)
class Skeleton:
    """What a template makes of a marked conversation: its own text around the marks.

    Attributes:
        text: the rendering.
        generated: stretches of it that the template itself calls the assistant's.
    """

    text: str
    generated: list[Span] = field(default_factory=list)

    @cached_property
    def literals(self) -> list[str]:
        """The template's own texts: before the first mark, between two, after the last."""
        return MARK.split(self.text)[::2]

    @cached_property
    def leaves(self) -> list[int]:
        """The leaf that each mark stands for."""
        return [int(number) for number in MARK.split(self.text)[1::2]]

    @cached_property
    def starts(self) -> list[int]:
        """Where each of the literals begins in the text."""
        return [0, *(found.end() for found in MARK.finditer(self.text))]

    def place(self, position: int) -> tuple[int, int]:
        """(literal, offset in it) of a position in the text.

        Raises:
            ValueError: it is inside a mark.
        """
        for number in reversed(range(len(self.starts))):
            if self.starts[number] <= position:
                offset = position - self.starts[number]
                if offset > len(self.literals[number]):
                    raise ValueError("a position inside a mark")
                return number, offset
        raise ValueError("a position before the text")

    def align(self, text: str, leaves: list[Leaf]) -> tuple[list[int] | None, int]:
        """Where each literal begins in a real rendering that is this one with the leaves' texts in it.

        Returns:
            The places, or None where the rendering is another; and the number of marks up to which it is this one.
        """
        if not text.startswith(self.literals[0]):
            return None, 0
        if not self.leaves:
            return ([0], 0) if text == self.literals[0] else (None, 0)
        values = [leaves[leaf].value for leaf in self.leaves]
        places, best = [0], 0
        options = [self._ends(text, values, 0, len(self.literals[0]))]
        while options:
            after = next(options[-1], None)
            if after is None:
                options.pop()
                places.pop()
                continue
            best = max(best, len(options))
            end = after + len(self.literals[len(options)])
            if len(options) < len(values):
                places.append(after)
                options.append(self._ends(text, values, len(options), end))
            elif end == len(text):
                return [*places, after], best
        return None, best

    def _ends(self, text: str, values: list[str], number: int, at: int) -> Iterator[int]:
        """Where the text of a mark that begins at `at` may end, so that the literal after it follows."""
        following = self.literals[number + 1]
        for form in forms(values[number]):
            if text.startswith(form, at) and text.startswith(following, at + len(form)):
                yield at + len(form)


def forms(value: str) -> Iterator[str]:
    """How templates write a text: as it is, without white space around it, as JSON."""
    seen = set()
    yield value
    seen.add(value)
    stripped = (cut(chars) for chars in (None, "\n") for cut in (value.strip, value.lstrip, value.rstrip))
    for form in (*stripped, *(json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (False, True))):
        if form not in seen:
            seen.add(form)
            yield form


def common_prefix(one: Sequence, two: Sequence) -> int:
    """The number of leading characters or ids that two sequences share."""
    if two[: len(one)] == one:
        return len(one)
    return next((place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
