"""The batches of a run before it runs: their rows and widths in the order of the run's own sampler."""

import math
from dataclasses import dataclass
from typing import Any

from tunebook.common.tokens.lengths import lengths_of


@dataclass
class BatchSchedule:
    """All batches that one process trains on, in order.

    `rows` and `widths` are int64 (N,): rows of a batch and positions of a row. `longest` are the places in the data
    set of the rows of the batch with most positions (of those the widest), whichever epoch it is in. `members` are
    those of the first epoch, batch after batch; batch k of it has members[starts[k] : starts[k + 1]]. A row of the
    data set is `sequences` rows of a batch: two where it is a pair (preference/encoding.py).
    """

    rows: Any
    widths: Any
    longest: list[int]
    members: Any
    starts: Any
    steps: int  # of the optimizer
    epochs: int  # begun
    batch_size: int  # rows of the data set in a whole batch
    dataset: Any
    sequences: int = 1
    joined: int = 1  # rows of the data set that the longest batch has in each row

    @property
    def positions(self) -> Any:
        return self.rows * self.widths

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width of the longest batch."""
        import numpy

        place = numpy.lexsort((self.widths, self.positions))[-1]
        return int(self.rows[place]), int(self.widths[place])

    def at(self, share: float) -> list[int]:
        """Places of the rows of the batch that has more positions than this share of the first epoch's batches."""
        import numpy

        order = numpy.argsort(self.positions[: len(self.starts) - 1], kind="stable")
        place = int(order[min(len(order) - 1, int(share * len(order)))])
        return self.members[self.starts[place] : self.starts[place + 1]].tolist()

    def name(self) -> str:
        """The longest row of the longest batch in words: its number and source, or its bin where rows are packed."""
        import numpy

        lengths = lengths_of(self.dataset.select(self.longest))
        row = self.longest[int(numpy.argmax(lengths))]
        if "row" not in self.dataset.column_names:
            kind = "bin of the packed rows" if "seq_lengths" in self.dataset.column_names else "row kept"
            return f"{kind}, number {row + 1}, {lengths.max()} tokens"
        found = self.dataset.select_columns(["row", "source"])[row]
        return f"row {found['row']}{' of ' + found['source'] if found['source'] else ''}, {lengths.max()} tokens"


def of_loader(
    loader: Any, dataset: Any, accumulation: int, epochs: float, max_steps: int, multiple: int = 1,
    sequences: int = 1,
) -> BatchSchedule:  # fmt: skip
    """The batches that a prepared DataLoader will give, by its own batch sampler.

    Args:
        loader: made by accelerate (it can `set_epoch`); nothing is read from it but the order.
        dataset: with lists `input_ids`.
        accumulation: batches of a step; the last step of an epoch may have fewer.
        max_steps: of the optimizer; below 1: as many as the epochs take.
        multiple: widths are rounded up to one of it (pad_to_multiple_of).
        sequences: rows of a batch that a row of the data set is.
    """
    import numpy

    lengths, one_row = lengths_of(dataset), joins(loader.collate_fn)
    per_epoch = -(-len(loader) // accumulation)
    steps = max_steps if max_steps > 0 else -int(-(epochs * per_epoch) // 1)
    rows, widths, members, starts, left = [], [], None, None, steps
    longest, most = [], (0, 0)
    for epoch in range(-(-steps // per_epoch)):
        loader.set_epoch(epoch)
        batches = [numpy.asarray(batch, dtype=numpy.int64) for batch in loader.batch_sampler]
        edges = numpy.cumsum([0, *(len(batch) for batch in batches)])
        flat, take = numpy.concatenate(batches), min(len(batches), left * accumulation)
        left -= min(left, per_epoch)
        counts, widest = _shapes(lengths[flat], edges, one_row)
        rows.append(counts[:take] * sequences)
        widths.append((-(-widest // multiple) * multiple)[:take])
        place = int(numpy.lexsort((widths[-1], rows[-1] * widths[-1]))[-1])
        size = int(rows[-1][place] * widths[-1][place]), int(widths[-1][place])
        if size > most:
            most, longest = size, batches[place].tolist()
        if members is None:
            members, starts = flat[: edges[take]], edges[: take + 1]
    loader.set_epoch(0)
    return BatchSchedule(
        numpy.concatenate(rows),
        numpy.concatenate(widths),
        longest,
        members,
        starts,
        steps,
        len(rows),
        loader.batch_sampler.batch_size,
        dataset,
        sequences,
        len(longest) if one_row else 1,
    )


def _shapes(lengths: Any, edges: Any, one_row: bool) -> tuple[Any, Any]:
    """int64 (B,) twice: rows and width of each batch, whose rows are padded to the longest, or joined into one.

    Args:
        lengths: tokens of the rows, batch after batch; batch k has those at edges[k] : edges[k + 1].
    """
    import numpy

    if one_row:
        return numpy.ones(len(edges) - 1, numpy.int64), numpy.add.reduceat(lengths, edges[:-1])
    return numpy.diff(edges), numpy.maximum.reduceat(lengths, edges[:-1])


def joins(collate: Any) -> bool:
    """Whether a collator makes one row of all the rows of a batch."""
    return getattr(collate, "one_row", False)


def sequences_of(dataset: Any) -> int:
    """Rows of a batch that a row of the data set is: two where it holds pairs."""
    return 2 if "rejected_ids" in dataset.column_names else 1


def of_trainer(trainer: Any) -> BatchSchedule:
    """The batches of a transformers.Trainer that has a data set of encoded rows."""
    args = trainer.args
    multiple = vars(args).get("pad_to_multiple_of") or 1
    return of_loader(
        trainer.get_train_dataloader(), trainer.train_dataset, args.gradient_accumulation_steps,
        args.num_train_epochs, args.max_steps, multiple, sequences_of(trainer.train_dataset),
    )  # fmt: skip


def evaluations(args: Any, schedule: BatchSchedule) -> int:
    """How often a trainer with these arguments evaluates while it trains on a schedule."""
    if args.eval_strategy == "epoch":
        return sum(args.eval_delay <= epoch + 1 for epoch in range(schedule.epochs))
    if args.eval_strategy == "no":
        return 0
    every = max(1, math.ceil(schedule.steps * args.eval_steps) if args.eval_steps < 1 else int(args.eval_steps))
    at = {*range(every, schedule.steps + 1, every), schedule.steps}  # always after the last step, too
    return sum(args.eval_delay <= step for step in at)
