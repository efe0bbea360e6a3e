"""Where a turn of a marked conversation begins and ends."""

import json
import re
from functools import cached_property
from typing import Any

from tunebook.common.tokens import thinking
from tunebook.common.tokens.chat_templates import ChatTemplate
from tunebook.common.tokens.jinja_templates import Unstable, openings
from tunebook.common.tokens.placeholders import Skeleton, Span, common_prefix, mark

HELD = 4096  # kinds of conversation that are remembered
PLAIN = "ZqzQ"  # an answer where only what stands before it matters
CHANGED = "the template writes what stands before an answer in another way once it is answered"


class Renderings:
    """What one template makes of marked conversations, remembered.

    Args:
        control: matches the tokenizer's control tokens; None where it has none.
    """

    def __init__(self, template: ChatTemplate, control: re.Pattern[str] | None):
        self.template, self.control = template, control
        self._skeletons: dict[str, Skeleton | Unstable] = {}

    def skeleton(self, marked: list[dict], tools: list | None, options: dict[str, Any], open_turn: bool) -> Skeleton:
        key = f"{open_turn}{key_of(marked, tools, options)}"
        if key not in self._skeletons:
            forget(self._skeletons)
            try:
                self._skeletons[key] = (
                    Skeleton(self.template.render(marked, tools, True, options))
                    if open_turn
                    else Skeleton(*self.template.generated(marked, tools, options))
                )
            except Unstable as error:
                self._skeletons[key] = error
        found = self._skeletons[key]
        if isinstance(found, Unstable):
            raise Unstable(str(found))
        return found

    def controls(self, text: str) -> list[Span]:
        return [found.span() for found in self.control.finditer(text)] if self.control else []

    @cached_property
    def open_ended(self) -> bool:
        """Whether the template ends an answer with nothing of its own: the next role's token does (GLM)."""
        for opening in openings():
            marked, _ = mark([*opening, {"role": "assistant", "content": "x"}])
            try:
                return not self.skeleton(marked, None, self.template.options, False).literals[-1].strip()
            except Unstable:
                continue
        return False


class Rendered:
    """The renderings of one marked conversation: its beginnings, closed and opened for the next answer."""

    def __init__(self, renderings: Renderings, marked: list[dict], tools: list | None, options: dict[str, Any]):
        self.of, self.marked, self.tools, self.options = renderings, marked, tools, options

    def skeleton(self, count: int, open_turn: bool = False) -> Skeleton:
        return self.of.skeleton(self.marked[:count], self.tools, self.options, open_turn)

    def stretch(self, place: int, own: set[int], count: int) -> list[Span]:
        """The characters of a turn that train in the rendering of the first `count` turns.

        Raises:
            Unstable: the turn is not there whole, or the text before it is another than where it is to be answered.
        """
        whole, closed = self.skeleton(count), self.skeleton(place + 1)
        first = next((at for at, leaf in enumerate(whole.leaves) if leaf in own), -1)
        begin = next((at for at, leaf in enumerate(closed.leaves) if leaf in own), -1)
        run = closed.leaves[begin:] if begin >= 0 else []
        run = run[: next((at for at, leaf in enumerate(run) if leaf not in own), len(run))]
        if first < 0 or whole.leaves[first : first + len(run)] != run:
            raise Unstable(f"the template changes turn {place + 1} once the conversation goes on")
        marks = [whole.starts[at] - 1 for at in range(first + 1, first + len(run) + 1)]
        if found := self._generated(whole, marks):
            literal, (start, end) = whole.starts[first], found[0]
            return [(literal + self._after_empty(place, whole.literals[first], start - literal), end), *found[1:]]
        start = self._start(place, whole, first)
        end = whole.starts[first + len(run)] + self._end(place, closed, begin + len(run))
        return [(start, end)]

    def _generated(self, whole: Skeleton, marks: list[int]) -> list[Span]:
        """The template's own stretches around the marks; none where they miss one (those of jinja in a macro do)."""
        found = [(a, b) for a, b in whole.generated if any(a <= mark < b for mark in marks)]
        if not all(any(a <= mark < b for a, b in found) for mark in marks):
            return []
        ends = {end for _, end in self.of.controls(whole.text)}
        trimmed = [(a, a + len(whole.text[a:b].rstrip())) for a, b in found]
        return [(a, t if t in ends else b) for (a, b), (_, t) in zip(found, trimmed, strict=True)]

    def _start(self, place: int, whole: Skeleton, first: int) -> int:
        """Where the turn begins whose first mark is the `first`: after what the template opens an answer with."""
        literal, at = whole.literals[first], whole.starts[first]
        try:
            opening = self.skeleton(place, open_turn=True)
        except Unstable:  # a template may refuse an unanswered question
            plain = [*self.marked[:place], {"role": "assistant", "content": PLAIN}]
            text = self.of.skeleton(plain, self.tools, self.options, False).text
            opening = Skeleton(text[: text.index(PLAIN)])
        header = opening.literals[-1]
        shared = common_prefix(literal, header)
        before = opening.text[: len(opening.text) - len(header) + shared]
        if not shared or whole.text[: at + shared] != before:
            dropped = set(opening.leaves) - set(whole.leaves)
            if not shared or not dropped:
                raise Unstable(CHANGED)
        inside = [a for a, b in self.of.controls(literal) if a < shared < b]
        shared = inside[0] if inside else shared
        return at + self._after_empty(place, literal, shared)

    def _after_empty(self, place: int, literal: str, shared: int) -> int:
        """Past a block of thinking that the template writes where a turn has none: the prompt without thinking has it,
        and a model that is to think must not learn it."""
        turn = self.marked[place]
        if thinking.has_block(turn):
            return shared
        opening, closing = self.of.template.thinking_places[bool(turn.get("tool_calls"))].tags
        blocks = re.finditer(rf"{re.escape(opening)}\s*{re.escape(closing)}", literal)
        end = next((found.end() for found in blocks if found.end() > shared), 0)
        if not end:
            return shared
        options = self.options | {"enable_thinking": False}
        header = self.of.skeleton(self.marked[:place], self.tools, options, True).literals[-1]
        return len(header) if literal.startswith(header) and len(header) >= end else end

    def _end(self, place: int, closed: Skeleton, after: int) -> int:
        """How many characters of the literal after the turn's last mark train, where the turn is the last."""
        tail = closed.literals[after]
        try:
            going_on = self.skeleton(place + 1, open_turn=True).literals[-1]
        except Unstable:
            going_on = tail
        shared = tail[: common_prefix(tail, going_on)]
        ends = [end for _, end in self.of.controls(tail)]
        inside = [end for end in ends if end <= len(shared)] or ends
        return inside[-1] if inside and not self.of.open_ended else len(shared.rstrip())


def key_of(marked: list[dict], tools: list | None, options: dict[str, Any]) -> str:
    # A plain turn is its role and its mark, so that few rows need more than that.
    turns = [f"{turn['role']} {turn['content']}" if len(turn) == 2 else turn for turn in marked]
    plain = [turn for turn in turns if isinstance(turn, str)]
    if not tools and not options and len(plain) == len(turns):
        return "\0".join(plain)
    return json.dumps([turns, tools, options], default=str)


def forget(held: dict) -> None:
    if len(held) >= HELD:
        held.clear()
