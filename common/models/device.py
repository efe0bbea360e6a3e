"""What a run computes on, and how: the device of this machine, or the one that a plan is made for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tunebook.common import distributed


@dataclass(frozen=True)
class Device:
    """A device and what follows from it.

    Args:
        gpu: a CUDA GPU; else a CPU.
        dtype: torch dtype of weights and compute.
        loader: in a plan, what models.load calls instead of reading weights. Nothing is computed in a plan.
    """

    gpu: bool
    dtype: Any
    loader: Callable[..., tuple[Any, Any]] | None = None

    @property
    def mixed_precision(self) -> str:
        """accelerate's word: bf16, fp16 (with a loss scaler) or no."""
        name = str(self.dtype).removeprefix("torch.") if self.loader is None else ""
        return {"bfloat16": "bf16", "float16": "fp16"}.get(name, "no")

    @property
    def precision(self) -> dict[str, bool]:
        """The same as the two fields of SFTConfig."""
        return {name: self.mixed_precision == name for name in ("bf16", "fp16")}

    @property
    def gradient_checkpointing(self) -> str | bool:
        """Unsloth's activation checkpointing on a GPU, where memory is short; none on a CPU, where time is."""
        return "unsloth" if self.gpu else False

    def weights_dtype(self, full: bool) -> Any:
        """What weights are loaded in. Those that are all to train in float16 become float32 (Unsloth's FastModel), so
        that each takes 16 bytes with its gradient and its states in AdamW."""
        import torch

        return torch.float32 if full and self.dtype == torch.float16 else self.dtype


_active: ContextVar[Device | None] = ContextVar("device", default=None)


def current() -> Device:
    """The device that is planned for, inside a plan; else this machine's."""
    return _active.get() or here()


def planned() -> Device | None:
    """The device that is planned for; None where a run is a real one."""
    return _active.get()


@contextmanager
def use(device: Device) -> Iterator[None]:
    """Inside, `current` is this device."""
    token = _active.set(device)
    try:
        yield
    finally:
        _active.reset(token)


def here() -> Device:
    """This machine's device."""
    import torch

    gpu = torch.cuda.is_available()
    return make(gpu, gpu and torch.cuda.is_bf16_supported(including_emulation=False))


def make(gpu: bool, bf16: bool) -> Device:
    """bfloat16 on a GPU that has it, float16 on an older one, float32 on a CPU.

    A CPU gets float32 even where it has bfloat16: weights that train in pure bfloat16 lose small updates.
    """
    import torch

    return Device(gpu, (torch.bfloat16 if bf16 else torch.float16) if gpu else torch.float32)


def describe() -> str:
    """This machine's device in words, for prints and reports."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'s' * (count != 1)}"


def set_threads() -> None:
    """Undo the one thread that launchers set for a process on a CPU (distributed.threads)."""
    import torch

    if not torch.cuda.is_available() and (count := distributed.threads()):
        torch.set_num_threads(count)
