"""The head of a causal language model apart from its body: hidden states without logits, logits of a few of them."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from tunebook.common.errors import UserError


@dataclass
class LMHead:
    """What makes logits of hidden states: cap·tanh(scale·(weight·h + bias) / cap); no cap where it is None."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        """(C, V), in float32 or, for float64, in float64."""
        dtype = compute_dtype(hidden_CD)
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        logits_CV = torch.nn.functional.linear(hidden_CD.to(dtype), self.weight_VD.to(dtype), bias)
        logits_CV = logits_CV.to(wide(dtype))
        if self.scale != 1.0:
            logits_CV = logits_CV * self.scale
        return logits_CV if self.cap is None else self.cap * torch.tanh(logits_CV / self.cap)

    def backward_(self, gradient_CV: torch.Tensor, logits_CV: torch.Tensor) -> torch.Tensor:
        """The gradient of weight·h + bias from that of the logits, in place."""
        if self.cap is not None:
            gradient_CV.mul_(1 - (logits_CV / self.cap) ** 2)
        return gradient_CV if self.scale == 1.0 else gradient_CV.mul_(self.scale)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """What a linear layer would compute in here."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def of(model: Any) -> LMHead:
    """The head of a transformers model, PEFT's adapters on it or not.

    Scale and cap are named differently: logit_scale (Cohere), lm_head_multiplier (Falcon-H1), output_multiplier, a
    division by logits_scaling (Granite, MiniCPM3), final_logit_softcapping (Gemma 2). `check` tells if that is all.
    """
    config, layer = model.config.get_text_config(), model.get_output_embeddings()
    found = [vars(config).get(name) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")]
    scale = next((value for value in found if value is not None), 1.0)
    divisor = vars(config).get("logits_scaling")
    if divisor is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    weight, bias = (
        value.full_tensor() if hasattr(value, "full_tensor") else value for value in (layer.weight, layer.bias)
    )
    return LMHead(weight, bias, float(scale), vars(config).get("final_logit_softcapping"))


def expose_hidden_states(model: Any) -> None:
    """Make `model(**batch, head=False)` give the last hidden states (B, T, D), without cache, and no logits.

    It goes through what wraps the model (PEFT, DistributedDataParallel), as it must for gradients to be averaged.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = base.forward

    @functools.wraps(type(base).forward)  # generation asks for the signature
    def either(*args: Any, head: bool = True, **kwargs: Any) -> Any:
        if head:
            return forward(*args, **kwargs)
        return base.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state

    base.forward = either


def check(model: Any, name: str) -> None:
    """Make sure that an exposed model's head makes of its hidden states the logits that the model itself gives.

    Raises:
        UserError: it does not, so that a loss over chunks would train something else.
    """
    weight = model.get_output_embeddings().weight
    if weight.is_meta:
        return
    ids, training = torch.arange(4, 8, device=weight.device)[None], model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits.float()
            found = of(model).logits(model(input_ids=ids, head=False)).float()
    finally:
        model.train(training)
    difference, bound = (expected - found).abs().max().item(), expected.std().item()
    if not difference <= (1e-4 if weight.dtype == torch.float32 else 0.02) * bound:
        raise UserError(
            f"--model {name}: {type(model).__name__} makes its logits in a way that is not known here (they differ by "
            f"{difference:.2g} from its head's); it cannot be distilled in chunks"
        )
