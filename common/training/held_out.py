"""How many held-out rows an evaluation takes, so that all evaluations of a run cost at most a share of it.

That is decided by counts before the run, never by the clock: the best checkpoint, early stopping, and whether a resumed
run equals an undisturbed one depend on these rows. The same rows are taken before, while and after training.
"""

from dataclasses import dataclass
from typing import Any

from tunebook.common.tokens.lengths import lengths_of

# Forward passes that a step costs: two with a frozen base, whose weights get no gradients, and three without; less what
# a batch of an evaluation costs beside its tokens.
STEP = 1.5
LEAST = 8  # rows, however short the run is
ANSWERS = 64 * 32  # tokens of a forward pass that take as long as two answers of 64 tokens, one by one
AROUND = 2  # evaluations beside those while training: before it, and after it


@dataclass(frozen=True)
class HeldOut:
    """`rows` of the `of` held-out rows are evaluated; `answers`: two answers are shown, too. `share`: what this takes
    of the run's time, by arithmetic."""

    rows: int
    of: int
    answers: bool
    share: float

    def take(self, dataset: Any) -> Any:
        """So many rows of the dataset, evenly spread."""
        return dataset if self.rows == self.of else dataset.select([n * self.of // self.rows for n in range(self.rows)])

    def note(self) -> str:
        """What is left out, in a line; empty where nothing is."""
        if self.rows == self.of and self.answers:
            return ""
        left_out = "" if self.answers else ", without answers while it trains"
        return (
            f"evaluations take {self.rows} of {self.of} held-out rows{left_out}: about {100 * self.share:.0f} % of the "
            "run; --eval_share 1 takes all"
        )


def choose(share: float, dataset: Any, trained: float, evaluations: int) -> HeldOut:
    """
    Args:
        share: of the run's time that its evaluations may take.
        dataset: all held-out rows, encoded.
        trained: tokens that the run trains on, prompts and answers.
        evaluations: while training.
    """
    lengths = lengths_of(dataset)
    of, mean, times = len(lengths), float(lengths.mean()), evaluations + AROUND
    steps = STEP * trained
    budget = float("inf") if share >= 1 else steps * share / (1 - share)
    answers = evaluations * ANSWERS <= budget / 2
    left = budget - (evaluations * ANSWERS if answers else 0)
    rows = int(min(of, max(LEAST, left / (times * mean))))
    cost = times * rows * mean + (evaluations * ANSWERS if answers else 0)
    return HeldOut(rows, of, answers, cost / (cost + steps))
