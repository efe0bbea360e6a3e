"""The time that a run still takes: by the tokens of the steps to come, and the evaluations and checkpoints between."""

import math
from collections.abc import Sequence

RECENT = 0.5  # share of the steps so far by which those to come are judged


class TimeLeft:
    """Fed with the seconds of steps, and of the pauses after some of them, as they pass.

    Attributes:
        costs: what each step of the run costs beside the others, as the forecast has it; empty: all the same.
        pauses: steps after which it evaluates or saves.
        pause: the seconds of such a pause, before there was one.
        after: the seconds of what follows the last step and its pause.
    """

    def __init__(self, first: int, last: int, pauses: Sequence[int] | set[int], costs: Sequence[float] = ()):
        self.last, self.pauses = last, sorted(step for step in pauses if first < step <= last)
        self.costs = list(costs) if len(costs) == last else [1.0] * last
        self.pause = self.after = 0.0
        self._steps: list[tuple[int, float]] = []
        self._paused: list[float] = []

    def stepped(self, step: int, seconds: float) -> None:
        self._steps.append((step, seconds))

    def paused(self, step: int, seconds: float) -> None:
        """The next step began so many seconds after `step` had ended."""
        if step in self.pauses:
            self._paused.append(seconds)

    def seconds(self, begun: float = 0.0) -> float | None:
        """Until the last step and its pause are over; None before the second step, as the first one warms up.

        Args:
            begun: seconds since the last step ended.
        """
        if len(self._steps) < 2:
            return None
        done = self._steps[-1][0]
        recent = self._steps[max(1, math.floor(len(self._steps) * (1 - RECENT))) :]
        cost = sum(self.costs[step - 1] for step, _ in recent)
        rate = sum(seconds for _, seconds in recent) / max(cost, 1e-12)
        steps = rate * sum(self.costs[done:])
        each = sum(self._paused) / len(self._paused) if self._paused else self.pause
        pauses = each * sum(step > done for step in self.pauses)
        now = (
            max(each - begun, 0.0) if done in self.pauses else -min(begun, rate * self.costs[min(done, self.last - 1)])
        )
        return max(steps + pauses + now, 0.0)


def every(steps: float, last: int) -> set[int]:
    """The steps up to `last` at multiples of `steps`, or of a share of them below 1, and the last one."""
    size = max(1, math.ceil(last * steps) if steps < 1 else int(steps))
    return {*range(size, last + 1, size), last}
