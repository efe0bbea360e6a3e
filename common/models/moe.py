"""Mixtures of experts: their router's logits, and experts of which transformers keeps all of a layer in one tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def ask_for_router_logits(model: Any, wanted: bool) -> bool | None:
    """Whether a mixture of experts is to give its router's logits and add their balancing loss to its own; returns
    whether it was. TRL turns it on to train. A model that answers fails with it (transformers counts the logits of one
    token against the mask of all), and a held-out loss would hold the router's. None: the model is no such mixture."""
    config = model.config.get_text_config()
    was = vars(config).get("output_router_logits")
    if was is not None:
        config.output_router_logits = wanted
    return was


@contextmanager
def without_router_logits(model: Any) -> Iterator[None]:
    """See ask_for_router_logits; afterwards as it was."""
    was = ask_for_router_logits(model, False)
    try:
        yield
    finally:
        ask_for_router_logits(model, bool(was))


def fused(name: str, parameter: Any) -> bool:
    """Whether a parameter holds a weight of all experts of a layer: (experts, in, out) or (experts, out, in)."""
    state = vars(parameter).get("quant_state")
    return ".experts." in name and len(parameter.shape if state is None else state.shape) == 3


def routed(kind: str) -> bool:
    """Whether a token goes through some of a kind's modules alone."""
    return kind.removeprefix("LoRA on ") == "experts"


def experts_used(model: Any, name: str, parameter: Any) -> Any:
    """bool (experts,): those of a parameter of fused experts whose gradient is not zero; None for other parameters.

    PEFT's adapters on such a parameter are two matrices of rank·experts rows or columns; the first has no gradient
    while the second is zero, so the second is asked: (out, rank·experts), experts last (peft.tuners.lora.ParamWrapper).
    """
    if fused(name, parameter):
        return parameter.grad.flatten(1).any(1)
    place, found, _ = name.partition(".lora_B.")
    if not found:
        return None
    count = vars(model.get_submodule(place)).get("num_experts", 1)
    return parameter.grad.unflatten(1, (-1, count)).any(1).any(0) if count > 1 else None
