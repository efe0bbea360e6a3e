"""Two models' answers before a judge: each pair in both orders, verdicts kept as they come, and what they say."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunebook.common.generation.budget import Budget, BudgetExceeded, Messages, Reply, Stopped
from tunebook.evals.judge import prompt, win_rate
from tunebook.evals.judge.prompt import Pair
from tunebook.evals.responses.generate import ModelOutputs
from tunebook.evals.responses.questions import Question
from tunebook.evals.responses.store import ResponseCache, key_of

ALPHA = 0.05
ORDERS = (False, True)  # base is A and tuned is B; swapped


class Judge(Protocol):
    """Endpoint and LocalJudge. `name` and `request` are all that a reply depends on beside the prompt."""

    name: str
    request: dict[str, Any]
    budget: Budget

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]: ...


@dataclass
class Judgments:
    """What was asked and said.

    Attributes:
        replies: (place of the pair, swapped) -> reply; what was not asked is not there.
        kept: replies that a run before has paid for. asked: that this one has.
        stopped: why not everything was asked, or "". out_of_budget: whether the budget is why.
    """

    replies: dict[tuple[int, bool], Reply] = field(default_factory=dict)
    kept: int = 0
    asked: int = 0
    stopped: str = ""
    out_of_budget: bool = False

    def outcome(self, place: int, pair: Pair) -> str | None:
        """One of verdicts.OUTCOMES; None where an order has not been asked."""
        if pair.identical:
            return "identical"
        both = [self.replies.get((place, swapped)) for swapped in ORDERS]
        return None if both[0] is None or both[1] is None else prompt.outcome(both[0], both[1])


def pairs(questions: list[Question], base: ModelOutputs, tuned: ModelOutputs) -> list[Pair]:
    """A pair for each turn of each question that both have answered."""
    found = []
    for number, (question, first, second) in enumerate(zip(questions, base.answers, tuned.answers, strict=True)):
        if first is None or second is None:
            continue
        for turn in range(1, len(question.turns) + 1):
            name = question.name + (f", turn {turn}" if len(question.turns) > 1 else "")
            reference = question.references[turn - 1] if len(question.references) >= turn else ""
            said = (question.turns[:turn], first[:turn], second[:turn])
            found.append(Pair(name, number, turn, question.category, *said, reference, question.system))
    return found


def collect(found: list[Pair], judge: Judge, journal: ResponseCache) -> Judgments:
    """Ask the judge of every pair in both orders, but for what the journal has and for equal answers.

    Pairs are asked in an order that hangs on nothing but their text, so that what a budget leaves is a fair sample.
    Replies are kept in the journal as they come; a prompt that stayed without one is asked again by the next run.

    Raises:
        UserError: as the judge's `ask`.
    """
    from tqdm import tqdm

    judgments = Judgments()
    places: dict[str, list[tuple[int, bool]]] = {}
    prompts: dict[str, Messages] = {}
    for place, pair in sorted(enumerate(found), key=lambda item: _shuffled(item[1])):
        for swapped in ORDERS if not pair.identical else ():
            messages = prompt.prompt(pair, swapped)
            key = key_of(judge.name, judge.request, messages)
            places.setdefault(key, []).append((place, swapped))
            prompts[key] = messages

    def take(key: str, reply: Reply) -> None:
        judgments.replies |= dict.fromkeys(places[key], reply)

    missing = []
    for key in places:
        if (record := journal.get(key)) is None:
            missing.append(key)
        else:
            take(key, Reply(record["reply"], record["finish"], record["tokens"]))
    judgments.kept = len(places) - len(missing)
    try:
        for number, reply in tqdm(judge.ask([prompts[key] for key in missing]), "verdicts", len(missing), unit="call"):
            key = missing[number]
            if reply.text is not None:
                place, swapped = places[key][0]
                about = {"judge": judge.name, "item": found[place].name, "swapped": swapped}
                journal.add(key, {**about, "reply": reply.text, "finish": reply.finish, "tokens": reply.tokens})
            judgments.asked += 1
            take(key, reply)
    except Stopped as stopped:
        judgments.stopped, judgments.out_of_budget = str(stopped), isinstance(stopped, BudgetExceeded)
    return judgments


def _shuffled(pair: Pair) -> str:
    text = "\0".join([*pair.asked, *pair.base, *pair.tuned])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def report(
    found: list[Pair], judgments: Judgments, judge: Judge, base: ModelOutputs, tuned: ModelOutputs
) -> dict[str, Any]:
    """All figures, by category and turn, and every item with both replies: what judge.json holds."""
    judged = [(place, pair, outcome) for place, pair in enumerate(found) if (outcome := judgments.outcome(place, pair))]
    chosen, outcomes = [pair for _, pair, _ in judged], [outcome for *_, outcome in judged]
    total = win_rate.of(chosen, outcomes)
    return {
        "base": _of_side(base),
        "tuned": _of_side(tuned),
        "judge": {"name": judge.name, "request": judge.request},
        "alpha": ALPHA,
        "pairs": len(found),
        "not_asked": len(found) - len(judged),
        "stopped": judgments.stopped,
        "total": total,
        "length_controlled": win_rate.length_controlled(chosen, outcomes),
        "verdict": verdict(total),
        "by_category": _by(chosen, outcomes, lambda pair: pair.category),
        "by_turn": _by(chosen, outcomes, lambda pair: f"turn {pair.turn}"),
        "position": position(judgments),
        "unparsed": dict(
            Counter(why for reply in judgments.replies.values() if (why := unparsed(reply))).most_common()
        ),
        "speaks_to_judge": {
            side: sum(prompt.speaks_to_judge(vars(pair)[side][-1]) for pair in chosen) for side in ("base", "tuned")
        },
        "calls": {
            "kept": judgments.kept,
            "answered": judgments.asked,
            "sent": judge.budget.used_calls,
            "retries": judge.budget.retries,
            "tokens": judge.budget.used_tokens,
            "tokens_unsaid": judge.budget.unsaid,
        },
        "items": [_item(place, pair, outcome, judgments) for place, pair, outcome in judged],
    }


def verdict(total: dict[str, Any]) -> str:
    """In a word; a difference needs p below ALPHA by the sign test."""
    if total["rate"] is None:
        return "nothing judged"
    if total["p"] >= ALPHA or math.isclose(total["rate"], 0.5):
        return "no difference found"
    return "better" if total["rate"] > 0.5 else "worse"


def position(judgments: Judgments) -> dict[str, int]:
    """How often the first and the second answer were preferred: what a judge that looks at places would show."""
    says = [prompt.read(reply.text) for reply in judgments.replies.values() if reply.text is not None]
    return {"first": says.count("A"), "second": says.count("B"), "tie": says.count("tie")}


def unparsed(reply: Reply) -> str:
    """Why a reply holds no verdict that can be read, or ""."""
    if reply.text is None:
        return f"no reply: {reply.failure}"[:200]
    if prompt.read(reply.text):
        return ""
    if reply.finish == "length":
        return "cut at its limit of tokens before a verdict"
    return "verdicts that differ" if prompt.LINE.search(reply.text) else "no line with a verdict"


def _of_side(side: ModelOutputs) -> dict[str, Any]:
    return {"name": side.name, "cut": side.cut, "unanswered": len(side.why), "notes": [*side.notes, *_reasons(side)]}


def _reasons(side: ModelOutputs) -> list[str]:
    counts = Counter(side.why.values())
    return [f"{count:,} of the questions have no answer of it: {why}" for why, count in counts.items()]


def _by(chosen: list[Pair], outcomes: list[str], name: Any) -> dict[str, dict[str, Any]]:
    """Figures of each group, where there are several; p is of one look among many, so none is given."""
    groups: dict[str, list[int]] = {}
    for place, pair in enumerate(chosen):
        groups.setdefault(name(pair), []).append(place)
    if len(groups) < 2:
        return {}
    return {
        group or "(none)": {
            key: value
            for key, value in win_rate.of([chosen[n] for n in members], [outcomes[n] for n in members]).items()
            if key != "p"
        }
        for group, members in sorted(groups.items())
    }


def _item(place: int, pair: Pair, outcome: str, judgments: Judgments) -> dict[str, Any]:
    replies = [judgments.replies.get((place, swapped)) for swapped in ORDERS]
    said = [
        None
        if reply is None
        else {"verdict": prompt.read(reply.text or ""), "reply": reply.text, "why": unparsed(reply)}
        for reply in replies
    ]
    return {**vars(pair), "outcome": outcome, "longer": pair.longer, "original": said[0], "swapped": said[1]}
