"""Memory of activations and gradients at any batch size, extrapolated from three small steps.

Every allocation of the small steps is recorded and fitted to rows and width, so that any model, adapter, attention,
loss and checkpointing counts as it is. (torch's own MemTracker is in a private module, and extrapolates nothing.)
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunebook.common.models.model_bytes import trainable
from tunebook.common.tokens.lengths import LOSS_WEIGHTS

WIDTHS = (16, 32, 64)  # positions per row of the small steps
LABELS = 2  # labels per row of them


class Unpredictable(Exception):
    """The operations depend on the width, so that they cannot be extrapolated."""


class MemoryRecorder(TorchDispatchMode):
    """Records every storage: `events` are (number of the storage, its bytes), with negative bytes where it is freed.

    Args:
        known: tensors that do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, tuple[int, int]] = {}
        self.events: list[tuple[int, int]] = []
        self.backward: int | None = None  # events before the backward pass
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.backward is None and torch._C._current_graph_task_id() >= 0:
            self.backward = len(self.events)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in self._alive:
                    self._alive[key] = self.count, storage.nbytes()
                    self.events.append(self._alive[key])
                    self.count += 1
                    weakref.finalize(storage, self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        number, size = self._alive.pop(key)
        self.events.append((number, -size))

    def gradients(self, model: Any) -> set[int]:
        """Numbers of the storages that are gradients now."""
        keys = {weight.grad.untyped_storage()._cdata for weight in trainable(model) if weight.grad is not None}
        return {self._alive[key][0] for key in keys if key in self._alive}


@dataclass
class ActivationProfile:
    """What a step holds beside weights and optimizer states, event by event, as a function of the batch.

    An event is a storage that is allocated or freed. Its size is constant + a·positions + b·positions·width.
    """

    numbers: Any  # int64 (events,): which storage
    sizes: Any  # float64 (events, 3): of the three terms; negative where it is freed
    grown: Any  # bool (events,): a gradient
    loss: int  # the event at which the loss is computed: all activations are there
    label_bytes: float  # per label while the loss is computed
    largest_gradient: int

    def at(self, rows: int, width: int) -> Any:
        """float64 (events,): bytes of the events of a batch of rows x width."""
        return self.sizes @ [1.0, rows * width, rows * width * width]

    def peak(self, rows: int, width: int, labels: int, kept: bool) -> dict[str, int]:
        """Bytes of `activations`, `gradients` and `logits` when a batch of rows x width holds most.

        Args:
            labels: those that the loss computes at once.
            kept: the gradients of an earlier batch of the step are held as well.
        """
        changes = self.at(rows, width)
        activations, gradients = (changes * ~self.grown).cumsum(), (changes * self.grown).cumsum()
        if kept:  # a new gradient is held beside the old one until it is added
            gradients = gradients[-1] + self.largest_gradient * (gradients > 0)
        total, logits = activations + gradients, round(self.label_bytes * labels)
        event = int(total.argmax())
        if total[self.loss] + logits >= total[event]:
            event = self.loss
        else:
            logits = 0
        return {"activations": round(activations[event]), "gradients": round(gradients[event]), "logits": logits}


def profile(
    model: Any, step: Callable[[int, bool], Any], rows: int, label_bytes: float | None = None
) -> ActivationProfile:
    """The ActivationProfile of a model, from small steps. Gradients are cleared afterwards.

    Args:
        step: (width, few_labels) -> forward and backward on `rows` rows, with LABELS labels each or labels everywhere.
        label_bytes: of the loss, per label; None: measured.
    """

    def record(width: int, few: bool) -> tuple[int, Any, set[int]]:
        recorder = MemoryRecorder([*model.parameters(), *model.buffers()])
        with recorder:
            step(width, few)
        events, gradients = numpy.array(recorder.events), recorder.gradients(model)
        model.zero_grad(set_to_none=True)
        return recorder.backward or len(events), events, gradients

    for _ in range(2):  # the first steps of a model may try kernels and fill caches, which stay
        runs = [record(width, True) for width in WIDTHS]
        numbers = runs[0][1][:, 0]
        if all(len(events) == len(numbers) and (events[:, 0] == numbers).all() for _, events, _ in runs):
            break
    else:
        raise Unpredictable("the model does other operations at other widths")
    terms = numpy.array([[1.0, rows * width, rows * width * width] for width in WIDTHS])
    loss, events, gradients = runs[-1]
    if label_bytes is None:
        full_loss, full_events, _ = record(WIDTHS[-1], False)
        difference = full_events[:full_loss, 1].cumsum().max() - events[:loss, 1].cumsum().max()
        label_bytes = max(0.0, float(difference)) / (rows * (WIDTHS[-1] - 1 - LABELS))
    return ActivationProfile(
        numbers=numbers,
        sizes=numpy.linalg.solve(terms, numpy.stack([run[:, 1] for _, run, _ in runs])).T,
        grown=numpy.isin(numbers, list(gradients)),
        loss=loss - 1,
        label_bytes=label_bytes,
        largest_gradient=max((parameter.nbytes for parameter in trainable(model)), default=0),
    )


def profile_batch(model: Any, step: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> ActivationProfile:
    """The same from small batches cut from a real one: tensors (B, T), whose padding and documents they keep."""
    rows = min(2, len(batch["input_ids"]))
    return profile(model, lambda width, few: step(small_batch(batch, rows, width, few)), rows)


def small_batch(batch: dict[str, Any], rows: int, width: int, few: bool) -> dict[str, Any]:
    """A batch of rows x width, padded and packed like `batch`, with LABELS labels per row or all."""
    ids, small = batch["input_ids"], {}
    for name, value in batch.items():
        if torch.is_tensor(value) and value.shape[:2] == ids.shape:
            repeats = -(-width // value.shape[1])
            small[name] = value[:rows].repeat(1, repeats)[:, :width].clone()
        else:
            small[name] = value
    if "attention_mask" in small:
        small["attention_mask"][:] = 1
        if bool((batch["attention_mask"] == 0).any()):
            small["attention_mask"][-1, -1] = 0
    if "position_ids" in small:
        small["position_ids"][:] = torch.arange(width)
        if bool((batch["position_ids"] == 0).sum() > len(ids)):
            small["position_ids"][:, width // 2 :] -= width // 2
    small["labels"][:] = -100
    start, end = (width - 2 - LABELS, width - 2) if few else (0, width)
    small["labels"][:, start:end] = small["input_ids"][:, start:end]
    if LOSS_WEIGHTS in small:
        small[LOSS_WEIGHTS] = (small["labels"] != -100).float()
    return small
