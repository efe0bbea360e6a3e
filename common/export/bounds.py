"""What an export may differ from the trained model; docs/export.md says why. Stated before anything was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Of one width of weights.

    Attributes:
        found: how far the part of training that is found in a module's weights may be from 1.
        away: largest relative distance of a weight from the trained one.
        kl: nats a token, KL(trained‖export), mean over answer tokens.
        top1: least share of answer tokens whose likeliest token is the same.
        kept: least share of what training changed in the probabilities: 1 - KL(trained‖export) / KL(trained‖base).
        equal: least share of equal greedy answers.
        level: tokens that are level with the trained model's likeliest (served.level) count as it.
    """

    found: float
    away: float
    kl: float
    top1: float
    kept: float
    equal: float
    level: bool = True


BOUNDS = {
    32: Bounds(found=0.01, away=1e-6, kl=1e-4, top1=0.999, kept=0.99, equal=1.0, level=False),
    16: Bounds(found=0.1, away=2**-8, kl=5e-3, top1=0.99, kept=0.95, equal=1.0),
    8: Bounds(found=0.25, away=0.02, kl=0.02, top1=0.97, kept=0.8, equal=0.8),
    4: Bounds(found=0.5, away=0.15, kl=0.3, top1=0.85, kept=0.5, equal=0.0),
}


def of(bits: int) -> Bounds:
    """The bounds for weights of so many bits."""
    return BOUNDS[min(width for width in BOUNDS if width >= bits)]
