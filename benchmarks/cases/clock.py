"""Tokens a second and peak memory of a trainer at work."""

import math
import time
from typing import Any


def measure(trainer: Any, quick: bool) -> dict[str, Any]:
    """Train for a few seconds after a few steps of warming up (kernels are compiled then), and count."""
    from transformers import TrainerCallback

    from tunebook.common.batching.collator import without_padding
    from tunebook.common.resources import Peak

    warm, least, seconds = (1, 2, 0.0) if quick else (3, 6, 5.0)
    fetch, sizes, marks = trainer.get_batch_samples, [], []

    def counted(*words: Any, **named: Any) -> Any:
        samples, items = fetch(*words, **named)
        # Sums stay on the device: fetching them here would make the host wait.
        pairs = [(one["input_ids"].numel(), without_padding(one).sum()) for one in samples]
        sizes.append([sum(part) for part in zip(*pairs, strict=True)])
        return samples, items

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append((0, now()))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done = state.global_step
            if done in (1, warm) or (done > warm and (done - warm) % (1 if quick else 3) == 0):
                marks.append((done, now()))
            control.should_training_stop = done - warm >= least and marks[-1][1] - dict(marks)[warm] >= seconds

    trainer.get_batch_samples = counted
    trainer.add_callback(Clock())
    peak = Peak()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    if not losses or not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"losses that are no numbers, or none: {losses}")
    at, last = dict(marks), marks[-1][0]
    positions, tokens = (float(sum(column[warm:last])) for column in zip(*sizes, strict=True))
    return {
        "tokens_per_second": tokens / (at[last] - at[warm]),
        "padding_share": 1 - tokens / positions,
        "tokens_per_step": tokens / (last - warm),
        "steps": last - warm,
        "peak_bytes": peak.stop() + paged(trainer.optimizer),
        "first_step_seconds": at[1] - at[0],
        "losses": losses,
    }


def paged(optimizer: Any) -> int:
    """Bytes of optimizer states that bitsandbytes keeps in memory of CUDA's own, which torch does not count."""
    found = [value for state in optimizer.state.values() for value in state.values() if hasattr(value, "is_paged")]
    return sum(value.numel() * value.element_size() for value in found if value.is_paged)


def now() -> float:
    """Seconds, when all work given to the device is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate() -> float:
    """Operations a second of one large matrix product: bfloat16 on a GPU, float32 without one."""
    import torch

    gpu = torch.cuda.is_available()
    width, times = 8192 if gpu else 512, []
    a = torch.randn(width, width, dtype=torch.bfloat16 if gpu else torch.float32, device="cuda" if gpu else "cpu")
    for _ in range(20):
        begun = now()
        a @ a
        times.append(now() - begun)
    return 2 * width**3 / min(times)
