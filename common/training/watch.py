"""What goes wrong while a model trains: losses that are no number, explosion, vanished gradients, growing memory."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median

from tunebook.common import resources
from tunebook.common.errors import CheckFailed
from tunebook.common.format import byte_size

PAGE = "docs/troubleshooting.md"
HALVINGS = 16  # of a float16 run's loss scale of 65,536, after which it is 1
KEPT = 50  # losses of which the median is taken
FIRST = 10  # values that must be there before anything is held against them
EXPLODED = 3  # so many times the median, and more than one nat above it
ROW = 3  # values in a row: one batch may be hard
NOTHING = 1e-8  # a gradient norm below it moves no weight
STILL = 10  # values in a row with such a norm
SETTLED = 10  # values of memory that are passed over: caches fill
WINDOW = 5  # values of memory of which the least is taken: batches differ in length
WINDOWS = 4  # that must each be above the one before
GROWN = 0.2  # share by which memory has grown that is told at once
NOISE = 0.06  # share below which it may be the batches


class TrainingWatch:
    """Looks at what a training loop logs. A value that is no number ends the run; all else is told once.

    Args:
        held: bytes of memory that are taken now.
        limit: bytes that may be taken.
    """

    def __init__(self, held: Callable[[], int] = resources.held, limit: Callable[[], int] = resources.limit):
        self._held, self._limit = held, limit
        self._losses: list[float] = []
        self._high = self._still = self._overflows = 0
        self._memory: list[tuple[int, int]] = []  # (step, bytes)
        self._settled: tuple[int, int, int] | None = None  # step, least and most bytes when caches were full
        self._told: set[str] = set()
        self._settling = SETTLED + WINDOW * WINDOWS

    def look(self, step: int, values: dict[str, float], skipped: bool = False, last: int = 0) -> Iterator[str]:
        """The warnings that the values of a step give rise to.

        Args:
            values: `loss`, `grad_norm`, `learning_rate`, `eval_loss`, where they are known.
            skipped: float16's scaler left the step out, for a gradient that overflowed.
            last: the last step of the run.

        Raises:
            CheckFailed: a loss or the gradient norm is NaN or infinite.
        """
        self._numbers(step, values, skipped)
        if "loss" not in values:
            return
        found = {
            "exploded": self._exploded(values["loss"]),
            "vanished": self._vanished(values.get("grad_norm")),
            "memory": self._grown(step, last),
        }
        for name, text in found.items():
            if text and name not in self._told:
                self._told.add(name)
                yield f"warning: step {step}: {text}"

    def _numbers(self, step: int, values: dict[str, float], skipped: bool) -> None:
        if "grad_norm" in values:  # an evaluation has none
            self._overflows = self._overflows + 1 if skipped else 0
        names = ["loss", "eval_loss"]
        # float16 scales its loss and leaves a step out where a gradient overflows, with half the scale after it.
        if not skipped or self._overflows > HALVINGS:
            names.append("grad_norm")
        for name in names:
            value = float(values.get(name, 0.0))
            if not math.isfinite(value):
                rate = f" (now {values['learning_rate']:g})" if "learning_rate" in values else ""
                raise CheckFailed(
                    f"{name} is {value} at step {step}: training has diverged. Most often the learning rate is too "
                    f"high: start again with a tenth of --learning_rate{rate} and --overwrite, or a longer warm-up; "
                    f"checkpoints are kept. See {PAGE}#the-loss-is-not-a-number"
                )

    def _exploded(self, loss: float) -> str:
        usual = median(self._losses) if self._losses else loss
        high = len(self._losses) >= FIRST and loss > max(EXPLODED * usual, usual + 1)
        self._high = self._high + 1 if high else 0
        if not high:
            self._losses = [*self._losses[1 - KEPT :], loss]
        if self._high < ROW:
            return ""
        return (
            f"the loss is {loss:.3g}, where the median was {usual:.3g}. Most often the learning rate is too high, or "
            f"the rows of these steps are of another kind; try half of --learning_rate. See {PAGE}#the-loss-explodes"
        )

    def _vanished(self, norm: float | None) -> str:
        if norm is None:
            return ""
        self._still = self._still + 1 if norm < NOTHING else 0
        if self._still < STILL:
            return ""
        return (
            f"the gradient norm has been {norm:.1g} for {STILL} logs: nothing is learned any more. Either every row is "
            f"learned, or what trains is cut off from the loss; look at the loss, then at what trains with tunebook "
            f"inspect and plan. See {PAGE}#the-gradients-vanish"
        )

    def _grown(self, step: int, last: int) -> str:
        self._memory = [*self._memory[1 - WINDOW * WINDOWS :], (step, self._held())]
        self._settling -= self._settling > 0
        if self._settling:
            return ""
        parts = [self._memory[at : at + WINDOW] for at in range(0, WINDOW * WINDOWS, WINDOW)]
        least = [min(part, key=lambda pair: pair[1]) for part in parts]
        self._settled = self._settled or (*least[0], max(size for _, size in parts[0]))
        begun, base, most = self._settled
        now = least[-1][1]
        if now <= most or any(later[1] <= earlier[1] for earlier, later in pairwise(least)):
            return ""  # batches differ, and so does what they take
        grown = now - base
        each = grown / (least[-1][0] - begun)
        room = self._limit() - now
        if grown < NOISE * base or (grown < GROWN * base and each * (last - step) < room):
            return ""
        return (
            f"memory grows, by {byte_size(each)} a step, to {byte_size(now)}; at this rate it is used up after "
            f"{max(1, int(room / each)):,} more steps. Most often a callback or a changed recipe keeps tensors of past "
            f"steps (loss instead of loss.item()). See {PAGE}#memory-grows"
        )
