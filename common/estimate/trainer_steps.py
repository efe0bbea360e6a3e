"""Single steps of a transformers.Trainer or a plain loop, and the trainer's batch size."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.common.batching import weight_collator
from tunebook.common.estimate.probe import StepFunctions


def batch_sizes(trainer: Any) -> list[int]:
    """The batch size and every smaller one that divides the rows of a step."""
    size = trainer.args.per_device_train_batch_size
    step = size * trainer.args.gradient_accumulation_steps
    return [size, *(smaller for smaller in range(size - 1, 0, -1) if step % smaller == 0)]


def set_batch_size(trainer: Any, size: int) -> None:
    """One of `batch_sizes`, and the accumulation that keeps the rows of a step, wherever the trainer reads them."""
    args = trainer.args
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if args.per_device_eval_batch_size == args.per_device_train_batch_size:
        args.per_device_eval_batch_size = size
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, step // size
    trainer._train_batch_size = args.train_batch_size


def step_functions(trainer: Any) -> StepFunctions:
    """Those of a trainer whose model is not prepared yet."""
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
        own, trainer.optimizer = trainer.optimizer, None
        if own is not None:
            return type(own)([{"params": group["params"]} for group in own.param_groups], **own.defaults)
        created, trainer.optimizer = trainer.create_optimizer(), None
        return created

    def collate(indices: list[int]) -> Any:
        return loader.collate_fn([loader.dataset[index] for index in indices])

    accumulation = trainer.args.gradient_accumulation_steps
    return StepFunctions(trainer.model, collate, step, optimizer, evaluate, accumulation)


def loop_step_functions(
    accelerator: Any, model: Any, loader: Any, loss_of: Callable[[Any, dict[str, Any]], Any], accumulation: int
) -> StepFunctions:
    """Those of a loop whose model and loader are prepared by Accelerate. They are steps of one process: several need
    not make as many, and would wait for each other inside DistributedDataParallel.

    Args:
        loss_of: (model, batch) -> summed loss of its tokens.
    """
    import torch
    from accelerate.utils import send_to_device

    alone = accelerator.unwrap_model(model)

    def collate(indices: list[int]) -> Any:
        return send_to_device(loader.collate_fn([loader.dataset[index] for index in indices]), accelerator.device)

    def step(batch: dict[str, Any]) -> None:
        alone.train()
        accelerator.backward(loss_of(alone, batch) / weight_collator.total_weight(batch))

    def evaluate(batch: dict[str, Any]) -> None:
        alone.eval()
        with torch.no_grad():
            loss_of(alone, weight_collator.without_weights(batch))

    def optimizer() -> Any:
        return torch.optim.AdamW(model.parameters(), fused=True)

    return StepFunctions(model, collate, step, optimizer, evaluate, accumulation)


@contextmanager
def preserve_trainer(trainer: Any) -> Iterator[None]:
    """Restores the trainer's attributes and metrics afterwards. Inside, activations are recomputed where `train` would
    do so, and nothing waits for another process: one may run out of memory where the others do not."""
    attributes, args, accelerator = dict(vars(trainer)), trainer.args, trainer.accelerator
    metrics = copy.deepcopy(attributes.get("_metrics"))
    accelerator.gather = accelerator.gather_for_metrics = lambda value, *_: value
    try:
        with gradient_checkpointing(trainer.model, args.gradient_checkpointing, args.gradient_checkpointing_kwargs):
            yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
        vars(trainer).clear()
        vars(trainer).update(attributes)
        if metrics is not None:
            trainer._metrics = metrics


@contextmanager
def gradient_checkpointing(model: Any, wanted: bool = True, options: dict[str, Any] | None = None) -> Iterator[bool]:
    """Activation checkpointing inside, where it is wanted. Yields whether it was turned on."""
    turn_on = wanted and not model.is_gradient_checkpointing
    if turn_on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or {"use_reentrant": False})
    try:
        yield turn_on
    finally:
        if turn_on:
            model.gradient_checkpointing_disable()
