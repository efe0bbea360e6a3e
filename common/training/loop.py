"""The batches of each optimizer step of a plain loop, over epochs, from any step on."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from tunebook.common.batching import weight_collator
from tunebook.common.batching.weight_collator import total_weight
from tunebook.common.training.metrics import TrainingMetrics


def num_steps(rows: int, group: int, epochs: float, max_steps: int) -> int:
    """Optimiser steps of a run: max_steps where it is given, else as many as the epochs take.

    Args:
        rows: rows of the training set.
        group: rows of one step, over processes and accumulation; what an epoch leaves over is a step, too.
    """
    return max_steps if max_steps > 0 else math.ceil(epochs * math.ceil(rows / group))


def batches(
    accelerator: Any, loader: Any, order: Any, accumulation: int, done: int, last: int, meter: TrainingMetrics
) -> Iterator[tuple[int, list[dict[str, Any]], Any]]:
    """(step, its batches, its trained tokens over all processes, or the sum of their weights) for the steps after
    `done`, up to `last`: what an undisturbed run would have got.

    Args:
        loader: prepared by the accelerator; where it left its batches on the CPU they are copied to the device.
        order: its sampler (sampling.LengthGroupedSampler), told of each epoch.
        accumulation: batches of a step; the last step of an epoch may have fewer.
        meter: told of each step's batches and of the time it took to get them.
    """
    per_epoch = math.ceil(len(loader) / accumulation)
    while done < last:
        epoch, inside = divmod(done, per_epoch)
        order.set_epoch(epoch)
        loader.set_epoch(epoch)  # a loader for several processes shuffles nothing, but counts its epochs
        rest = accelerator.skip_first_batches(loader, inside * accumulation) if inside else loader
        rest = _on_device(rest, accelerator.device)
        for step in range(done + 1, min(last, (epoch + 1) * per_epoch) + 1):
            begun = time.monotonic()
            parts = list(islice(rest, accumulation))
            meter.batches(parts, time.monotonic() - begun, accelerator)
            yield step, parts, accelerator.reduce(sum(map(total_weight, parts)), "sum")
            done = step


def _on_device(loader: Any, device: Any) -> Iterator[Any]:
    from accelerate.utils import send_to_device

    return (send_to_device(batch, device, non_blocking=True) for batch in loader)


def mean_loss(accelerator: Any, model: Any, loader: Any, loss_of: Callable[[Any, dict[str, Any]], Any]) -> float:
    """Mean over all trained tokens of a loader's rows, whatever their weights, over all processes; `loss_of` sums over
    those of a batch.

    The last batches of several processes repeat rows so that all have as many; those count twice.
    """
    import torch

    model.eval()
    with torch.no_grad():
        batches = map(weight_collator.without_weights, _on_device(loader, accelerator.device))
        parts = [(loss_of(model, batch), total_weight(batch)) for batch in batches]
    model.train()
    loss, tokens = (accelerator.reduce(torch.stack(column).sum(), "sum") for column in zip(*parts, strict=True))
    return (loss / tokens).item()
