"""Paired statistics against scipy, statsmodels and simulated models of which the truth is known."""

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from tunebook.evals.stats import paired

SIMULATIONS = 1000
BY_CHANCE = stats.binom.ppf(0.975, SIMULATIONS, 0.05) / SIMULATIONS  # how often a test that errs at 5 % may err here


def mean(rows):
    return rows[..., 0]


def test_mcnemar_is_that_of_statsmodels():
    for lost, won in [(0, 0), (0, 1), (3, 3), (2, 11), (40, 22), (0, 30), (500, 610)]:
        table = [[100, lost], [won, 7]]
        assert paired.mcnemar(lost, won) == pytest.approx(reference_mcnemar(table, exact=True).pvalue, rel=1e-9)


def test_holm_is_that_of_statsmodels():
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 57):
        ps = list(generator.random(size) ** 3)
        assert paired.holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]))
    assert paired.holm([]) == []
    assert paired.holm([0.04, 0.01]) == [0.04, 0.02]


@pytest.mark.parametrize(("lost", "won", "items"), [(2, 12, 50), (0, 5, 30), (9, 3, 40), (30, 41, 400), (7, 7, 20)])
def test_the_ends_of_the_interval_are_where_the_likelihoods_own_score_test_just_rejects(lost, won, items):
    """The constrained likelihood is maximised by scipy here, not by Tango's formula."""

    def score(difference):
        def loss(share):
            rest = 1 - 2 * share - difference
            return -(won * np.log(share + difference) + lost * np.log(share) + (items - lost - won) * np.log(rest))

        edge = 1e-12
        bounds = (max(0.0, -difference) + edge, (1 - difference) / 2 - edge)
        share = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-11}).x
        variance = items * (2 * share + difference - difference**2)
        return (won - lost - items * difference) / np.sqrt(variance)

    low, high = paired.score_interval(lost, won, items)
    assert low < (won - lost) / items < high
    assert score(low) == pytest.approx(1.959964, abs=2e-3) and score(high) == pytest.approx(-1.959964, abs=2e-3)
    assert paired.score_interval(won, lost, items) == pytest.approx((-high, -low), abs=1e-8)


def test_the_interval_where_nothing_or_everything_changed():
    low, high = paired.score_interval(0, 0, 300)
    assert high == pytest.approx(1.959964**2 / (300 + 1.959964**2), abs=1e-6) and low == pytest.approx(-high)
    assert paired.score_interval(0, 20, 20)[1] == 1.0 and paired.score_interval(20, 0, 20)[0] == -1.0
    assert paired.score_interval(0, 20, 20)[0] == pytest.approx(0.6777, abs=1e-3)
    assert paired.score_interval(0, 1, 1) == pytest.approx((-0.5868, 1.0), abs=1e-3)


# Shares of items that are right both times, lost, won, wrong both times. Fewer than about five expected changes make
# any interval cautious, as so few outcomes exist.
@pytest.mark.parametrize("items", [30, 100, 500])
@pytest.mark.parametrize("shares", [(0.4, 0.1, 0.1, 0.4), (0.3, 0.2, 0.1, 0.4), (0.5, 0.05, 0.25, 0.2)])
def test_right_and_wrong_simulated(items, shares):
    draws = np.random.default_rng(items).multinomial(items, shares, size=SIMULATIONS)
    truth = shares[2] - shares[1]
    ends = [paired.score_interval(int(lost), int(won), items) for _, lost, won, _ in draws]
    covered = np.mean([low <= truth <= high for low, high in ends])
    assert 0.93 <= covered <= 0.97, covered
    if not truth:
        called = np.mean([paired.mcnemar(int(lost), int(won)) < 0.05 for _, lost, won, _ in draws])
        assert called <= 0.05, called


def pairs(kind, items, generator):
    """Two results an item whose means differ by 0.1; also of models of equal quality."""
    ease = generator.normal(size=items)
    if kind == "loss":  # a loss of each document, of much the same difficulty to both models
        return ease + generator.normal(0, 0.5, items), ease + generator.normal(0.1, 0.5, items)
    if kind == "skewed":  # waiting times: a long tail on both sides
        return generator.exponential(1, items), generator.exponential(1, items) + 0.1
    same = generator.random(items) < 0.6  # overlap with a reference: most answers are word for word the same
    before, after = generator.beta(0.5, 0.5, items), generator.beta(0.5, 0.5, items) + 0.25
    return before, np.where(same, before, after)


@pytest.mark.parametrize("items", [30, 60])
@pytest.mark.parametrize("kind", ["loss", "skewed", "ties"])
def test_real_values_simulated(kind, items):
    generator = np.random.default_rng(items)
    covered, called = [], []
    for seed in range(SIMULATIONS):
        before, after = (side[:, None] for side in pairs(kind, items, generator))
        low, high, p = paired.bootstrap(before, after, mean, resamples=599, seed=seed)
        covered.append(low <= 0.1 <= high)
        swap = generator.random((items, 1)) < 0.5  # which model said what is forgotten: both are equally good
        null = np.where(swap, after, before), np.where(swap, before, after)
        low, high, p = paired.bootstrap(*null, mean, resamples=599, seed=seed)
        called.append(p < 0.05)
        assert (p < 0.05) == (not low <= 0 <= high) or abs(p - 0.05) < 0.01
    assert 0.93 <= np.mean(covered) <= 0.97, np.mean(covered)
    assert np.mean(called) <= BY_CHANCE, np.mean(called)


def test_a_real_value_against_scipy():
    """The same numbers by scipy's permutation test and by its own bootstrap's standard error."""
    generator = np.random.default_rng(3)
    before, after = generator.normal(size=80), generator.normal(0.25, 1, size=80)
    low, high, p = paired.bootstrap(before[:, None], after[:, None], mean)
    found = stats.permutation_test(
        (before, after), lambda a, b: np.mean(b - a), permutation_type="samples", n_resamples=9999, rng=generator
    )
    assert p == pytest.approx(found.pvalue, abs=0.01)
    spread = stats.bootstrap((after - before,), np.mean, n_resamples=9999, rng=generator).standard_error
    assert (high - low) / 2 == pytest.approx(stats.t.isf(0.025, 79) * spread, rel=0.05)
    assert (low + high) / 2 == pytest.approx(np.mean(after - before))


def test_a_quotient_of_sums_against_a_resampling_written_out():
    generator = np.random.default_rng(4)
    words = generator.integers(5, 60, 70).astype(float)
    before = np.stack([-words * generator.gamma(9, 0.3, 70), words], 1)
    after = np.stack([before[:, 0] * generator.normal(0.95, 0.1, 70), words], 1)

    def perplexity(rows):
        return np.exp(-rows[..., 0] / rows[..., 1])

    low, high, p = paired.bootstrap(before, after, perplexity)
    found, spread = perplexity(after.mean(0)) - perplexity(before.mean(0)), []
    for _ in range(4000):
        drawn = generator.integers(70, size=70)
        spread.append(perplexity(after[drawn].sum(0)) - perplexity(before[drawn].sum(0)))
    assert found < 0 and high < 0 and p < 0.05
    assert (high - low) / 2 == pytest.approx(np.quantile(np.abs(np.array(spread) - found), 0.95), rel=0.1)
    assert paired.bootstrap(before, after, perplexity) == (low, high, p)  # seeded


def test_almost_nothing_differs():
    before = np.zeros((50, 1))
    after = before.copy()
    assert paired.bootstrap(before, after, mean) == (0.0, 0.0, 1.0)
    after[7] = 1
    low, high, p = paired.bootstrap(before, after, mean)
    assert low < 0 < high and p == 1.0
    after[8] = 1
    low, high, p = paired.bootstrap(before, after, mean)
    assert low < 0 < high and p > 0.3 and np.isfinite([low, high]).all()
