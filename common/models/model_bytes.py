"""Bytes of a model's weights and gradients, with or without values (meta device)."""

import math
from collections.abc import Iterable
from typing import Any


def trainable(model: Any) -> list[Any]:
    """The parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model: Any) -> int:
    """Bytes of the gradients of all that trains."""
    return sum(parameter.nbytes for parameter in trainable(model))


def weights(model: Any) -> int:
    """Bytes of parameters, buffers and the parts of 4-bit weights."""
    return of(model.parameters(), model.buffers())


def of(parameters: Iterable[Any], buffers: Iterable[Any] = ()) -> int:
    """The same of these, each storage once. A 4-bit weight without values counts as `nf4`."""
    plain, unpacked = list(buffers), 0
    for parameter in parameters:
        state = vars(parameter).get("quant_state")
        if state is not None:
            plain += [state.absmax, state.code]
            plain += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        if type(parameter).__name__ == "Params4bit" and parameter.is_meta:
            unpacked += nf4(parameter.numel())
        else:
            plain.append(parameter)
    storages = (tensor.untyped_storage() for tensor in plain)
    return unpacked + sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def nf4(elements: int) -> int:
    """Bytes of a weight of so many elements in NF4 with double quantization: half a byte an element, a byte for every
    64, four for every 16,384 (Dettmers et al. 2023)."""
    return elements // 2 + math.ceil(elements / 64) + 4 * math.ceil(elements / 64 / 256)
