"""The time that a run still takes, and how many held-out rows its evaluations may take."""

import random

import datasets
import pytest

from tunebook.common.training import held_out
from tunebook.common.training.time_left import TimeLeft, every


def simulate(costs, pause, pauses, noise=0.0, first_pause=None):
    """(real, predicted) seconds that are left after each step of a run whose steps take their costs."""
    random.seed(0)
    left, clock, at = TimeLeft(0, len(costs), pauses, [cost / 7 for cost in costs]), 0.0, []
    left.pause = pause if first_pause is None else first_pause
    for step, cost in enumerate(costs, 1):
        seconds = cost * (1 + random.uniform(-noise, noise))
        clock += seconds
        left.stepped(step, seconds)
        at.append((step, clock, left.seconds()))
        if step in pauses:
            clock += pause
            left.paused(step, pause)
    return [(clock - then, predicted) for _, then, predicted in at]


@pytest.mark.parametrize("pauses", [every(0.2, 200), every(50, 200), set()])
def test_the_end_is_known_from_a_tenth_on(pauses):
    costs = [1 + (step % 50) / 10 for step in range(200)]  # batches of like length: long and short ones by turns
    found = simulate(costs, 40.0, pauses, noise=0.2)
    total = found[0][0]
    for real, predicted in found[20:-1]:
        assert abs(predicted - real) < 0.1 * total
    assert all(abs(predicted - real) < 0.2 * real for real, predicted in found[20:180])


def test_pauses_still_to_come_are_counted_before_the_first_one():
    costs = [1.0] * 100
    real, predicted = simulate(costs, 30.0, every(0.2, 100))[9]
    assert predicted == pytest.approx(real, rel=0.01) and real == 90 + 5 * 30
    real, blind = simulate(costs, 30.0, every(0.2, 100), first_pause=0.0)[9]
    assert blind == pytest.approx(90, rel=0.01) and blind < 0.5 * real  # what a count of steps alone would say


def test_a_step_or_pause_under_way_is_taken_off():
    left = TimeLeft(0, 10, {5, 10})
    left.pause = 8.0
    for step in range(1, 5):
        left.stepped(step, 2.0)
    assert left.seconds() == pytest.approx(6 * 2 + 2 * 8) and left.seconds(1.5) == pytest.approx(6 * 2 + 2 * 8 - 1.5)
    left.stepped(5, 2.0)
    assert left.seconds(6.0) == pytest.approx(5 * 2 + 8 + 2)
    assert left.seconds(60.0) == pytest.approx(5 * 2 + 8)


def test_nothing_is_said_after_one_step_and_a_resumed_run_begins_anew():
    left = TimeLeft(50, 100, every(0.2, 100))
    left.stepped(51, 30.0)  # with what compiles and warms up
    assert left.seconds() is None and left.pauses == [60, 80, 100]
    left.stepped(52, 1.0)
    assert left.seconds() == pytest.approx(48)


def test_steps_of_pauses():
    assert every(0.2, 40) == {8, 16, 24, 32, 40} and every(0.2, 3) == {1, 2, 3} and every(30, 40) == {30, 40}


def rows(count, length=50):
    return datasets.Dataset.from_dict({"input_ids": [[place] * length for place in range(count)]})


def test_the_share_of_a_run_that_its_evaluations_take():
    data = rows(300)
    long = held_out.choose(0.1, data, trained=5 * 165_460, evaluations=5)  # pocket's own run
    assert (long.rows, long.of, long.answers) == (300, 300, True) and long.note() == "" and long.take(data) is data
    short = held_out.choose(0.1, data, trained=40_000, evaluations=5)
    assert not short.answers and short.rows == int(1.5 * 40_000 / 9 / (7 * 50)) == 19
    assert 0.09 < short.share <= 0.1
    assert short.note() == (
        "evaluations take 19 of 300 held-out rows, without answers while it trains: about 10 % of the run; "
        "--eval_share 1 takes all"
    )
    assert held_out.choose(1, data, 10, 5).rows == 300  # all of them, whatever it costs
    assert held_out.choose(0.1, data, 10, 5).rows == held_out.LEAST
    assert held_out.choose(0.1, rows(3), 10, 5).rows == 3
    for share in (0.02, 0.05, 0.2, 0.5):
        found = held_out.choose(share, data, 200_000, 5)
        assert found.share <= share or found.rows == held_out.LEAST
    fewer = held_out.choose(0.1, data, 40_000, 2)
    assert fewer.rows > short.rows


def test_rows_are_spread_evenly_and_always_the_same():
    data = rows(300)
    taken = held_out.HeldOut(10, 300, True, 0.1).take(data)
    assert [ids[0] for ids in taken["input_ids"]] == list(range(0, 300, 30))
