"""Weights of labels in batches: what the loss of each label is multiplied by.

The loss of a step is Σ weight·loss / Σ weight over the tokens of all its batches, in all processes: a row of weight 2
is that row twice.

Shapes: B rows, T positions.
"""

from collections.abc import Callable
from typing import Any

from tunebook.common.tokens.lengths import IGNORE_INDEX, LOSS_WEIGHTS


class Collator:
    """Another collator's batches, with what the loss of each label is multiplied by: `loss_weights`, float32 (B, T).

    It is 0 where no label trains. Rows without weights of their own have 1.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]):
        self.collate, self.one_row = collate, getattr(collate, "one_row", False)

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        import torch

        batch = self.collate(rows)
        trains_BT = batch["labels"] != IGNORE_INDEX
        weights_BT, at = trains_BT.float(), 0
        joined = len(rows) > len(weights_BT)
        for number, row in enumerate(rows):
            line, start = (0, at) if joined else (number, 0)
            at = start + len(row["input_ids"])
            if row.get(LOSS_WEIGHTS):
                weights_BT[line, start:at] *= torch.tensor(row[LOSS_WEIGHTS])
        batch[LOSS_WEIGHTS] = weights_BT
        return batch


def collator(rows: Any, collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """The collator of encoded rows: one that brings their weights where they have some."""
    return Collator(collate) if LOSS_WEIGHTS in rows.column_names else collate


def without_weights(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as a model takes it, and as a held-out loss is computed on it."""
    return {name: value for name, value in batch.items() if name != LOSS_WEIGHTS}


def apply_weights(values: Any, batch: dict[str, Any]) -> Any:
    """Values of each label (B, T - 1), or of those of virtual tokens before them, too, times the labels' weights."""
    import torch

    if LOSS_WEIGHTS not in batch:
        return values
    weights_BT = batch[LOSS_WEIGHTS][:, 1:]
    return values * torch.nn.functional.pad(weights_BT, (values.shape[1] - weights_BT.shape[1], 0))


def total_weight(batch: dict[str, Any]) -> Any:
    """(): what a sum over a batch's labels is divided by: those that train, or the sum of their weights."""
    if LOSS_WEIGHTS in batch:
        return batch[LOSS_WEIGHTS][:, 1:].double().sum().float()
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
