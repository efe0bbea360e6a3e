"""Muon in the dtype of the weights. torch.optim.Muon works in bfloat16, which most CPUs emulate 10-20 times slower."""

from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for 2-D weights (Jordan et al. 2024; scale of Liu et al. 2025).

    The update has root mean square 0.2 x lr an element, like AdamW's, so both take the same learning rate.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, steps: int = 5):
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                nesterov = weight.grad.lerp(average, group["momentum"])
                update = orthogonalize(nesterov, group["steps"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonalize(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """A matrix with the same singular vectors and singular values near 1, by quintic Newton-Schulz iteration."""
    x = matrix / matrix.norm().clamp(min=1e-12)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + torch.addmm(-4.775 * gram, gram, gram, alpha=2.0315) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside a model, AdamW for its embeddings and norms."""
    inside = {name for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    matrices, others = (
        [p for name, p in model.named_parameters() if (name in inside) == kind] for kind in (True, False)
    )
    return [
        Muon(matrices, lr=rate),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
