"""The batches of a run before it runs: their rows and widths in the order of the run's own sampler."""

import math
from dataclasses import dataclass
from typing import Any

import numpy

from tunebook.common.tokens.lengths import lengths_of


@dataclass
class BatchSchedule:
    """All batches that one process trains on, in order.

    `rows` and `widths` are int64 (N,). `longest`: row indices of the batch with most positions (of those the widest) in
    any epoch. `members`: row indices of the first epoch, batch after batch; its batch k is
    members[starts[k] : starts[k + 1]]. A row of the dataset is `sequences` rows of a batch: two where it is a pair.
    """

    rows: Any
    widths: Any
    longest: list[int]
    members: Any
    starts: Any
    steps: int  # of the optimizer
    epochs: int  # begun
    batch_size: int  # rows of the dataset in a whole batch
    dataset: Any
    sequences: int = 1
    joined: int = 1  # rows of the dataset in each row of the longest batch

    @property
    def positions(self) -> Any:
        return self.rows * self.widths

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width of the longest batch."""
        index = _longest(self.rows, self.widths)
        return int(self.rows[index]), int(self.widths[index])

    def at(self, quantile: float) -> list[int]:
        """Row indices of the batch at this quantile of the first epoch's batches, by positions."""
        order = numpy.argsort(self.positions[: len(self.starts) - 1], kind="stable")
        index = int(order[min(len(order) - 1, int(quantile * len(order)))])
        return self.members[self.starts[index] : self.starts[index + 1]].tolist()

    def name(self) -> str:
        """The longest row of the longest batch: its number and source, or its bin where rows are packed."""
        lengths = lengths_of(self.dataset.select(self.longest))
        index = self.longest[int(numpy.argmax(lengths))]
        if "row" not in self.dataset.column_names:
            kind = "bin of the packed rows" if "seq_lengths" in self.dataset.column_names else "row kept"
            return f"{kind}, number {index + 1}, {lengths.max()} tokens"
        row = self.dataset.select_columns(["row", "source"])[index]
        return f"row {row['row']}{' of ' + row['source'] if row['source'] else ''}, {lengths.max()} tokens"


def _longest(rows: Any, widths: Any) -> int:
    """The batch with most positions, of those the widest."""
    return int(numpy.lexsort((widths, rows * widths))[-1])


def of_loader(
    loader: Any, dataset: Any, accumulation: int, epochs: float, max_steps: int, multiple: int = 1
) -> BatchSchedule:
    """The batches of a prepared DataLoader, by its own batch sampler.

    Args:
        loader: prepared by accelerate (it can `set_epoch`); only its order is read.
        dataset: with lists `input_ids`.
        accumulation: batches per step; the last step of an epoch may have fewer.
        max_steps: of the optimizer; below 1: as many as the epochs take.
        multiple: as pad_to_multiple_of.
    """
    lengths, one_row, sequences = lengths_of(dataset), joins(loader.collate_fn), sequences_of(dataset)
    per_epoch = -(-len(loader) // accumulation)
    steps = max_steps if max_steps > 0 else -int(-(epochs * per_epoch) // 1)
    rows, widths, members, starts, left = [], [], None, None, steps
    longest, most = [], (0, 0)
    for epoch in range(-(-steps // per_epoch)):
        loader.set_epoch(epoch)
        batches = [numpy.asarray(batch, dtype=numpy.int64) for batch in loader.batch_sampler]
        edges = numpy.cumsum([0, *(len(batch) for batch in batches)])
        flat, used = numpy.concatenate(batches), min(len(batches), left * accumulation)
        left -= min(left, per_epoch)
        counts, widest = _shapes(lengths[flat], edges, one_row)
        rows.append(counts[:used] * sequences)
        widths.append((-(-widest // multiple) * multiple)[:used])
        index = _longest(rows[-1], widths[-1])
        size = int(rows[-1][index] * widths[-1][index]), int(widths[-1][index])
        if size > most:
            most, longest = size, batches[index].tolist()
        if members is None:
            members, starts = flat[: edges[used]], edges[: used + 1]
    loader.set_epoch(0)
    return BatchSchedule(
        rows=numpy.concatenate(rows),
        widths=numpy.concatenate(widths),
        longest=longest,
        members=members,
        starts=starts,
        steps=steps,
        epochs=len(rows),
        batch_size=loader.batch_sampler.batch_size,
        dataset=dataset,
        sequences=sequences,
        joined=len(longest) if one_row else 1,
    )


def of_trainer(trainer: Any) -> BatchSchedule:
    """The batches of a transformers.Trainer whose dataset is encoded."""
    args, loader = trainer.args, trainer.get_train_dataloader()
    multiple = vars(args).get("pad_to_multiple_of") or 1
    epochs = args.num_train_epochs
    return of_loader(loader, trainer.train_dataset, args.gradient_accumulation_steps, epochs, args.max_steps, multiple)


def _shapes(lengths: Any, edges: Any, one_row: bool) -> tuple[Any, Any]:
    """int64 (B,) twice: rows and width of each batch, whose rows are padded to the longest, or joined into one.

    Args:
        lengths: tokens of the rows, batch after batch; batch k has those at edges[k] : edges[k + 1].
    """
    if one_row:
        return numpy.ones(len(edges) - 1, numpy.int64), numpy.add.reduceat(lengths, edges[:-1])
    return numpy.diff(edges), numpy.maximum.reduceat(lengths, edges[:-1])


def joins(collate: Any) -> bool:
    """Whether a collator concatenates all rows of a batch."""
    return getattr(collate, "one_row", False)


def sequences_of(dataset: Any) -> int:
    """Rows of a batch per row of the dataset: two for preference pairs."""
    return 2 if "rejected_ids" in dataset.column_names else 1


def evaluations(args: Any, steps: int, epochs: int) -> int:
    """How often a trainer with these arguments evaluates during so many steps, and epochs that begin."""
    if args.eval_strategy == "epoch":
        return sum(args.eval_delay <= epoch + 1 for epoch in range(epochs))
    if args.eval_strategy == "no":
        return 0
    every = max(1, math.ceil(steps * args.eval_steps) if args.eval_steps < 1 else int(args.eval_steps))
    at = {*range(every, steps + 1, every), steps}  # always after the last step, too
    return sum(args.eval_delay <= step for step in at)


def evaluation_positions(trainer: Any, schedule: BatchSchedule) -> int:
    """Positions of all evaluations during training, in one process."""
    if trainer.eval_dataset is None:
        return 0
    lengths, size = lengths_of(trainer.eval_dataset), trainer.args.eval_batch_size
    if joins(trainer.data_collator):
        positions = int(lengths.sum())
    else:
        starts = numpy.arange(0, len(lengths), size)
        widths = numpy.maximum.reduceat(lengths, starts)
        positions = int(widths @ numpy.diff(starts, append=len(lengths))) * sequences_of(trainer.eval_dataset)
    return evaluations(trainer.args, schedule.steps, schedule.epochs) * positions // trainer.args.world_size
