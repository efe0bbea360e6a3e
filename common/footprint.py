"""Arithmetic of memory: bytes of weights, gradients and optimiser states, and of activations at any size of batch.

Activations are not taken from a formula of one architecture. Three small steps are run, every tensor that comes and
goes is noted, and each moment of the step is continued to larger batches; so any model, adapter, attention, loss and
checkpointing counts as it is.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALL = (16, 32, 64)  # positions a row of the small steps
EIGHT_BIT_FROM = 4096  # elements; bitsandbytes keeps the states of smaller tensors in 32 bits
# Optimiser by its name in TrainingArguments -> states an element, in the dtype of the weight.
STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "adamw_apex_fused": 2, "paged_adamw_32bit": 2, "sgd": 0,
          "rmsprop": 1, "adagrad": 1, "lion_32bit": 1, "paged_lion_32bit": 1}  # fmt: skip
# The same with states of 8 bits and a float32 scale for every 256 of them.
EIGHT_BIT = {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "paged_lion_8bit": 1}


def storages(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each once. A tensor on the meta device counts what it would take."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return sum(found.values())


def weights(model: Any) -> int:
    """Bytes of parameters, buffers and the parts of 4-bit weights.

    A 4-bit weight that has no values yet (meta device) counts as NF4 with double quantisation: half a byte an element,
    a byte for every 64, four for every 16,384 (Dettmers et al. 2023).
    """
    plain: list[torch.Tensor] = list(model.buffers())
    unpacked = 0
    for parameter in model.parameters():
        state = vars(parameter).get("quant_state")
        if state is not None:
            parts = [state, state.state2] if state.nested else [state]
            plain += [tensor for part in parts for tensor in (part.absmax, part.code)]
            plain += [state.offset] if state.nested else []
        if type(parameter).__name__ == "Params4bit" and parameter.is_meta:
            unpacked += four_bit(parameter.numel())
        else:
            plain.append(parameter)
    return storages(plain) + unpacked


def four_bit(elements: int) -> int:
    """Bytes of a weight of so many elements in NF4 with double quantisation."""
    return elements // 2 + math.ceil(elements / 64) + 4 * math.ceil(elements / 64 / 256)


def trainable(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model: Any) -> int:
    """Bytes of the gradients of all that trains."""
    return sum(parameter.numel() * parameter.element_size() for parameter in trainable(model))


def optimizer_states(model: Any, name: str) -> int | None:
    """Bytes of the states of an optimiser, named as in TrainingArguments.optim; None where that is not known."""
    parameters = trainable(model)
    if name in STATES:
        return STATES[name] * gradients(model)
    if name in EIGHT_BIT:
        sizes = [(EIGHT_BIT[name], parameter.numel()) for parameter in parameters]
        return sum(
            states * (size + 4 * math.ceil(size / 256) if size >= EIGHT_BIT_FROM else 4 * size)
            for states, size in sizes
        )
    if name == "adafactor":  # a row and a column of float32 in place of a matrix (Shazeer & Stern 2018)
        return sum(4 * (sum(p.shape) if p.dim() > 1 else p.numel()) for p in parameters)
    return None


class Recorder(TorchDispatchMode):
    """Notes what is held after each operation: `live`, bytes of all storages made since the start and not gone yet."""

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, int] = {}
        self._now = 0
        self.live: list[int] = []
        self.names: list[str] = []
        self.backward: int | None = None  # the first operation of the backward pass
        self.born: dict[int, int] = {}  # storage -> the operation that made it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.backward is None and torch._C._current_graph_task_id() >= 0:
            self.backward = len(self.live)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.born[key] = len(self.live)
                    weakref.finalize(storage, self._gone, key)
        self.live.append(self._now)
        self.names.append(str(func))
        return result

    def _gone(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)

    def gradients(self, model: Any) -> list[int]:
        """Bytes of the gradients that were there after each operation."""
        grown = [0] * len(self.live)
        for parameter in trainable(model):
            if parameter.grad is not None:
                storage = parameter.grad.untyped_storage()
                grown[self.born.get(storage._cdata, 0)] += storage.nbytes()
        total = 0
        return [total := total + size for size in grown]


@dataclass
class Moments:
    """What a step holds beside weights and states, at each of its moments, as a function of the batch.

    held = constant + a·positions + b·positions·width for each moment, from steps of three widths; `grown` are the
    gradients that are there by then, which do not depend on the batch.
    """

    held: Any  # float64 (moments, 3)
    grown: Any  # float64 (moments,)
    loss: int  # the moment at which the loss is computed: all activations are there
    largest_gradient: int

    def peak(self, rows: int, width: int, logits: int, kept: bool) -> dict[str, int]:
        """The largest moment for a batch of rows x width: bytes of `activations`, `gradients` and `logits` at it.

        Args:
            logits: bytes that the loss takes while it is computed.
            kept: the gradients of an earlier batch of the step are there all the time.
        """
        positions = rows * width
        held = self.held @ [1.0, positions, positions * width]
        grown = self.grown
        if kept:
            # A new gradient stands beside the old one until it is added.
            grown = self.grown[-1] + self.largest_gradient * (self.grown > 0)
        total = held + grown
        place, lost = int(total.argmax()), self.loss
        at_loss = total[lost] + logits
        moment, extra = (lost, logits) if at_loss >= total[place] else (place, 0)
        gradient = float(grown[moment]) if moment < len(grown) else 0.0
        return {"activations": round(held[moment]), "gradients": round(gradient), "logits": extra}


def moments(model: Any, step: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> Moments:
    """Run three small steps, cut from a real batch, and note what they hold. Gradients are gone afterwards.

    Args:
        step: forward and backward on one batch.
        batch: tensors (B, T); what is cut from it has its padding, its documents and few labels.
    """
    import numpy

    rows = min(2, len(batch["input_ids"]))
    runs = []
    for width in SMALL:
        recorder = Recorder([*model.parameters(), *model.buffers()])
        small = cut(batch, rows, width)
        with recorder:
            step(small)
        runs.append((recorder, recorder.gradients(model)))
        model.zero_grad(set_to_none=True)
    grown = numpy.array(runs[-1][1], dtype=float)
    held = numpy.stack([numpy.array(recorder.live, dtype=float) - numpy.array(grads) for recorder, grads in runs]) \
        if len({tuple(recorder.names) for recorder, _ in runs}) == 1 \
        else numpy.array([[float(max(numpy.array(r.live) - numpy.array(g)))] for r, g in runs])  # fmt: skip
    if held.shape[1] == 1:  # operations differ with the width: only the highest moment is known
        grown = grown[-1:]
    sizes = numpy.array([[1.0, rows * width, rows * width * width] for width in SMALL])
    loss = (runs[-1][0].backward or len(grown)) - 1 if held.shape[1] > 1 else 0
    largest = max((p.numel() * p.element_size() for p in trainable(model)), default=0)
    return Moments(numpy.linalg.solve(sizes, held).T, grown, loss, largest)


def cut(batch: dict[str, Any], rows: int, width: int) -> dict[str, Any]:
    """A batch of rows x width like `batch`: padded where it is, packed where it is, and two labels a row."""
    ids = batch["input_ids"]
    small = {}
    for name, value in batch.items():
        if torch.is_tensor(value) and value.shape[:2] == ids.shape:
            repeats = -(-width // value.shape[1])
            small[name] = value[:rows].repeat(1, repeats)[:, :width].clone()
        else:
            small[name] = value[:rows] if hasattr(value, "__getitem__") else value
    if "attention_mask" in small:
        padded = bool((batch["attention_mask"] == 0).any())
        small["attention_mask"][:] = 1
        if padded:
            small["attention_mask"][-1, -1] = 0
    if "position_ids" in small:
        small["position_ids"][:] = torch.arange(width)
        if bool((batch["position_ids"] == 0).sum() > len(ids)):
            small["position_ids"][:, width // 2 :] -= width // 2
    small["labels"][:] = -100
    small["labels"][:, -4:-2] = small["input_ids"][:, -4:-2]
    return small


def loss_bytes(rows: int, vocabulary: int, device: str) -> int:
    """Bytes of logits and their gradient while the loss of so many labels is computed.

    Unsloth computes it in chunks. On a CPU a chunk is of 16 Mi logits in float32; on a GPU it takes what is free, and
    what it needs is counted as a chunk of the same size with its gradient.
    """
    chunk = min(rows, max(16, 16 * 2**20 // vocabulary))
    return chunk * vocabulary * 4 * (1 if device == "cpu" else 2)
