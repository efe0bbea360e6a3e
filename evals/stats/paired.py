"""Statistics of two models on the same items: exact McNemar, score interval, paired bootstrap, Holm."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 2_000_000  # resampled cells in memory at once


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p of the exact McNemar test: `lost` of `lost + won` items is a toss of a fair coin if nothing changed.

    Args:
        lost: items right before and wrong after.
        won: items wrong before and right after.
    """
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def score_interval(lost: float, won: float, items: float, level: float = LEVEL) -> tuple[float, float]:
    """Tango's score interval of (won - lost) / items, a difference of two shares on the same items.

    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17 (1998): the differences that the score test does not reject. It has no width of
    zero where no item changed: with 0 of 300, it reaches from -1.3 to 1.3 points.
    """
    bound = float(stats.norm.ppf((1 + level) / 2))
    found = (won - lost) / items

    def score(difference: float) -> float:
        spread = 2 * _share_lost(lost, won, items, difference) + difference * (1 - difference)
        if spread <= 0:  # at -1, 0 and 1, where nothing is left to chance
            return 0.0 if won - lost == items * difference else np.inf * np.sign(won - lost - items * difference)
        return (won - lost - items * difference) / np.sqrt(items * spread)

    def crossing(value: float, start: float, end: float) -> float:
        return float(optimize.brentq(lambda x: score(x) - value, start, end, xtol=1e-10))  # pyright: ignore

    low = -1.0 if score(-1) <= bound else crossing(bound, -1, found)
    high = 1.0 if score(1) >= -bound else crossing(-bound, found, 1)
    return low, high


def _share_lost(lost: float, won: float, items: float, difference: float) -> float:
    """The likeliest share of lost items where the difference is given (Tango 1998, the root of a quadratic)."""
    a = 2 * items
    b = -won - lost + (2 * items - won + lost) * difference
    c = -lost * difference * (1 - difference)
    return (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)


def bootstrap(
    before: np.ndarray,
    after: np.ndarray,
    aggregate: Callable[[np.ndarray], np.ndarray],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Symmetric paired bootstrap of aggregate(after) - aggregate(before): low and high of the interval, and p.

    Items are drawn with both their results. The interval is the difference ± a quantile of how far resampled
    differences lie from it (P. Hall, On symmetric bootstrap confidence intervals, JRSS B 50, 1988), at a level that is
    raised as Student's t is wider than the normal curve (T. Hesterberg, What teachers should know about the bootstrap,
    The American Statistician 69, 2015), with as many degrees of freedom as items differ, less one: without it a few
    dozen items give intervals that are too narrow. p is where the interval would just touch zero.

    Args:
        before, after: float64 (items, k), what an item gives to the metric.
        aggregate: from means over items (..., k) to values of the metric (...).
    """
    assert before.shape == after.shape and before.ndim == 2
    differ = int((before != after).any(axis=1).sum())
    if not differ:
        return 0.0, 0.0, 1.0
    found = float(aggregate(after.mean(0)) - aggregate(before.mean(0)))
    distances = np.abs(_resampled(before, after, aggregate, resamples, seed) - found)
    if differ == 1:  # one item says nothing of how items vary
        return found - float(distances.max()), found + float(distances.max()), 1.0
    wider, freedom = np.sqrt(differ / (differ - 1)), differ - 1
    beyond = 2 * stats.norm.sf(stats.t.isf((1 - level) / 2, freedom) * wider)
    reach = float(np.quantile(distances, 1 - beyond))
    tail = (1 + np.sum(distances >= abs(found) * (1 - 1e-12))) / (1 + resamples)
    p = 2 * stats.t.sf(stats.norm.isf(tail / 2) / wider, freedom)
    return found - reach, found + reach, float(p)


def _resampled(before, after, aggregate, resamples: int, seed: int) -> np.ndarray:
    """Differences of the metric in `resamples` samples of the items with replacement; (resamples,)."""
    items, generator = len(before), np.random.default_rng(seed)
    at_once = max(1, CHUNK // items)
    differences = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws = generator.integers(items, size=(rows, items)) + items * np.arange(rows)[:, None]
        counts = np.bincount(draws.ravel(), minlength=rows * items).reshape(rows, items) / items
        differences.append(aggregate(counts @ after) - aggregate(counts @ before))
    return np.concatenate(differences)


def holm(ps: Sequence[float]) -> list[float]:
    """p after Holm's step-down correction, in the order given: below 0.05 at most once in 20 families by chance alone.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian J. of Statistics 6, 1979.
    """
    order = np.argsort(ps, kind="stable")
    raised, largest = [0.0] * len(ps), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        raised[index] = float(largest)
    return raised
