"""How the next token is chosen: greedy, sampled with a seed of its own for each prompt, or by beams."""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunebook.common.errors import UserError
from tunebook.common.process import stopping

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Decoding:
    """A decoding strategy. The default is greedy; a temperature above 0 samples; num_beams above 1 searches.

    Raises:
        UserError: a value is out of its bounds, or two do not go together.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: the likeliest token; 1: as the model says; above: flatter
    top_p: float = 1.0  # sample from the likeliest tokens that make up this probability
    top_k: int = 0  # sample from so many likeliest tokens; 0: from all
    num_beams: int = 1  # sequences searched side by side
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        wrong = [
            (self.max_new_tokens < 1, f"max_new_tokens {self.max_new_tokens}: at least 1"),
            (not 0 <= self.temperature < math.inf, f"temperature {self.temperature}: 0 (greedy) or above"),
            (not 0 < self.top_p <= 1, f"top_p {self.top_p}: a share of the probability, above 0 and at most 1"),
            (self.top_k < 0, f"top_k {self.top_k}: a number of tokens, or 0 for all"),
            (self.num_beams < 1, f"num_beams {self.num_beams}: at least 1"),
        ]
        narrowed = [name for name, given in (("top_p", self.top_p != 1.0), ("top_k", bool(self.top_k))) if given]
        if self.temperature == 0 and narrowed:
            names = " and ".join(narrowed)
            wrong.append(
                (True, f"{names} with temperature 0: greedy takes the likeliest token; sample with temperature 1")
            )
        if self.temperature > 0 and self.num_beams > 1:
            wrong.append((True, f"num_beams {self.num_beams} with temperature {self.temperature}: search or sample"))
        messages = [message for is_wrong, message in wrong if is_wrong]
        if messages:
            raise UserError("decoding: " + "; ".join(messages))

    def line(self) -> str:
        """In words, for prints."""
        if self.num_beams > 1:
            how = f"{self.num_beams} beams"
        elif self.temperature == 0:
            how = "greedy"
        else:
            top_p = f", top_p {self.top_p:g}" if self.top_p < 1 else ""
            top_k = f", top_k {self.top_k}" if self.top_k else ""
            how = f"temperature {self.temperature:g}{top_p}{top_k}, seed {self.seed}"
        return f"{how}, at most {self.max_new_tokens} tokens"


class GumbelSampler:
    """A logits processor that adds Gumbel noise: the largest sum is then a draw from the softmax of the logits
    (Gumbel 1954; Maddison et al. 2014), and greedy search samples.

    A token's noise comes from the seed, the row's own prompt, the step and the token alone, by integer arithmetic: the
    other rows of a batch, and the device, do not move it. What remains is rounding: logits of a batch differ from those
    of a row alone in the last digits, so that about one token in a hundred thousand may come out otherwise.

    Args:
        prompts: the ids of each row without padding.
        width: length of the padded prompts; a step is known by what is longer than it.
    """

    def __init__(self, seed: int, prompts: list[list[int]], width: int):
        self.width = width
        texts = [f"{seed} {' '.join(map(str, prompt))}".encode() for prompt in prompts]
        self._keys = [int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True) for text in texts]

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """scores (rows, vocabulary), any float dtype -> the same with noise, float64."""
        import torch

        keys = torch.tensor(self._keys, device=scores.device)[:, None]
        tokens = torch.arange(scores.shape[-1], device=scores.device)[None]
        bits = _mix(_mix(keys + (input_ids.shape[1] - self.width)) + tokens)
        uniform = (_right(bits, 11).double() + 0.5) / 2**53
        return scores.double() - torch.log(-torch.log(uniform))


def _mix(z: "torch.Tensor") -> "torch.Tensor":
    """Each int64 to one that looks random: the finalizer of splitmix64 (Steele, Lea and Flood 2014). It wraps."""
    z = z + (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ _right(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _right(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _right(z, 31)


def _right(z: "torch.Tensor", bits: int) -> "torch.Tensor":
    """z shifted right as if it were unsigned."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


class StopStringCriteria:
    """A stopping criterion: rows whose text holds one of `stops`, and all rows once `stopped` is set or a signal ends
    the run that they are samples of."""

    def __init__(self, tokenizer: Any, width: int, stops: tuple[str, ...] = ()):
        self.tokenizer, self.width, self.stops, self.stopped = tokenizer, width, stops, False
        # An id stands for a byte at least, so that so many last ids hold a stop text that has just been finished.
        self._window = max((len(stop.encode()) for stop in stops), default=0) + 8

    def __call__(self, input_ids: "torch.Tensor", scores: Any, **kwargs: Any) -> "torch.Tensor":
        """bool (rows,): which of them end here."""
        import torch

        stopped = self.stopped or bool(stopping.Waiting.asked)
        if stopped or not self.stops:
            return torch.full((len(input_ids),), stopped, device=input_ids.device)
        last = input_ids[:, max(self.width, input_ids.shape[1] - self._window) :].tolist()
        texts = [self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in last]
        found = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(found, device=input_ids.device)
