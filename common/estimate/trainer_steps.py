"""What a forecast asks of a transformers.Trainer or a plain loop: single steps, batch size, evaluations."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.common.batching import weight_collator
from tunebook.common.estimate.probe import StepFunctions
from tunebook.common.estimate.schedule import BatchSchedule, evaluations, joins, sequences_of
from tunebook.common.tokens.lengths import lengths_of


def batch_sizes(trainer: Any, find_batch_size: bool) -> list[int]:
    """Batch sizes to try: the asked one, then every smaller one of which the rows of a step are a multiple."""
    size = trainer.args.per_device_train_batch_size
    step = size * trainer.args.gradient_accumulation_steps
    smaller = [part for part in range(size - 1, 0, -1) if step % part == 0] if find_batch_size else []
    return [size, *smaller]


def set_batch_size(trainer: Any, size: int) -> None:
    """Give a trainer one of `batch_sizes` with as much more accumulation, in every place that it reads."""
    args = trainer.args
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if args.per_device_eval_batch_size == args.per_device_train_batch_size:
        args.per_device_eval_batch_size = size
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, step // size
    trainer._train_batch_size = args.train_batch_size


def step_functions(trainer: Any) -> StepFunctions:
    """Single steps of a trainer whose model is not prepared yet."""
    loader = trainer.get_train_dataloader()

    def step(batch: dict[str, Any]) -> None:
        trainer.current_gradient_accumulation_steps = 1
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        with trainer.accelerator.autocast():
            trainer.training_step(trainer.model, batch, items)

    def evaluate(batch: dict[str, Any]) -> None:
        trainer.model.eval()
        with trainer.accelerator.autocast():
            trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)

    def optimizer() -> Any:
        given, trainer.optimizer = trainer.optimizer, None
        if given is not None:
            return type(given)([{"params": group["params"]} for group in given.param_groups], **given.defaults)
        made, trainer.optimizer = trainer.create_optimizer(), None
        return made

    rows = loader.dataset
    return StepFunctions(
        model=trainer.model,
        collate=lambda places: loader.collate_fn([rows[place] for place in places]),
        step=step,
        optimizer=optimizer,
        evaluate=evaluate,
        accumulation=trainer.args.gradient_accumulation_steps,
    )


def loop_step_functions(
    accelerator: Any, model: Any, loader: Any, loss_of: Callable[[Any, dict[str, Any]], Any], accumulation: int
) -> StepFunctions:
    """Single steps of a loop whose model and loader the accelerator has prepared.

    Args:
        loss_of: (model, batch) -> the sum of the losses of its tokens.
    """
    import torch
    from accelerate.utils import send_to_device

    def collate(places: list[int]) -> Any:
        return send_to_device(loader.collate_fn([loader.dataset[place] for place in places]), accelerator.device)

    def step(batch: dict[str, Any]) -> None:
        model.train()
        accelerator.backward(loss_of(model, batch) / weight_collator.total_weight(batch))

    def evaluate(batch: dict[str, Any]) -> None:
        model.eval()
        with torch.no_grad():
            loss_of(model, weight_collator.without_weights(batch))

    def optimizer() -> Any:
        return torch.optim.AdamW(model.parameters(), fused=True)

    return StepFunctions(model, collate, step, optimizer, evaluate, accumulation)


@contextmanager
def preserve_trainer(trainer: Any) -> Iterator[None]:
    """The trainer's own fields are afterwards what they were, and so are the metrics that it gathers.

    Inside, activations are recomputed where `train` would do so, and nothing waits for another process: one may have
    no memory for a step that the others have.
    """
    before, args, accelerator = dict(vars(trainer)), trainer.args, trainer.accelerator
    metrics = copy.deepcopy(before.get("_metrics"))
    accelerator.gather = accelerator.gather_for_metrics = lambda value, *_: value
    try:
        with gradient_checkpointing(trainer.model, args.gradient_checkpointing, args.gradient_checkpointing_kwargs):
            yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
        vars(trainer).clear()
        vars(trainer).update(before)
        if metrics is not None:
            trainer._metrics = metrics


@contextmanager
def gradient_checkpointing(model: Any, wanted: bool = True, settings: dict[str, Any] | None = None) -> Iterator[bool]:
    """Activation checkpointing where it is wanted and off; off again afterwards. Gives whether it was turned on."""
    turn = wanted and not model.is_gradient_checkpointing
    if turn:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings or {"use_reentrant": False})
    try:
        yield turn
    finally:
        if turn:
            model.gradient_checkpointing_disable()


def evaluation_positions(trainer: Any, schedule: BatchSchedule) -> int:
    """Positions of all evaluations while training, of one process."""
    import numpy

    if trainer.eval_dataset is None:
        return 0
    lengths, size = lengths_of(trainer.eval_dataset), trainer.args.eval_batch_size
    if joins(trainer.data_collator):
        positions = int(lengths.sum())
    else:
        starts = numpy.arange(0, len(lengths), size)
        widths = numpy.maximum.reduceat(lengths, starts)
        positions = int(widths @ numpy.diff(starts, append=len(lengths))) * sequences_of(trainer.eval_dataset)
    return evaluations(trainer.args, schedule) * positions // trainer.args.world_size


def unwrapped(model: Any) -> Any:
    """The model inside what wraps it for several processes."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model
