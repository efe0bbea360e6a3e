"""A recipe run as it is up to its forecast, with models that have no weights."""

import gc
import importlib.util
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import footprint
from common.errors import UserError
from common.rehearsal import Actor
from common.shapes import replaced, shape
from common.workload import Workload, of_loader, of_trainer


class Planned(Exception):
    """A recipe has come to its forecast: what it would have trained, on which batches.

    Args:
        loaded: weak references to the models that it has loaded.

    Attributes:
        beside: bytes of those that it still holds and does not train, such as a teacher.
    """

    def __init__(
        self, actor: Actor, workload: Workload, optimizer: str, recomputes: bool, loaded: list[weakref.ref[Any]]
    ):
        super().__init__("planned")
        self.actor, self.workload, self.optimizer, self.recomputes = actor, workload, optimizer, recomputes
        trained = {id(part) for part in actor.model.modules()}
        gc.collect()
        kept = [model for reference in loaded if (model := reference()) is not None]
        self.beside = sum(footprint.weights(model) for model in kept if id(model) not in trained)


@dataclass
class Target:
    """The device that is planned for.

    Args:
        gpu: a GPU, whose recipes compute in 16 bits and recompute activations; else a CPU, in float32.
        four_bit: load the base in 4 bits or not, whatever the recipe says; None: as it says.
        bf16: the GPU has bfloat16; one without computes in float16.
    """

    gpu: bool
    four_bit: bool | None = None
    bf16: bool = True

    @property
    def dtype(self) -> Any:
        """What products are computed in."""
        import torch

        if not self.gpu:
            return torch.float32
        return torch.bfloat16 if self.bf16 else torch.float16

    def loaded(self, full: bool) -> Any:
        """What weights are loaded in: those that are all to train in float16 become float32 (Unsloth, FastModel), so
        that each takes 16 bytes with its gradient and its states in AdamW."""
        import torch

        return torch.float32 if full and self.dtype == torch.float16 else self.dtype


@contextmanager
def planned(target: Target) -> Iterator[None]:
    """Inside, recipes get models without weights, and their forecast raises Planned."""
    from common import attention, checks, forecast, models, trainers

    asked: dict[str, str] = {}
    loaded: list[weakref.ref[Any]] = []

    def rehearse(trainer: Any, find_batch_size: bool = False) -> None:
        recomputes = trainer.args.gradient_checkpointing or trainer.model.is_gradient_checkpointing
        raise Planned(trainers.actor(trainer), of_trainer(trainer), asked["optim"], recomputes, loaded)

    def rehearse_loop(actor: Actor, loader: Any, optimizer: Any, max_steps: int, evaluated: int = 0) -> None:
        workload = of_loader(loader, loader.dataset, actor.accumulation, 0, max_steps)
        recomputes = actor.model.is_gradient_checkpointing
        raise Planned(actor, workload, forecast.name(optimizer), recomputes, loaded)

    def load(
        name: str, max_length: int, four_bit: bool = False, full: bool = False, fast: bool = True
    ) -> tuple[Any, Any]:
        stack.enter_context(_first_optimizer(asked))
        wanted = four_bit if target.four_bit is None else target.four_bit
        model, tokenizer = shape(name, target.loaded(full), wanted, full, max_length)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    with ExitStack() as stack:
        for module, name, stand_in in (
            (models, "WEIGHTS", (*models.WEIGHTS, "config.json")),  # a config is enough
            (models, "load", load),
            (models, "dtype", lambda: target.dtype),
            (models, "precision", lambda: {"bf16": False, "fp16": False}),  # there is nothing to compute
            (models, "mixed_precision", lambda: "no"),
            (models, "checkpointing", lambda: "unsloth" if target.gpu else False),
            (attention, "one_row", lambda model: target.gpu and model.config.model_type in attention.UNSLOTH_FORWARDS),
            (checks, "isolation", lambda trainer: 0.0),
            (forecast, "rehearse", rehearse),
            (forecast, "rehearse_loop", rehearse_loop),
        ):
            stack.enter_context(replaced(module, name, stand_in))
        yield


@contextmanager
def _first_optimizer(asked: dict[str, str]) -> Iterator[None]:
    """The optimiser that a recipe asks for: without a GPU, Unsloth puts another in the place of some."""
    from transformers import TrainingArguments

    def note(self: Any, name: str, value: Any) -> None:
        if name == "optim":
            asked.setdefault("optim", str(getattr(value, "value", value)))
        object.__setattr__(self, name, value)

    with replaced(TrainingArguments, "__setattr__", note):
        yield


def recipe(file: Path) -> Any:
    """The module of a recipe's file, which need not be on the path."""
    import sys

    spec = importlib.util.spec_from_file_location(f"planned_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and help texts look for it there
    spec.loader.exec_module(module)
    return module
