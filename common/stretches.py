"""Which characters of a rendered conversation the model is to write: proved for each kind of conversation and each row.

A conversation is rendered with marks in place of its texts (common/marks.py). What a turn trains is then read off the
template's own text around its marks: it begins where the header ends that the template opens a turn with, and ends
with the token that ends the turn, as where the turn is the last. The real rendering must be the marked one with the
texts in it. A turn that is written in another way once the conversation goes on (Qwen3 and gpt-oss drop its thinking)
is found by comparing, and trains in a sequence of its own that ends with it.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from common import chats, thinking
from common.chats import Unstable
from common.marks import Leaf, Skeleton, Span, common_prefix, mark

if TYPE_CHECKING:
    from common.templates import ChatTemplate

HELD = 4096  # kinds of conversation that are remembered
Place = tuple[int, int]  # a literal of a skeleton, and an offset in it
PLAIN = "ZqzQ"  # an answer where only what stands before it matters
CHANGED = "the template writes what stands before an answer in another way once it is answered"


@dataclass
class Proof:
    """What a kind of conversation gives.

    Attributes:
        skeleton: the marked rendering.
        stretches: turn -> where it trains.
        apart: turns that are written in another way than where they are the last.
        lost: leaves that the rendering leaves out, and why where more is known than that.
    """

    skeleton: Skeleton
    stretches: dict[int, list[tuple[Place, Place]]] = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)


class Prover:
    """Proofs for the conversations of one template and tokenizer.

    Args:
        control: matches the tokenizer's control tokens; None where it has none.
        begin: the text of the token that opens a sequence, or "".
    """

    def __init__(self, template: "ChatTemplate", control: re.Pattern[str] | None, begin: str = ""):
        self.template, self.control, self.begin = template, control, begin
        self._skeletons: dict[str, Skeleton | Unstable] = {}
        self._proofs: dict[str, Proof] = {}

    def spans(
        self, turns: list[dict], tools: list | None, options: dict[str, Any], trains: set[int]
    ) -> tuple[str, dict[int, list[Span]]]:
        """The rendered conversation and, for each of its assistant turns that trains, the characters that do.

        Args:
            trains: places of turns, from 0, whose thinking must be in the rendering; every other text must be anyway.

        Raises:
            Unstable: the template refuses it, leaves out something that it holds, or gives no proof.
        """
        text = chats.render(self.template, turns, tools, options=options)
        reached = 0
        for roles in ((), ("assistant",)):  # a template may look into what a user says (Qwen3 looks for tool answers)
            marked, leaves = mark(turns, roles)
            proof = self.prove(marked, leaves, tools, options)
            self._check(proof, turns, leaves, trains)
            places, best = proof.skeleton.align(text, leaves)
            if places:
                return text, {
                    turn: [(places[a] + at, places[b] + end) for (a, at), (b, end) in proof.stretches[turn]]
                    for turn in sorted(trains & proof.stretches.keys())
                }
            reached = reached or best
        changed = leaves[proof.skeleton.leaves[min(reached, len(proof.skeleton.leaves) - 1)]].turn + 1 if leaves else 1
        raise Unstable(f"the template changes the text of turn {changed}, or looks into it")

    def apart(self, turns: list[dict], tools: list | None, options: dict[str, Any]) -> list[tuple[int, set[int]]]:
        """(number of turns, which of them train) of each sequence in which all assistant turns train once.

        That is one, unless some turns are written in another way once the conversation goes on.
        """
        marked, leaves = mark(turns)
        proof = self.prove(marked, leaves, tools, options)
        answers = {place for place, turn in enumerate(turns) if learned(turn)}
        if proof.lost:  # it will be refused, for all of it
            return [(len(turns), answers)]
        rest = proof.apart & answers
        found = [(len(turns), answers - rest)]
        while rest:
            last = max(rest)
            shorter = self.prove(marked[: last + 1], leaves, tools, options)
            here = {turn for turn in rest if turn == last or turn not in shorter.apart}
            found.append((last + 1, here))
            rest -= here
        return found[::-1]

    def prove(self, marked: list[dict], leaves: list[Leaf], tools: list | None, options: dict[str, Any]) -> Proof:
        """What is known of all conversations that are these marks with texts in them.

        Raises:
            Unstable: the template refuses it.
        """
        key = _key(marked, tools, options)
        if key not in self._proofs:
            _forget(self._proofs)
            self._proofs[key] = self._proved(marked, leaves, tools, options)
        return self._proofs[key]

    def _proved(self, marked: list[dict], leaves: list[Leaf], tools: list | None, options: dict[str, Any]) -> Proof:
        rendered = _Rendered(self, marked, tools, options)
        proof = Proof(rendered.skeleton(len(marked)))
        written, last = set(proof.skeleton.leaves), len(marked) - 1
        for number, leaf in enumerate(leaves):
            if leaf.turn > last or number in written:
                continue
            if leaf.what == "thinking" and leaf.turn < last:
                proof.apart.add(leaf.turn)
            else:
                proof.lost[number] = ""
        for place, turn in enumerate(marked):
            own = {number for number, leaf in enumerate(leaves) if leaf.turn == place}
            if turn["role"] != "assistant" or not own & written:
                continue
            try:
                found = rendered.stretch(place, own, len(marked))
                alone = rendered.stretch(place, own, place + 1)
            except Unstable:
                if place == last and not proof.lost:
                    raise
                proof.apart.add(place)
                continue
            if _texts(proof.skeleton, found) != _texts(rendered.skeleton(place + 1), alone):
                proof.apart.add(place)
                continue
            found[-1] = (found[-1][0], found[-1][1] + self._next_role(proof.skeleton, found[-1][1]))
            proof.stretches[place] = [(proof.skeleton.place(a), proof.skeleton.place(b)) for a, b in found]
        if proof.lost:
            rendered.explain(proof, leaves)
        return proof

    def _next_role(self, whole: Skeleton, end: int) -> int:
        """Length of the next role's token, where that is what ends a turn."""
        found = self.control.match(whole.text, end) if self.control and self.open_ended else None
        return len(found.group()) if found and found.group() != self.begin else 0

    def _check(self, proof: Proof, turns: list[dict], leaves: list[Leaf], trains: set[int]) -> None:
        """Refuse a template that leaves out what the row holds; thinking of turns that do not train may go."""
        # What is to be learned comes first.
        lost = sorted(proof.lost.items(), key=lambda one: turns[leaves[one[0]].turn]["role"] != "assistant")
        for number, why in lost:
            turn, what = leaves[number].turn, leaves[number].what
            if why:
                raise Unstable(why)
            if what == "thinking" and turn not in trains:
                continue
            raise Unstable(_left_out(turn + 1, what, turns[turn]["role"]))
        for turn in sorted(trains & proof.apart):
            raise Unstable(
                f"the template writes turn {turn + 1} in another way once the conversation goes on; train the last turn "
                "alone (train_on=last), or each turn where it is the last (train_on=answers)"
            )

    def skeleton(self, marked: list[dict], tools: list | None, options: dict[str, Any], open_turn: bool) -> Skeleton:
        key = f"{open_turn}{_key(marked, tools, options)}"
        if key not in self._skeletons:
            _forget(self._skeletons)
            try:
                self._skeletons[key] = (
                    Skeleton(chats.render(self.template, marked, tools, True, options))
                    if open_turn
                    else Skeleton(*chats.generated(self.template, marked, tools, options))
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
        for opening in chats.openings():
            marked, _ = mark([*opening, {"role": "assistant", "content": "x"}])
            try:
                return not self.skeleton(marked, None, self.template.options, False).literals[-1].strip()
            except Unstable:
                continue
        return False

    def closing(self, turns: list[dict], tools: list | None, options: dict[str, Any]) -> str:
        """The token of the role that follows the last turn, where the template ends no answer itself; "" for none."""
        if not self.open_ended:
            return ""
        following = {"role": "tool" if turns[-1].get("tool_calls") else "user", "content": "x"}
        marked, _ = mark([*turns, following])
        try:
            tail = self.skeleton(marked[:-1], tools, options, False).literals[-1].rstrip()
            after = self.skeleton(marked, tools, options, False)
        except Unstable:
            return ""
        start = after.starts[-2] if len(after.starts) > 1 else 0
        length = self._next_role(after, start + len(tail)) if after.literals[-2:][0].startswith(tail) else 0
        return after.text[start + len(tail) :][:length]


def _texts(skeleton: Skeleton, spans: list[Span]) -> list[str]:
    return [skeleton.text[start:end] for start, end in spans]


def learned(turn: dict) -> bool:
    """Whether a turn is to be learned."""
    return turn["role"] == "assistant"


def _key(marked: list[dict], tools: list | None, options: dict[str, Any]) -> str:
    return json.dumps([marked, tools, options], default=str)


def _forget(held: dict) -> None:
    if len(held) >= HELD:
        held.clear()


def _left_out(turn: int, what: str, role: str) -> str:
    if what == "thinking":
        return (
            f"the template leaves out the thinking of turn {turn}; leave it out yourself (thinking=drop), or take a "
            "template that holds it (chatml writes it as text)"
        )
    if what == "call":
        return f"the template leaves out a call of turn {turn}; chatml, llama2 and llama3 write calls"
    if role == "assistant":
        return f"the template leaves out text of turn {turn}"
    remedy = "; give it the role system" if role == "developer" else ""
    return f"the template leaves out the text of turn {turn} ({role}){remedy}"


class _Rendered:
    """The renderings of one marked conversation: its beginnings, closed and opened for the next answer."""

    def __init__(self, prover: Prover, marked: list[dict], tools: list | None, options: dict[str, Any]):
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

    def explain(self, proof: Proof, leaves: list[Leaf]) -> None:
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
