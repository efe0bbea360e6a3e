"""Verdicts on pairs of answers, each in both orders and cached as they come, and the report of them."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunebook.common.generation.budget import Budget, BudgetExceeded, Messages, Reply, Stopped
from tunebook.common.process import progress
from tunebook.evals.judge import prompt, win_rate
from tunebook.evals.judge.prompt import Pair
from tunebook.evals.responses.generate import ModelOutputs
from tunebook.evals.responses.questions import Question
from tunebook.evals.responses.store import ResponseCache, key_of

ALPHA = 0.05
ORDERS = (False, True)  # base is A and tuned is B; swapped
NUMBER = re.compile(r"\d[\d.,]*")


class Judge(Protocol):
    """Endpoint and LocalJudge. A reply depends on `name`, `request` and the prompt alone."""

    name: str
    request: dict[str, Any]
    budget: Budget

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]: ...


@dataclass
class Judgments:
    """The judge's replies so far."""

    replies: dict[tuple[int, bool], Reply] = field(default_factory=dict)  # by (place of the pair, swapped)
    cached: int = 0  # replies that an earlier run has paid for
    asked: int = 0  # replies that this run has
    stopped: str = ""  # why not everything was asked
    out_of_budget: bool = False

    def outcome(self, place: int, pair: Pair) -> str | None:
        """One of prompt.OUTCOMES; None where an order has not been asked."""
        if pair.identical:
            return "identical"
        original, swapped = (self.replies.get((place, order)) for order in ORDERS)
        return None if original is None or swapped is None else prompt.outcome(original, swapped)


def pairs(questions: list[Question], base: ModelOutputs, tuned: ModelOutputs) -> list[Pair]:
    """A pair for each turn of each question that both have answered."""
    found = []
    for number, (question, first, second) in enumerate(zip(questions, base.answers, tuned.answers, strict=True)):
        if first is None or second is None:
            continue
        for turn in range(1, len(question.turns) + 1):
            name = question.name + (f", turn {turn}" if len(question.turns) > 1 else "")
            reference = question.references[turn - 1] if len(question.references) >= turn else ""
            turns = (question.turns[:turn], first[:turn], second[:turn])
            found.append(Pair(name, number, turn, question.category, *turns, reference, question.system))
    return found


def collect(pairs: list[Pair], judge: Judge, cache: ResponseCache) -> Judgments:
    """Ask the judge about every pair in both orders, except identical answers and what the cache has.

    The order of the pairs depends on their text alone, so that what a budget allows is a random sample. Replies are
    cached as they come; a prompt that got none is asked again by the next run.

    Raises:
        UserError: as the judge's `ask`.
    """
    judgments = Judgments()
    places: dict[str, list[tuple[int, bool]]] = {}
    prompts: dict[str, Messages] = {}
    for place, pair in sorted(enumerate(pairs), key=lambda item: _text_hash(item[1])):
        for swapped in ORDERS if not pair.identical else ():
            messages = prompt.prompt(pair, swapped)
            key = key_of(judge.name, judge.request, messages)
            places.setdefault(key, []).append((place, swapped))
            prompts[key] = messages

    def take(key: str, reply: Reply) -> None:
        judgments.replies |= dict.fromkeys(places[key], reply)

    missing = []
    for key in places:
        if (record := cache.get(key)) is None:
            missing.append(key)
        else:
            take(key, Reply(record["reply"], record["finish"], record["tokens"]))
    judgments.cached = len(places) - len(missing)
    try:
        for number, reply in progress.track(
            judge.ask([prompts[key] for key in missing]), "verdicts", len(missing), "calls"
        ):
            key = missing[number]
            if reply.text is not None:
                place, swapped = places[key][0]
                about = {"judge": judge.name, "item": pairs[place].name, "swapped": swapped}
                cache.add(key, {**about, "reply": reply.text, "finish": reply.finish, "tokens": reply.tokens})
            judgments.asked += 1
            take(key, reply)
    except Stopped as stopped:
        judgments.stopped, judgments.out_of_budget = str(stopped), isinstance(stopped, BudgetExceeded)
    return judgments


def _text_hash(pair: Pair) -> str:
    text = "\0".join([*pair.asked, *pair.base, *pair.tuned])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def report(
    pairs: list[Pair], judgments: Judgments, judge: Judge, base: ModelOutputs, tuned: ModelOutputs
) -> dict[str, Any]:
    """All figures, by category and turn, and every item with both replies: the content of judge.json."""
    outcomes_by_place = {
        place: outcome for place, pair in enumerate(pairs) if (outcome := judgments.outcome(place, pair))
    }
    judged, outcomes = [pairs[place] for place in outcomes_by_place], list(outcomes_by_place.values())
    total = win_rate.of(judged, outcomes)
    return {
        "base": _model_report(base),
        "tuned": _model_report(tuned),
        "judge": {"name": judge.name, "request": judge.request},
        "alpha": ALPHA,
        "pairs": len(pairs),
        "not_asked": len(pairs) - len(judged),
        "stopped": judgments.stopped,
        "total": total,
        "length_controlled": win_rate.length_controlled(judged, outcomes),
        "verdict": verdict(total),
        "by_category": _by(judged, outcomes, lambda pair: pair.category),
        "by_turn": _by(judged, outcomes, lambda pair: f"turn {pair.turn}"),
        "position": position(judgments),
        "unparsed": counted(why for reply in judgments.replies.values() if (why := unparsed(reply))),
        "speaks_to_judge": {
            name: sum(prompt.speaks_to_judge(getattr(pair, name)[-1]) for pair in judged) for name in ("base", "tuned")
        },
        "calls": {
            "kept": judgments.cached,
            "answered": judgments.asked,
            "sent": judge.budget.used_calls,
            "retries": judge.budget.retries,
            "tokens": judge.budget.used_tokens,
            "tokens_unsaid": judge.budget.unsaid,
        },
        "items": [_item(place, pairs[place], outcome, judgments) for place, outcome in outcomes_by_place.items()],
    }


def verdict(total: dict[str, Any]) -> str:
    """In a word; a difference needs p below ALPHA by the sign test."""
    if total["rate"] is None:
        return "nothing judged"
    if total["p"] >= ALPHA or math.isclose(total["rate"], 0.5):
        return "no difference found"
    return "better" if total["rate"] > 0.5 else "worse"


def position(judgments: Judgments) -> dict[str, int]:
    """How often the first and the second answer were preferred, which shows a position bias."""
    verdicts = [prompt.read(reply.text or "") for reply in judgments.replies.values()]
    return {"first": verdicts.count("A"), "second": verdicts.count("B"), "tie": verdicts.count("tie")}


def unparsed(reply: Reply) -> str:
    """Why a reply holds no verdict that can be read, or ""."""
    if reply.text is None:
        return f"no reply: {reply.failure}"[:200]
    if prompt.read(reply.text):
        return ""
    if reply.finish == "length":
        return "cut at its limit of tokens before a verdict"
    return "verdicts that differ" if prompt.VERDICT_LINE.search(reply.text) else "no line with a verdict"


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each came, most often first. Those that differ in numbers alone are one, in the words of the first."""
    said: dict[str, list[str]] = {}
    for why in reasons:
        said.setdefault(NUMBER.sub("0", why), []).append(why)
    found = {}
    for alike in sorted(said.values(), key=len, reverse=True):
        found[alike[0] + (" (others with other numbers)" if len({*alike}) > 1 else "")] = len(alike)
    return found


def _model_report(outputs: ModelOutputs) -> dict[str, Any]:
    reasons = counted(outputs.why.values())
    notes = [f"{count:,} of the questions have no answer of it: {why}" for why, count in reasons.items()]
    unanswered = len(outputs.why)
    return {"name": outputs.name, "cut": outputs.cut, "unanswered": unanswered, "notes": [*outputs.notes, *notes]}


def _by(pairs: list[Pair], outcomes: list[str], name: Any) -> dict[str, dict[str, Any]]:
    """Figures of each group, where there are several; without p, as these are many looks at the same verdicts."""
    groups: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(name(pair) or "(none)", []).append(place)
    if len(groups) < 2:
        return {}
    figures = {}
    for group, places in sorted(groups.items()):
        figures[group] = win_rate.of([pairs[n] for n in places], [outcomes[n] for n in places])
        figures[group].pop("p")
    return figures


def _item(place: int, pair: Pair, outcome: str, judgments: Judgments) -> dict[str, Any]:
    original, swapped = (_reply(judgments.replies.get((place, order))) for order in ORDERS)
    return {**vars(pair), "outcome": outcome, "longer": pair.longer, "original": original, "swapped": swapped}


def _reply(reply: Reply | None) -> dict[str, Any] | None:
    if reply is None:
        return None
    return {"verdict": prompt.read(reply.text or ""), "reply": reply.text, "why": unparsed(reply)}
