"""The batches of each optimizer step of a plain loop, over epochs, resumable at any step."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from tunebook.common.batching import weight_collator
from tunebook.common.batching.weight_collator import total_weight
from tunebook.common.process import progress, stopping
from tunebook.common.training.checkpoints import STATE, Checkpoints
from tunebook.common.training.metrics import TrainingMetrics


def num_steps(rows: int, group: int, epochs: float, max_steps: int) -> int:
    """Optimizer steps of a run: max_steps where it is positive, else as many as the epochs take.

    Args:
        group: rows per step, over processes and accumulation; the last step of an epoch may have fewer.
    """
    return max_steps if max_steps > 0 else math.ceil(epochs * math.ceil(rows / group))


def batches(
    accelerator: Any, loader: Any, order: Any, accumulation: int, done: int, last: int, metrics: TrainingMetrics
) -> Iterator[tuple[int, list[dict[str, Any]], Any]]:
    """(step, its batches, its trained tokens or the sum of their weights over all processes) for the steps after
    `done`, up to `last`: those that an uninterrupted run would get.

    Args:
        loader: prepared by the accelerator.
        order: its sampler (samplers.LengthGroupedSampler).
        accumulation: batches per step; the last step of an epoch may have fewer.
    """
    stopping.wait()
    per_epoch = math.ceil(len(loader) / accumulation)
    while done < last:
        epoch, inside = divmod(done, per_epoch)
        order.set_epoch(epoch)
        loader.set_epoch(epoch)  # a loader for several processes shuffles nothing, but counts its epochs
        rest = accelerator.skip_first_batches(loader, inside * accumulation) if inside else loader
        rest = iter(rest)
        for step in range(done + 1, min(last, (epoch + 1) * per_epoch) + 1):
            start = time.monotonic()
            parts = list(islice(rest, accumulation))
            metrics.batches(parts, time.monotonic() - start, accelerator)
            yield step, parts, accelerator.reduce(sum(map(total_weight, parts)), "sum")
            done = step
    stopping.end(accelerator.num_processes)


def end_step(saved: Checkpoints, model: Any, step: int, held_out_loss: Callable[[], float] | None) -> None:
    """Where it is given, take the held-out loss and save the step. Where a signal has come, the step is saved and the
    run ends; an evaluation under way is left for the run that goes on."""
    accelerator = saved.accelerator
    if held_out_loss is not None:
        try:
            loss = held_out_loss()
        except stopping.EvaluationLeft:
            saved.save(model, step, evaluated=False)
        else:
            saved.metrics.evaluated(step, loss)
            saved.save(model, step, loss)
    if stopping.asked(accelerator.num_processes, accelerator.device):
        if not (saved.folder / f"checkpoint-{step}" / STATE).exists():
            saved.save(model, step)
        stopping.end(accelerator.num_processes)


def take_left_evaluation(saved: Checkpoints, model: Any, step: int, held_out_loss: Callable[[], float]) -> None:
    """Where a signal has ended the evaluation of the step from which the run goes on, take it."""
    if saved.evaluation_left:
        end_step(saved, model, step, held_out_loss)


def held_out_loss(
    accelerator: Any, model: Any, loader: Any, loss_of: Callable[[Any, dict[str, Any]], Any]
) -> Callable[[], float]:
    """`mean_loss` of these, to be taken now and then."""
    return partial(mean_loss, accelerator, model, loader, loss_of)


def mean_loss(accelerator: Any, model: Any, loader: Any, loss_of: Callable[[Any, dict[str, Any]], Any]) -> float:
    """Mean over all trained tokens of a loader in all processes, unweighted; `loss_of` sums over those of a batch.

    The last batches of several processes repeat rows so that all have as many; those count twice.

    Raises:
        stopping.EvaluationLeft: a signal has come while the model trains.
    """
    import torch

    parts = []
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a loader draws a number, as often as it begins
        for batch in progress.track(loader, "held-out rows", len(loader), "batches"):
            stopping.leave_evaluation(accelerator.num_processes, accelerator.device)
            batch = weight_collator.without_weights(batch)
            parts.append((loss_of(model, batch), total_weight(batch)))
    model.train()
    loss, tokens = (accelerator.reduce(torch.stack(column).sum(), "sum") for column in zip(*parts, strict=True))
    return (loss / tokens).item()
