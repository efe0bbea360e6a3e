"""What a training step holds of memory beside weights and optimizer states, at any size of batch.

Activations are not taken from a formula of one architecture. Three small steps are run, every tensor that comes and
goes is noted, and each moment of the step is continued to larger batches; so any model, adapter, attention, loss and
checkpointing counts as it is. (torch's own MemTracker is in a private module, and continues nothing.)
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunebook.common.models.model_bytes import trainable
from tunebook.common.tokens.lengths import LOSS_WEIGHTS

WIDTHS = (16, 32, 64)  # positions a row of the small steps
LABELS = 2  # labels a row of them


class Unpredictable(Exception):
    """Steps of other sizes do other operations, so that they cannot be continued."""


class MemoryRecorder(TorchDispatchMode):
    """Notes every storage that comes and goes: `events` are (storage, its bytes), negative where it goes.

    Args:
        known: tensors that are there before and do not count.
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
        found = {weight.grad.untyped_storage()._cdata for weight in trainable(model) if weight.grad is not None}
        return {self._alive[key][0] for key in found if key in self._alive}


@dataclass
class ActivationProfile:
    """What a step holds beside weights and states, event by event, as a function of the batch.

    An event is a storage that comes or goes. Its size is constant + a·positions + b·positions·width, from steps of
    three widths with few labels.
    """

    numbers: Any  # int64 (events,): which storage
    sizes: Any  # float64 (events, 3): of the three terms; negative where it goes
    grown: Any  # bool (events,): a gradient that stays
    loss: int  # the event at which the loss is computed: all activations are there
    label_bytes: float  # what the loss takes for each label while it is computed
    largest_gradient: int

    def at(self, rows: int, width: int) -> Any:
        """float64 (events,): bytes that come or go for a batch of rows x width."""
        return self.sizes @ [1.0, rows * width, rows * width * width]

    def peak(self, rows: int, width: int, labels: int, kept: bool) -> dict[str, int]:
        """The largest moment for a batch of rows x width: bytes of `activations`, `gradients` and `logits` at it.

        Args:
            labels: those that the loss computes at once.
            kept: the gradients of an earlier batch of the step are there all the time.
        """
        changes = self.at(rows, width)
        held, grown = (changes * ~self.grown).cumsum(), (changes * self.grown).cumsum()
        if kept:  # a new gradient stands beside the old one until it is added
            grown = grown[-1] + self.largest_gradient * (grown > 0)
        total, logits = held + grown, round(self.label_bytes * labels)
        place = int(total.argmax())
        if total[self.loss] + logits >= total[place]:
            place = self.loss
        else:
            logits = 0
        return {"activations": round(held[place]), "gradients": round(grown[place]), "logits": logits}


def profile(
    model: Any, step: Callable[[int, bool], Any], rows: int, label_bytes: float | None = None
) -> ActivationProfile:
    """The ActivationProfile of a model, from small steps. Gradients are gone afterwards.

    Args:
        step: forward and backward on `rows` rows of so many positions, with LABELS labels each or, at False, with
            nothing but labels.
        label_bytes: what the loss takes for each label; measured where it is not given.

    Raises:
        Unpredictable: the step does other operations at another width.
    """
    import numpy

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
        other, more, _ = record(WIDTHS[-1], False)
        taken = more[:other, 1].cumsum().max() - events[:loss, 1].cumsum().max()
        label_bytes = max(0.0, float(taken)) / (rows * (WIDTHS[-1] - 1 - LABELS))
    return ActivationProfile(
        numbers=numbers,
        sizes=numpy.linalg.solve(terms, numpy.stack([run[:, 1] for _, run, _ in runs])).T,
        grown=numpy.isin(numbers, list(gradients)),
        loss=loss - 1,
        label_bytes=label_bytes,
        largest_gradient=max((parameter.nbytes for parameter in trainable(model)), default=0),
    )


def profile_batch(model: Any, step: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> ActivationProfile:
    """The same, by small batches cut from a real one.

    Args:
        step: forward and backward on a batch.
        batch: tensors (B, T); what is cut from it has its padding and its documents.

    Raises:
        Unpredictable: as `profile`.
    """
    rows = min(2, len(batch["input_ids"]))
    return profile(model, lambda width, few: step(small_batch(batch, rows, width, few)), rows)


def small_batch(batch: dict[str, Any], rows: int, width: int, few: bool) -> dict[str, Any]:
    """A batch of rows x width like `batch`: padded where it is, packed where it is, and LABELS labels a row or all."""
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
