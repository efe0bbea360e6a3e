"""Summary of the votes: win rate, helpfulness and safety with intervals, ties, and agreement of raters."""

from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import numpy as np

from tunebook.common.format import interval, p_value, percent
from tunebook.evals.rating.items import RatingItems
from tunebook.evals.rating.votes import SCORES, Vote, Votes
from tunebook.evals.stats import agreement, paired

SIGN = {"tuned": 1, "tie": 0, "base": -1}


def summarize(rating: RatingItems, votes: Votes) -> dict[str, Any]:
    """The summary as plain values; shares and means are over items, each item's being the mean of its raters.

    An item is won by the model that most of its raters preferred. The interval of the win rate is Tango's score
    interval of won minus lost items (ties are neither), its p the exact sign test; means have paired bootstraps.
    """
    keys = {item.key for item in rating.items}
    known = [vote for vote in votes.latest.values() if vote.item in keys]
    by_item: dict[str, list[Vote]] = defaultdict(list)
    for vote in known:
        by_item[vote.item].append(vote)
    raters = dict(sorted(Counter(vote.rater for vote in known).items()))
    report: dict[str, Any] = {
        "names": list(rating.names), "items": len(rating.items), "rated": len(by_item), "votes": len(known),
        "of_other_answers": len(votes.latest) - len(known), "raters": raters, "level": paired.LEVEL,
    }  # fmt: skip
    if known:
        report["preference"] = _preference(by_item, known)
        report["scores"] = {name: _scores(by_item, name) for name in SCORES}
        report["agreement"] = _agreement(by_item)
    return report


def _preference(by_item: dict[str, list[Vote]], known: list[Vote]) -> dict[str, Any]:
    signs = [np.sign(sum(SIGN[vote.better] for vote in item)) for item in by_item.values()]
    won, lost, items = signs.count(1), signs.count(-1), len(signs)
    low, high = paired.score_interval(lost, won, items)
    decided = [vote for vote in known if vote.better != "tie"]
    return {
        "won": won, "lost": lost, "ties": items - won - lost,
        "win_rate": (1 + (won - lost) / items) / 2, "low": (1 + low) / 2, "high": (1 + high) / 2,
        "p": paired.mcnemar(lost, won),
        "votes": dict(Counter(vote.better for vote in known)),
        "shown_first": {"better": sum(vote.better == vote.first for vote in decided), "of": len(decided)},
    }  # fmt: skip


def _scores(by_item: dict[str, list[Vote]], name: str) -> dict[str, Any]:
    means = np.array([np.mean([getattr(vote, name) for vote in item], axis=0) for item in by_item.values()])
    base, tuned = means[:, :1], means[:, 1:]
    low, high, p = paired.bootstrap(base, tuned, lambda rows: rows[..., 0])
    if np.ptp(tuned - base) == 0:  # a bootstrap of equal differences says nothing
        low = high = p = None
    difference = float((tuned - base).mean())
    return {"base": float(base.mean()), "tuned": float(tuned.mean()), "difference": difference, "low": low,
            "high": high, "p": p}  # fmt: skip


def _agreement(by_item: dict[str, list[Vote]]) -> dict[str, Any] | None:
    """None where no item has two raters."""
    shared = [item for item in by_item.values() if len(item) > 1]
    if not shared:
        return None
    pairs = [(one.better, other.better) for item in shared for one, other in combinations(item, 2)]
    scores = {}
    for name in SCORES:
        units = [[getattr(vote, name)[model] for vote in item] for item in shared for model in (0, 1)]
        scores[name] = agreement.alpha(units, agreement.squared)
    return {
        "items": len(shared), "pairs": len(pairs), "same": sum(one == other for one, other in pairs),
        "alpha": agreement.alpha([[vote.better for vote in item] for item in shared]), "alpha_of_scores": scores,
    }  # fmt: skip


def lines(report: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""
    base, tuned = report["names"]
    found = [f"base: {base}", f"tuned: {tuned}"]
    raters = ", ".join(f"{name} {count}" for name, count in report["raters"].items()) or "nobody yet"
    found.append(f"{report['rated']} of {report['items']} items rated, {report['votes']} votes: {raters}")
    if report["of_other_answers"]:
        found.append(f"{report['of_other_answers']} votes are on other answers than these and are left out")
    if not report["votes"]:
        return found
    preference = report["preference"]
    ends = interval(preference["low"], preference["high"])
    found.append(
        f"tuned is preferred: win rate {percent(preference['win_rate'])} ({ends}), "
        f"{preference['won']} won, {preference['lost']} lost, {preference['ties']} tied, p {p_value(preference['p'])}"
    )
    for name, row in report["scores"].items():
        start = f"{name}, 1 to 5: {row['base']:.2f} → {row['tuned']:.2f}, {row['difference']:+.2f}"
        if row["p"] is None:
            found.append(f"{start}; no interval, as it is the same on every item")
        else:
            found.append(f"{start} ({interval(row['low'], row['high'], '+.2f', 1)}), p {p_value(row['p'])}")
    first = preference["shown_first"]
    found.append(f"the answer shown as A was preferred in {first['better']} of {first['of']} votes that were no tie")
    return [*found, *_agreed(report["agreement"]), *explained(report)]


def _agreed(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    scores = ", ".join(f"{name} {_alpha(value)}" for name, value in found["alpha_of_scores"].items())
    return [
        f"raters of the same item say the same in {found['same']} of {found['pairs']} pairs of votes on "
        f"{found['items']} items; Krippendorff's alpha {_alpha(found['alpha'])} ({scores})"
    ]


def _alpha(value: float | None) -> str:
    return "undefined (all said the same)" if value is None else f"{value:.2f}"


def explained(report: dict[str, Any]) -> list[str]:
    """What the figures mean."""
    found = [
        f"Intervals are {100 * report['level']:.0f} %, over items, for these raters: other people may differ. "
        "A tie is half a win; an item is won by the model that most of its raters preferred."
    ]
    if report["rated"] < report["items"]:
        found.append("The rated items are a random sample of all, drawn before the first vote.")
    return found
