"""What a forecast asks of a transformers.Trainer: single steps, its batch size, its evaluations."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.rehearsal import Actor
from common.sampling import lengths_of
from common.workload import Workload, evaluations


def candidates(trainer: Any, find_batch_size: bool) -> list[int]:
    """Batch sizes to try: the asked one, then every smaller one of which the rows of a step are a multiple."""
    size = trainer.args.per_device_train_batch_size
    step = size * trainer.args.gradient_accumulation_steps
    smaller = [part for part in range(size - 1, 0, -1) if step % part == 0] if find_batch_size else []
    return [size, *smaller]


def set_batch_size(trainer: Any, size: int) -> None:
    """Give a trainer another batch size with as much more or less accumulation, in every place that it reads."""
    args = trainer.args
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if step % size:
        raise ValueError(f"{size} rows a batch do not divide the {step} rows of a step")
    if args.per_device_eval_batch_size == args.per_device_train_batch_size:
        args.per_device_eval_batch_size = size
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, step // size
    trainer._train_batch_size = args.train_batch_size


def actor(trainer: Any) -> Actor:
    """What a rehearsal does with a trainer."""
    loader = trainer.get_train_dataloader()

    def step(batch: dict[str, Any]) -> None:
        trainer.current_gradient_accumulation_steps = 1
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        with trainer.accelerator.autocast():  # the model is not prepared yet
            trainer.training_step(trainer.model, batch, items)

    def evaluate(batch: dict[str, Any]) -> None:
        trainer.model.eval()
        with trainer.accelerator.autocast():
            trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)

    def optimizer() -> Any:
        given, trainer.optimizer = trainer.optimizer, None
        if given is not None:
            return type(given)(given.param_groups, **given.defaults)
        made, trainer.optimizer = trainer.create_optimizer(), None
        return made

    rows = loader.dataset
    return Actor(
        trainer.model, lambda places: loader.collate_fn([rows[place] for place in places]), step, optimizer, evaluate,
        trainer.args.gradient_accumulation_steps,
    )  # fmt: skip


@contextmanager
def kept(trainer: Any) -> Iterator[None]:
    """The trainer's own fields are afterwards what they were; the metrics that it gathers, too."""
    before = dict(vars(trainer))
    metrics = copy.deepcopy(before.get("_metrics"))
    try:
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(before)
        if metrics is not None:
            trainer._metrics = metrics


def evaluated(trainer: Any, workload: Workload) -> int:
    """Positions of all evaluations while training, of one process."""
    import numpy

    if trainer.eval_dataset is None:
        return 0
    lengths, size = lengths_of(trainer.eval_dataset), trainer.args.eval_batch_size
    starts = numpy.arange(0, len(lengths), size)
    widths = numpy.maximum.reduceat(lengths, starts)
    positions = int(widths @ numpy.diff(starts, append=len(lengths)))
    return evaluations(trainer.args, workload) * positions // trainer.args.world_size


def vocabulary(model: Any) -> int:
    """Logits of a position."""
    return model.get_output_embeddings().weight.shape[0]
