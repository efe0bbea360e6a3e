"""What a model takes at any size of batch, by arithmetic, and what would fit into a limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "process")
MOST_ROWS = 4096  # more are not looked for
STEP = 8  # lengths are given in multiples of it


@dataclass
class Sizes:
    """Bytes of a run as functions of the batch; `moments` come from footprint.moments.

    Args:
        process: what the process holds beside the model.
        gradients: of all that trains.
        accumulates: a step has several batches, so that gradients stay from one to the next.
        labels: share of positions that train, in the longest batch.
        moments: None where they are not known; then activations count nothing.
        hidden: width of the hidden states, on a GPU.
        update: what the optimizer's step takes while it works.
        buckets: what DistributedDataParallel holds to send gradients in.
    """

    weights: int
    gradients: int
    optimizer: int
    process: int
    vocabulary: int
    accumulates: bool
    labels: float
    moments: Any
    hidden: int | None = None
    update: int = 0
    buckets: int = 0

    def parts(self, rows: int, width: int) -> dict[str, int]:
        """Bytes of each of PARTS at the moment at which most is held, for a batch of rows x width."""
        moment = {"activations": 0, "gradients": self.gradients, "logits": 0, "optimizer": self.optimizer + self.update}
        if self.moments is not None:
            labels = chunk(round(rows * width * self.labels), self.vocabulary, self.hidden)
            step = {**self.moments.peak(rows, width, labels, self.accumulates), "optimizer": self.optimizer}
            moment = max(step, moment, key=lambda found: sum(found.values()))
        own = {"weights": self.weights, "process": self.process, **moment}
        own["gradients"] += self.buckets
        return {name: own[name] for name in PARTS}

    def peak(self, rows: int, width: int) -> int:
        return sum(self.parts(rows, width).values())


def most_rows(sizes: Sizes, width: int, limit: int, at_most: int = MOST_ROWS) -> int:
    """The largest number of rows of this width that fits; 0 where not even one does."""
    return _largest(lambda rows: sizes.peak(rows, width) <= limit, at_most)


def longest_width(sizes: Sizes, rows: int, limit: int, at_most: int = 2**20) -> int:
    """The largest width, in multiples of STEP, of which so many rows fit; 0 where none does."""
    return STEP * _largest(lambda count: sizes.peak(rows, STEP * count) <= limit, at_most // STEP)


def _largest(fits: Callable[[int], bool], at_most: int) -> int:
    """The largest number up to at_most that fits, of which all smaller ones fit, too; 0 where 1 does not."""
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def divisor(rows: int, most: int) -> int:
    """The largest divisor of `rows` that is not over `most`."""
    return next(size for size in range(max(1, min(rows, most)), 0, -1) if rows % size == 0)


def chunk(labels: int, vocabulary: int, hidden: int | None = None) -> int:
    """Labels of which Unsloth computes the loss at once.

    Args:
        hidden: width of the hidden states, on a GPU, where its fused head takes a power of two near labels · hidden /
            vocabulary, within bounds (fused_linear_rows of unsloth_zoo 2026.10.9; a card with under 4 GiB free gets
            fewer). None: a CPU, where it takes 16 Mi logits.
    """
    if hidden is None:
        return min(labels, max(16, 16 * 2**20 // vocabulary))
    least = min(max(_power_of_two(512 * 151_936 / vocabulary), 512), 4096)
    rows = min(max(_power_of_two(labels * hidden / vocabulary), least), 4096, 2 * 2**30 // (4 * vocabulary))
    return min(labels, rows)


def _power_of_two(value: float) -> int:
    """The largest that is not over it; 1 where none is."""
    return 1 << max(0, int(value).bit_length() - 1)
