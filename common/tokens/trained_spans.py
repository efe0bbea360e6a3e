"""Which characters of a rendered conversation train.

A conversation is rendered with marks in place of its texts (placeholders.py). What a turn trains is read off the
template's own text around its marks: from the end of the assistant header to the token that ends the turn. The real
rendering must be the marked one with the texts in it. A turn that is rendered differently once the conversation goes
on (Qwen3 and gpt-oss drop its thinking) trains in a sequence of its own that ends with it.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from tunebook.common.tokens import thinking
from tunebook.common.tokens.chat_templates import ChatTemplate
from tunebook.common.tokens.jinja_templates import Unstable
from tunebook.common.tokens.placeholders import Leaf, Skeleton, Span, forms, mark
from tunebook.common.tokens.turn_edges import Rendered, Renderings, forget, key_of

PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}, "required": ["a"]}
SOME = [{"type": "function", "function": {"name": "f", "description": "does", "parameters": PARAMETERS}}]
MOST_TURNS = 2000
Place = tuple[int, int]  # a literal of a skeleton, and an offset in it


@dataclass
class Proof:
    """What a kind of conversation gives.

    Attributes:
        skeleton: the marked rendering.
        stretches: turn -> where it trains.
        apart: turns that are rendered differently from where they are the last.
        lost: leaves that the rendering leaves out, and why, where known.
    """

    skeleton: Skeleton
    stretches: dict[int, list[tuple[Place, Place]]] = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    lost: dict[int, str] = field(default_factory=dict)


class Prover(Renderings):
    """Proofs for the conversations of one template and tokenizer.

    Args:
        control: matches the tokenizer's control tokens; None where it has none.
        begin: the text of the token that opens a sequence, or "".
    """

    def __init__(self, template: ChatTemplate, control: re.Pattern[str] | None, begin: str = ""):
        super().__init__(template, control)
        self.begin = begin
        self._proofs: dict[str, Proof] = {}
        self._apart: dict[tuple, list[tuple[int, set[int]]]] = {}

    def spans(
        self, turns: list[dict], tools: list | None, options: dict[str, Any], trains: set[int]
    ) -> tuple[str, dict[int, list[Span]]]:
        """The rendered conversation and, for each of its assistant turns that trains, the characters that do.

        `trains`: indices of turns whose thinking must be in the rendering; every other text must be anyway.

        Raises:
            Unstable: the template refuses it, leaves out something that it holds, or gives no proof.
        """
        _refuse_endless(turns)
        text = self.template.render(turns, tools, options=options)
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
        if found := self._by_markers(turns, tools, options, trains, text):
            return text, found
        changed = leaves[proof.skeleton.leaves[min(reached, len(proof.skeleton.leaves) - 1)]].turn + 1 if leaves else 1
        raise Unstable(f"the template changes the text of turn {changed}, or looks into it")

    def _by_markers(
        self, turns: list[dict], tools: list | None, options: dict[str, Any], trains: set[int], text: str
    ) -> dict[int, list[Span]]:
        """The spans that the template itself marks, where they hold the row's texts; else {}."""
        _, generated = self.template.generated(turns, tools, options)
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        if len(generated) != len(answers):
            return {}
        spans = dict(zip(answers, generated, strict=True))
        for leaf in mark(turns)[1]:
            start, end = spans.get(leaf.turn, (0, len(text)))
            if not any(form in text[start:end] for form in forms(leaf.value)):
                return {}
        return {turn: [span] for turn, span in spans.items() if turn in trains}

    def apart(self, turns: list[dict], tools: list | None, options: dict[str, Any]) -> list[tuple[int, set[int]]]:
        """(number of turns, which of them train) of each sequence in which all assistant turns train once.

        That is one, unless some turns are written in another way once the conversation goes on.
        """
        _refuse_endless(turns)
        shape = (*map(_shape, turns), bool(tools), str(options))
        if shape not in self._apart:
            forget(self._apart)
            self._apart[shape] = self._sequences(turns, tools, options)
        return self._apart[shape]

    def _sequences(self, turns: list[dict], tools: list | None, options: dict[str, Any]) -> list[tuple[int, set[int]]]:
        marked, leaves = mark(turns)
        proof = self.prove(marked, leaves, tools, options)
        answers = {place for place, turn in enumerate(turns) if turn["role"] == "assistant"}
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
        if tools and tools != SOME and (found := self._with_tools(marked, leaves, tools, options)):
            return found
        key = key_of(marked, tools, options)
        if key not in self._proofs:
            forget(self._proofs)
            self._proofs[key] = self._proved(marked, leaves, tools, options)
        return self._proofs[key]

    def _with_tools(self, marked: list[dict], leaves: list[Leaf], tools: list, options: dict[str, Any]) -> Proof | None:
        """The proof for other tools, where they change nothing beside the turns that train; rows bring many schemas."""
        try:
            known = self.prove(marked, leaves, SOME, options)
            whole = Skeleton(*self.template.generated(marked, tools, options))
        except Unstable:
            return None
        used = {at for spans in known.stretches.values() for span in spans for first, last in [span]
                for at in range(first[0], last[0] + 1)}  # fmt: skip
        same = whole.leaves == known.skeleton.leaves and all(
            whole.literals[at] == known.skeleton.literals[at] for at in used
        )
        return replace(known, skeleton=whole) if same and not known.lost else None

    def _proved(self, marked: list[dict], leaves: list[Leaf], tools: list | None, options: dict[str, Any]) -> Proof:
        rendered = Rendered(self, marked, tools, options)
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
            _explain(proof, rendered, leaves)
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
                f"the template writes turn {turn + 1} in another way once the conversation goes on; train_on="
                "last_assistant trains the last turn alone, train_on=assistant each in a sequence that ends with it"
            )

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


def _refuse_endless(turns: list[dict]) -> None:
    """Each turn is rendered as the last one: a chat of twice the turns takes four times as long, and 40,000 an hour."""
    if len(turns) > MOST_TURNS:
        raise Unstable(f"it has {len(turns):,} turns, and the most is {MOST_TURNS:,}; cut it into several rows")


def _explain(proof: Proof, rendered: Rendered, leaves: list[Leaf]) -> None:
    """Say of texts that are there while the question is open, but not once it is answered, that they are."""
    answers = [place for place, turn in enumerate(rendered.marked) if turn["role"] == "assistant"]
    try:
        opened = set(rendered.skeleton(answers[-1], open_turn=True).leaves) if answers else set()
    except Unstable:
        return
    for number in proof.lost:
        role = rendered.marked[leaves[number].turn]["role"]
        if number in opened and role in ("system", "developer"):
            proof.lost[number] = (
                f"the template leaves out the {role} text once it is answered; put it into the first question"
            )


def _texts(skeleton: Skeleton, spans: list[Span]) -> list[str]:
    return [skeleton.text[start:end] for start, end in spans]


def _shape(turn: dict) -> tuple:
    """What decides how a template treats a turn."""
    content = turn.get("content")
    if len(turn) == 2 and content and thinking.CLOSE not in content:
        return turn["role"], content.isspace()
    thought = [key for key in thinking.KEYS if turn.get(key)] or thinking.split(content) is not None
    return turn["role"], bool(content and not content.isspace()), len(turn.get("tool_calls") or ()), str(thought)


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
