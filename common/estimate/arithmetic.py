"""Memory of a run by arithmetic: bytes at any batch size, and the largest batch that fits into a limit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.models import model_bytes
from tunebook.common.tokens.lengths import IGNORE_INDEX

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "process")
MOST_ROWS = 4096  # of the search for the largest batch
MULTIPLE = 8  # of lengths
EIGHT_BIT_FROM = 4096  # elements; bitsandbytes keeps the states of smaller tensors in 32 bits
# Optimizer, named as in TrainingArguments.optim -> states per element, and their dtype: that of the weight,
# float32, or 8 bits with a float32 scale for every 256 of them.
STATES = {
    "adamw_torch": (2, "weight"), "adamw_torch_fused": (2, "weight"), "adamw_apex_fused": (2, "weight"),
    "sgd": (0, "weight"), "rmsprop": (1, "weight"), "adagrad": (1, "weight"),
    "paged_adamw_32bit": (2, "float32"), "lion_32bit": (1, "float32"), "paged_lion_32bit": (1, "float32"),
    "adamw_bnb_8bit": (2, "8 bits"), "adamw_8bit": (2, "8 bits"), "paged_adamw_8bit": (2, "8 bits"),
    "lion_8bit": (1, "8 bits"), "paged_lion_8bit": (1, "8 bits"),
}  # fmt: skip
# The same -> temporary copies of the gradients in a step on a GPU, where torch updates all weights at once.
FOREACH = {"adamw_torch": 1, "rmsprop": 1, "adagrad": 2}


def optimizer_states(model: Any, name: str) -> int | None:
    """Bytes of an optimizer's states; None where they are not known."""
    parameters = model_bytes.trainable(model)
    if name == "adafactor":  # a row and a column of float32 in place of a matrix (Shazeer & Stern 2018)
        return sum(4 * (sum(p.shape) if p.dim() > 1 else p.numel()) for p in parameters)
    if name not in STATES:
        return None
    count, dtype = STATES[name]
    if dtype == "weight":
        return count * model_bytes.gradients(model)
    sizes = [parameter.numel() for parameter in parameters]
    if dtype == "float32":
        return count * 4 * sum(sizes)
    return count * sum(n + 4 * math.ceil(n / 256) if n >= EIGHT_BIT_FROM else 4 * n for n in sizes)


def optimizer_step(model: Any, name: str, gpu: bool) -> int:
    """Temporary bytes of an optimizer's step."""
    return FOREACH.get(name, 0) * model_bytes.gradients(model) if gpu else 0


@dataclass
class MemoryModel:
    """Bytes of a run as functions of the batch.

    Args:
        process: what the process holds beside the model.
        accumulates: a step has several batches.
        labels: share of positions that train, in the longest batch.
        activations: an activations.ActivationProfile; None where it is not known, and counts as nothing.
        hidden: width of the hidden states, on a GPU.
        update: as `optimizer_step`.
        buckets: those of DistributedDataParallel, for gradients.
    """

    weights: int
    gradients: int
    optimizer: int
    process: int
    vocabulary: int
    accumulates: bool
    labels: float
    activations: Any
    hidden: int | None = None
    update: int = 0
    buckets: int = 0

    def parts(self, rows: int, width: int) -> dict[str, int]:
        """Bytes of each of PARTS when a batch of rows x width holds most: in backward, or in the optimizer's step."""
        peak = {"activations": 0, "gradients": self.gradients, "logits": 0, "optimizer": self.optimizer + self.update}
        if self.activations is not None:
            labels = labels_at_once(round(rows * width * self.labels), self.vocabulary, self.hidden)
            backward = {**self.activations.peak(rows, width, labels, self.accumulates), "optimizer": self.optimizer}
            peak = max(backward, peak, key=lambda parts: sum(parts.values()))
        parts = {"weights": self.weights, "process": self.process, **peak}
        parts["gradients"] += self.buckets
        return {name: parts[name] for name in PARTS}

    def peak(self, rows: int, width: int) -> int:
        return sum(self.parts(rows, width).values())


def memory_model(
    model: Any, optimizer: str, batch: dict[str, Any], accumulation: int, gpu: bool, process: int, activations: Any
) -> MemoryModel:
    """The MemoryModel of a model with its longest batch. An optimizer that is not known counts as AdamW."""
    gradients, states = model_bytes.gradients(model), optimizer_states(model, optimizer)
    return MemoryModel(
        weights=model_bytes.weights(model),
        gradients=gradients,
        optimizer=2 * gradients if states is None else states,
        process=process,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        accumulates=accumulation > 1,
        labels=float((batch["labels"] != IGNORE_INDEX).float().mean()),
        activations=activations,
        hidden=model.config.get_text_config().hidden_size if gpu else None,
        update=optimizer_step(model, optimizer, gpu),
    )


def largest_batch(memory: MemoryModel, schedule: BatchSchedule, limit: int, longest: int = 2**20) -> tuple[int, int]:
    """The most rows of the longest batch's width that fit, and the largest width, up to `longest`, of its rows.

    Where a batch is one row (packed, for Unsloth's forwards on a GPU), both are of the rows that are joined in it.
    """
    (rows, width), joined = schedule.shape, schedule.joined
    most = longest_width(memory, rows, limit) * joined // width if joined > 1 else most_rows(memory, width, limit)
    return most, longest_width(memory, rows, limit, longest * joined) // joined


def most_rows(memory: MemoryModel, width: int, limit: int) -> int:
    """The largest number of rows of this width that fits, up to MOST_ROWS; 0 for none."""
    return _largest(lambda rows: memory.peak(rows, width) <= limit, MOST_ROWS)


def longest_width(memory: MemoryModel, rows: int, limit: int, at_most: int = 2**20) -> int:
    """The largest width, in multiples of MULTIPLE, at which these rows fit; 0 for none."""
    return MULTIPLE * _largest(lambda count: memory.peak(rows, MULTIPLE * count) <= limit, at_most // MULTIPLE)


def _largest(fits: Callable[[int], bool], at_most: int) -> int:
    """Binary search for the largest number that fits."""
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def labels_at_once(labels: int, vocabulary: int, hidden: int | None = None) -> int:
    """Labels of which Unsloth computes the loss at once: on a CPU, as many as make 16 Mi logits.

    Args:
        hidden: width of the hidden states, on a GPU, where its fused head takes a power of two near labels · hidden /
            vocabulary, within bounds (fused_linear_rows of unsloth_zoo 2026.10.9; a card with under 4 GiB free gets
            fewer).
    """
    if hidden is None:
        return min(labels, max(16, 16 * 2**20 // vocabulary))
    least = min(max(_power_of_two(512 * 151_936 / vocabulary), 512), 4096)
    rows = min(max(_power_of_two(labels * hidden / vocabulary), least), 4096, 2 * 2**30 // (4 * vocabulary))
    return min(labels, rows)


def _power_of_two(value: float) -> int:
    return 1 << max(0, int(value).bit_length() - 1)
