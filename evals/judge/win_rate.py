"""How often the tuned model wins, how sure that is, and what is left of it between answers of equal length."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from tunebook.evals.judge.prompt import OUTCOMES, SCORES, Pair
from tunebook.evals.stats import paired

RESAMPLES = 1_000
SINCE = 8  # judged items from which a length-controlled rate is given
STEPS = 60  # of Newton's method
STEEP = 25.0  # bound of the coefficients; beyond, every probability is 0 or 1


def of(pairs: Sequence[Pair], outcomes: Sequence[str]) -> dict[str, Any]:
    """Counts, win rate with interval and p, length-controlled win rate with interval, mean lengths.

    A tie is half a win. `rate`, `low` and `high` are shares from 0 to 1, None where nothing was judged. Of one judged
    turn a question, the interval is Tango's score interval of (won - lost) / items, moved to a rate; p is the exact
    two-sided sign test, which leaves ties out. With several turns, questions are what varies: the interval is that of
    `effective` items, and the sign test counts the questions that were won or lost on balance.
    """
    counts = Counter(outcomes)
    judged = [(pair, SCORES[found]) for pair, found in zip(pairs, outcomes, strict=True) if found in SCORES]
    report: dict[str, Any] = {"items": len(pairs), "judged": len(judged)}
    report |= {name: counts[name] for name in OUTCOMES}
    lengths = [(len(pair.base[-1]), len(pair.tuned[-1])) for pair, _ in judged]
    report["characters_base"], report["characters_tuned"] = (
        (float(np.mean([pair[side] for pair in lengths])) if lengths else None) for side in (0, 1)
    )
    if not judged:
        return report | dict.fromkeys(("rate", "low", "high", "p"))
    scores = np.array([score for _, score in judged])
    _, groups = np.unique([pair.question for pair, _ in judged], return_inverse=True)
    low, high = _interval(scores, groups)
    balance = np.sign(np.bincount(groups, weights=2 * scores - 1))
    p = paired.mcnemar(int((balance < 0).sum()), int((balance > 0).sum()))
    report |= {"rate": float(scores.mean()), "low": low, "high": high, "p": p}
    return report


def _interval(scores: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    signs, shrink = 2 * scores - 1, effective(scores, groups) / len(scores)
    lost, won = shrink * (signs < 0).sum(), shrink * (signs > 0).sum()
    low, high = paired.score_interval(lost, won, shrink * len(scores))
    return max(0.0, (1 + low) / 2), min(1.0, (1 + high) / 2)


def effective(scores: np.ndarray, groups: np.ndarray) -> float:
    """How many independent items say as much as these, of which those of one group go together.

    The items over the design effect, and less for few groups. Source: E. Korn and B. Graubard, Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data, Survey Methodology 24, 1998.
    Where all scores are equal, it is the number of groups; it is never more than the items.
    """
    items, rest = len(scores), scores - scores.mean()
    count = int(groups.max()) + 1
    if count == items or count == 1:
        return float(count)
    if not rest.any():
        return float(count)
    between = count / (count - 1) * np.sum(np.bincount(groups, weights=rest) ** 2)
    design = between / (items / (items - 1) * np.sum(rest**2))
    quantile = (1 + paired.LEVEL) / 2
    few = (stats.t.ppf(quantile, items - 1) / stats.t.ppf(quantile, count - 1)) ** 2
    return float(items * min(1.0, few / design)) if design else float(items)


def length_controlled(pairs: Sequence[Pair], outcomes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The win rate that is expected between answers of equal length: {"rate", "low", "high", "slope", "why"}.

    A logistic regression of the score on tanh(difference of characters / its standard deviation), read at zero.
    Source: Y. Dubois et al., Length-Controlled AlpacaEval: a simple way to debias automatic evaluators, 2024; their
    term for the difficulty of instructions needs many models and is left out. The fit is Firth's (Bias reduction of
    maximum likelihood estimates, Biometrika 80, 1993), as it stays finite where the longer answer always wins. The
    interval is the wider, at each end, of the percentiles of a bootstrap over questions (which knows of ties and turns)
    and of the profile of the penalized likelihood (G. Heinze and M. Schemper, A solution to the problem of separation,
    Statistics in Medicine 21, 2002; a bootstrap does not see how little separated data say of equal lengths).

    Where there is no such rate, `why` says it and the numbers are None.
    """
    judged = [(pair, SCORES[found]) for pair, found in zip(pairs, outcomes, strict=True) if found in SCORES]
    nothing: dict[str, Any] = dict.fromkeys(("rate", "low", "high", "slope"))
    if len(judged) < SINCE:
        return nothing | {"why": f"{len(judged)} judged items; it takes {SINCE}"}
    longer = np.array([pair.longer for pair, _ in judged], dtype=float)
    scores = np.array([score for _, score in judged])
    if not longer.std():
        if longer.any():
            return nothing | {"why": "the answers differ by the same length everywhere"}
        return nothing | {"why": "the answers are of equal length everywhere; the win rate is that already"}
    x = np.tanh(longer / longer.std())
    _, groups = np.unique([pair.question for pair, _ in judged], return_inverse=True)
    start, slope = fit(x, scores, np.ones((1, len(x))))[0]
    low, high = _profile(x, scores, start, len(x) / effective(scores, groups))
    draws = np.random.default_rng(seed).multinomial(
        groups.max() + 1, np.ones(groups.max() + 1) / (groups.max() + 1), RESAMPLES
    )
    drawn = fit(x, scores, draws[:, groups].astype(float))[:, 0]
    tail = (1 - paired.LEVEL) / 2
    low, high = min(low, float(np.quantile(drawn, tail))), max(high, float(np.quantile(drawn, 1 - tail)))
    rate, low, high = (float(special.expit(value)) for value in (start, low, high))
    one_side = "all" if (longer > 0).all() else "none" if (longer < 0).all() else ""
    why = f"the tuned model's answers are longer in {one_side} of the items, so this rate is extrapolated"
    return {"rate": rate, "low": low, "high": high, "slope": float(slope), "why": why if one_side else ""}


def fit(x: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Intercept and slope of Firth's logistic regression of scores on x, one fit for each row of weights.

    Args:
        x, scores: float64 (n,); scores from 0 to 1. weights: float64 (fits, n), how often an item counts.

    Returns:
        float64 (fits, 2).
    """
    beta = np.zeros((len(weights), 2))
    design = np.stack([np.ones_like(x), x])
    for _ in range(STEPS):
        chance = special.expit(np.clip(beta @ design, -STEEP, STEEP))
        spread = weights * chance * (1 - chance)
        a, b, c = spread.sum(1), spread @ x, spread @ (x * x)
        determinant = np.maximum(a * c - b * b, 1e-12)
        # The diagonal of the hat matrix: each item's weight times its quadratic form in the inverse information.
        hat = spread * (c[:, None] - 2 * b[:, None] * x + a[:, None] * x * x) / determinant[:, None]
        pull = (weights * (scores - chance) + hat * (0.5 - chance)) @ design.T
        step = (
            np.stack([c * pull[:, 0] - b * pull[:, 1], a * pull[:, 1] - b * pull[:, 0]], axis=1) / determinant[:, None]
        )
        step /= np.maximum(1.0, np.abs(step).max(1) / 2)[:, None]  # at most 2 at a time
        beta = np.clip(beta + step, -STEEP, STEEP)
        if np.abs(step).max() < 1e-9:
            break
    return beta


def penalized(x: np.ndarray, scores: np.ndarray, start: float, slope: float) -> float:
    """Firth's penalized log-likelihood: that of the scores, and half the log determinant of the information."""
    line = start + slope * x
    spread = special.expit(line) * special.expit(-line)
    information = spread.sum() * (spread @ (x * x)) - (spread @ x) ** 2
    likelihood = scores @ special.log_expit(line) + (1 - scores) @ special.log_expit(-line)
    return float(likelihood + 0.5 * np.log(max(information, 1e-300)))


def _profile(x: np.ndarray, scores: np.ndarray, found: float, design: float) -> tuple[float, float]:
    """The intercepts that the penalized likelihood-ratio test does not reject; at most ±STEEP. `design`: how many of
    these items say as much as one that is independent."""

    def best(start: float) -> float:
        result = optimize.minimize_scalar(
            lambda slope: -penalized(x, scores, start, slope), bounds=(-STEEP, STEEP), method="bounded"
        )
        return -float(result.fun)  # pyright: ignore[reportAttributeAccessIssue]

    least = best(found) - design * stats.chi2.ppf(paired.LEVEL, 1) / 2
    ends = []
    for side in (-STEEP, STEEP):
        crosses = best(side) < least
        ends.append(float(optimize.brentq(lambda s: best(s) - least, found, side, xtol=1e-6)) if crosses else side)  # pyright: ignore
    return ends[0], ends[1]
