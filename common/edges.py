"""Where a turn of a marked conversation begins and ends: by its renderings up to that turn."""

import re
from typing import TYPE_CHECKING, Any

from common import thinking
from common.chats import Unstable
from common.marks import Leaf, Skeleton, Span, common_prefix

if TYPE_CHECKING:
    from common.stretches import Proof, Prover

PLAIN = "ZqzQ"  # an answer where only what stands before it matters
CHANGED = "the template writes what stands before an answer in another way once it is answered"


class Rendered:
    """The renderings of one marked conversation: its beginnings, closed and opened for the next answer."""

    def __init__(self, prover: "Prover", marked: list[dict], tools: list | None, options: dict[str, Any]):
        self.prover, self.marked, self.tools, self.options = prover, marked, tools, options

    def skeleton(self, count: int, open_turn: bool = False) -> Skeleton:
        return self.prover.skeleton(self.marked[:count], self.tools, self.options, open_turn)

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
        ends = {end for _, end in self.prover.controls(whole.text)}
        trimmed = [(a, a + len(whole.text[a:b].rstrip())) for a, b in found]
        return [(a, t if t in ends else b) for (a, b), (_, t) in zip(found, trimmed, strict=True)]

    def _start(self, place: int, whole: Skeleton, first: int) -> int:
        """Where the turn begins whose first mark is the `first`: after what the template opens an answer with."""
        literal, at = whole.literals[first], whole.starts[first]
        try:
            opening = self.skeleton(place, open_turn=True)
        except Unstable:  # a template may refuse an unanswered question
            plain = [*self.marked[:place], {"role": "assistant", "content": PLAIN}]
            text = self.prover.skeleton(plain, self.tools, self.options, False).text
            opening = Skeleton(text[: text.index(PLAIN)])
        header = opening.literals[-1]
        shared = common_prefix(literal, header)
        before = opening.text[: len(opening.text) - len(header) + shared]
        if not shared or whole.text[: at + shared] != before:
            dropped = set(opening.leaves) - set(whole.leaves)
            if not shared or not dropped:
                raise Unstable(CHANGED)
        inside = [a for a, b in self.prover.controls(literal) if a < shared < b]
        shared = inside[0] if inside else shared
        return at + self._after_empty(place, literal, shared)

    def _after_empty(self, place: int, literal: str, shared: int) -> int:
        """Past a block of thinking that the template writes where a turn has none: the prompt without thinking has it,
        and a model that is to think must not learn it."""
        turn = self.marked[place]
        if thinking.has_block(turn):
            return shared
        opening, closing = self.prover.template.thinking_places[bool(turn.get("tool_calls"))].tags
        blocks = re.finditer(rf"{re.escape(opening)}\s*{re.escape(closing)}", literal)
        end = next((found.end() for found in blocks if found.end() > shared), 0)
        if not end:
            return shared
        options = self.options | {"enable_thinking": False}
        header = self.prover.skeleton(self.marked[:place], self.tools, options, True).literals[-1]
        return len(header) if literal.startswith(header) and len(header) >= end else end

    def _end(self, place: int, closed: Skeleton, after: int) -> int:
        """How many characters of the literal after the turn's last mark train, where the turn is the last."""
        tail = closed.literals[after]
        try:
            going_on = self.skeleton(place + 1, open_turn=True).literals[-1]
        except Unstable:
            going_on = tail
        shared = tail[: common_prefix(tail, going_on)]
        ends = [end for _, end in self.prover.controls(tail)]
        inside = [end for end in ends if end <= len(shared)] or ends
        return inside[-1] if inside and not self.prover.open_ended else len(shared.rstrip())

    def explain(self, proof: "Proof", leaves: list[Leaf]) -> None:
        """Say of texts that are there while the question is open, but not once it is answered, that they are."""
        answers = [place for place, turn in enumerate(self.marked) if turn["role"] == "assistant"]
        try:
            opened = set(self.skeleton(answers[-1], open_turn=True).leaves) if answers else set()
        except Unstable:
            return
        for number in proof.lost:
            role = self.marked[leaves[number].turn]["role"]
            if number in opened and role in ("system", "developer"):
                proof.lost[number] = (
                    f"the template leaves out the {role} text once it is answered; put it into the first question"
                )
