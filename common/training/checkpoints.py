"""Checkpoints of a plain loop: trained weights, optimizer, schedule and random state, written atomically."""

import json
import math
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunebook.common import distributed
from tunebook.common.errors import UserError
from tunebook.common.run_folder import checkpoint_files, output_dir, run_record
from tunebook.common.run_folder.checkpoint_files import STATE
from tunebook.common.training.metrics import TrainingMetrics

WEIGHTS, BEST = "trained.safetensors", "best.safetensors"


@contextmanager
def tensors_only(checkpoint: str | Path) -> Iterator[None]:
    """Inside, a file of the checkpoint that holds code or objects in place of tensors is refused by torch unread.

    Raises:
        UserError: there was one.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{checkpoint} holds a file with more than tensors, and nothing of it was run ({first}). Remove that "
            "folder to resume from the checkpoint before it, or add --overwrite"
        ) from error


class Checkpoints:
    """The last `keep` checkpoints of a run in `folder`.

    A checkpoint holds the trained parameters without a frozen base, those of the lowest held-out loss so far, what
    accelerate saves, schedule and metrics. With a tokenizer it can be used as an adapter, too.

    Attributes:
        evaluation_left: a signal has ended the evaluation of the checkpoint that was loaded.
    """

    def __init__(
        self,
        accelerator: Any,
        folder: Path,
        schedule: Any,
        metrics: TrainingMetrics,
        keep: int = 2,
        tokenizer: Any = None,
    ):
        self.accelerator, self.folder, self.metrics, self.keep = accelerator, folder, metrics, keep
        self.schedule, self.tokenizer = schedule, tokenizer
        self.evaluation_left = False
        self.best, self.newest = math.inf, folder  # an earlier version kept best weights in folder/best
        accelerator.register_save_state_pre_hook(self._save_trained)
        accelerator.register_load_state_pre_hook(_load_trained)

    def load(self, checkpoint: str | None) -> int:
        """Resume from a checkpoint; returns the steps that were made, 0 for None."""
        distributed.require_same("checkpoint", checkpoint and Path(checkpoint).name)
        if checkpoint is None:
            return 0
        state = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
        # accelerate (1.15) unpickles what was registered with it, whatever the file holds: the schedule is in STATE.
        pickles = sorted(path.name for path in Path(checkpoint).glob("custom_checkpoint_*"))
        if pickles or "schedule" not in state:
            raise UserError(
                f"{checkpoint} {f'holds {pickles[0]}' if pickles else 'has no schedule'}: it is of an earlier version, "
                "or somebody else's, and pickles are not read. Choose another --output_dir, or add --overwrite"
            )
        with tensors_only(checkpoint):
            self.accelerator.load_state(checkpoint)
        self.schedule.load_state_dict(state["schedule"])
        self.best, self.newest = state["best"], Path(checkpoint)
        self.evaluation_left = state.get("evaluation_left", False)
        self.metrics.restore(state["meter"])
        return state["global_step"]

    def save(self, model: Any, step: int, loss: float | None = None, evaluated: bool = True) -> None:
        """Write checkpoint-STEP, remove old ones, and keep the weights as the best at the lowest `loss` so far.

        Args:
            evaluated: False: the held-out loss is to be taken where the run goes on.
        """
        from safetensors.torch import save_file

        part = self.folder / f"checkpoint-{step}.part"
        better = not self._best_weights().exists()
        if loss is not None and loss < self.best:
            self.best, better = loss, True
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if better:
                save_file(_plain(model), part / BEST)
            else:
                shutil.copyfile(self._best_weights(), part / BEST)
            if self.tokenizer is not None:
                self.accelerator.unwrap_model(model).save_pretrained(part)
                self.tokenizer.save_pretrained(part)
            state = {"global_step": step, "loss": loss, "best": self.best, "meter": self.metrics.state()}
            state |= {"schedule": self.schedule.state_dict(), "evaluation_left": not evaluated}
            (part / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            checkpoint_files.seal(part, step, run_record.id_of(self.folder))
            shutil.rmtree(part.with_suffix(""), ignore_errors=True)
            part.rename(part.with_suffix(""))
            for _, old in output_dir.checkpoints(self.folder)[: -self.keep]:
                output_dir.remove(old)
        self.newest = part.with_suffix("")

    def load_best(self, model: Any) -> None:
        """The weights of the lowest held-out loss into the model."""
        from safetensors.torch import load_file

        self.accelerator.wait_for_everyone()
        _restore(model, load_file(self._best_weights()))

    def _best_weights(self) -> Path:
        place = self.newest / BEST
        return place if place.exists() else self.folder / "best" / WEIGHTS

    def finish(self, model: Any, folder: Path) -> Any:
        """Save the adapter and the tokenizer for use in `folder`; returns the model without its wrapper."""
        model = self.accelerator.unwrap_model(model)
        if self.accelerator.is_main_process:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        return model

    def _save_trained(self, models: list[Any], weights: list[Any], folder: str) -> None:
        from safetensors.torch import save_file

        if self.accelerator.is_main_process:
            save_file(_plain(models[0]), Path(folder) / WEIGHTS)
        weights.clear()  # else the whole model would be saved too


def _load_trained(models: list[Any], folder: str) -> None:
    from safetensors.torch import load_file

    _restore(models.pop(), load_file(Path(folder) / WEIGHTS))


def _trained(model: Any) -> dict[str, Any]:
    """The parameters that train, by their names without DistributedDataParallel."""
    return {name.removeprefix("module."): value for name, value in model.named_parameters() if value.requires_grad}


def _plain(model: Any) -> dict[str, Any]:
    return {name: value.detach().cpu().contiguous() for name, value in _trained(model).items()}


def _restore(model: Any, weights: dict[str, Any]) -> None:
    trained = _trained(model)
    if trained.keys() != weights.keys():
        raise ValueError(f"the checkpoint holds other weights: {sorted(trained.keys() ^ weights.keys())[:3]}")
    for name, value in weights.items():
        trained[name].data.copy_(value)
