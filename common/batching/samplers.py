"""Order of training rows: rows of similar length in a batch, batches in random order."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunebook.common.tokens.lengths import lengths_of


class LengthGroupedSampler:
    """Rows of one optimizer step stand together and are of similar length.

    Unlike transformers' group_by_length it keeps a step's rows however they are split over devices, and resumes.

    Rows are shuffled, cut into windows, sorted by length inside each window, and cut into groups; whole groups come
    in random order. Leftover rows are a random choice and come last. The order depends on (seed, epoch) alone, so a
    resumed run sees the rows it would have seen. A group is all rows of a step, over processes and accumulation
    (accelerate deals consecutive batches to its processes).

    Args:
        lengths: tokens of each row.
        group: rows of one optimizer step, over all processes.
        window: groups that are sorted together. More of them: less padding, but batches more alike from epoch to epoch.
            With the 51,912 Alpaca rows of at most 512 Llama-3 tokens in groups of 8, 46 % of the positions are
            padding in random order, 9.3 % with a window of 16, 3.6 % with 50, and 1.5 % with 128.

    Raises:
        ValueError: group or window is below 1.
    """

    def __init__(self, lengths: Sequence[int] | Any, group: int, seed: int, window: int = 50):
        import numpy

        if group < 1 or window < 1:
            raise ValueError(f"group is {group} and window {window}; both must be at least 1")
        self.lengths = numpy.asarray(lengths, dtype=numpy.int64)
        self.group, self.seed, self.window = group, seed, window
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration gives. accelerate's loaders call it."""
        self.epoch = epoch

    def order(self, epoch: int) -> Any:
        """int64 (N,): places of the rows in the order of that epoch, each of them once."""
        import numpy

        random = numpy.random.default_rng([self.seed, epoch])
        rows = random.permutation(len(self.lengths))
        groups = len(rows) // self.group
        whole, rest = rows[: groups * self.group], rows[groups * self.group :]
        # Windows of equal size, so that none is small and badly sorted.
        windows = -(-groups // self.window)
        window = numpy.arange(len(whole)) // self.group * windows // max(groups, 1)
        # One stable sort by window, then length; rows of one length stay in random order.
        span = int(self.lengths.max(initial=0)) + 1
        whole = whole[numpy.argsort(window * span + self.lengths[whole], kind="stable")]
        whole = whole.reshape(groups, self.group)[random.permutation(groups)]
        return numpy.concatenate([whole.ravel(), rest[numpy.argsort(self.lengths[rest], kind="stable")]])


def padding_share(
    lengths: Sequence[int] | Any, order: Sequence[int] | Any, batch_size: int, multiple: int = 1
) -> float:
    """Fraction of positions that are padding when consecutive rows of `order` make batches padded to their longest row.

    `multiple`: widths are rounded up to a multiple of it (pad_to_multiple_of).
    """
    import numpy

    taken = numpy.asarray(lengths, dtype=numpy.int64)[numpy.asarray(order, dtype=numpy.int64)]
    if not len(taken):
        return 0.0
    starts = numpy.arange(0, len(taken), batch_size)
    widths = -(-numpy.maximum.reduceat(taken, starts) // multiple) * multiple
    positions = widths @ numpy.diff(starts, append=len(taken))
    return float(1 - taken.sum() / positions)


def group_by_length(trainer: Any) -> LengthGroupedSampler:
    """Make a transformers.Trainer take its training rows by LengthGroupedSampler, and print the padding that it saves.

    The group is what the trainer's arguments make a step now; it stays when batch size and accumulation are traded for
    each other later. Call it before `trainer.train`.
    """
    from transformers import TrainerCallback

    args = trainer.args
    seed = args.seed if args.data_seed is None else args.data_seed
    group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    sampler = LengthGroupedSampler(lengths_of(trainer.train_dataset), group, seed)

    class Epoch(TrainerCallback):
        """accelerate (1.15) reaches no sampler when it skips rows for several processes: a resumed run would take the
        order of epoch 0."""

        def on_epoch_begin(self, args, state, control, **kwargs):
            sampler.set_epoch(int(state.epoch or 0))

    trainer._get_train_sampler = lambda dataset=None: sampler
    trainer.add_callback(Epoch())
    if trainer.is_world_process_zero():
        multiple = vars(args).get("pad_to_multiple_of") or 1  # a field of SFTConfig alone
        print(padding_summary(sampler, args.train_batch_size, multiple))
    return sampler


def padding_summary(sampler: LengthGroupedSampler, batch_size: int, multiple: int = 1) -> str:
    """One line: padding in the first epoch, and what the same rows would have in random order."""
    import numpy

    shuffled = numpy.random.default_rng(sampler.seed).permutation(len(sampler))
    ours, random = (
        padding_share(sampler.lengths, order, batch_size, multiple) for order in (sampler.order(0), shuffled)
    )
    return f"length-grouped batches: {ours:.1%} padding ({random:.1%} if shuffled)"
