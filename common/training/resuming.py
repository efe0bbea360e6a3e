"""A Trainer that stops and is started again as if it had not: its checkpoints, and what it has logged."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from tunebook.common import distributed
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.run_folder import checkpoint_files, run_record
from tunebook.common.run_folder.checkpoint_files import STATE
from tunebook.common.training import stop_on_signal
from tunebook.common.training.checkpoints import tensors_only

LOG_STATE = "tunebook.log"  # in a checkpoint's trainer_state.json


class _AlreadyTrained(Exception):
    """The checkpoint has all steps of the run."""


class _Resume(TrainerCallback):
    """Goes on with the log as it was. Raises where a checkpoint has all steps, before the Trainer makes one more; by
    then the Trainer has loaded the checkpoint, and every other callback has begun."""

    def __init__(self, trainer: Any, checkpoint: Path, stopped: bool):
        self.trainer, self.checkpoint, self.stopped = trainer, checkpoint, stopped

    def on_train_begin(self, args, state, control, **kwargs):
        callbacks: Any = state.stateful_callbacks  # a dict once the state was read from a checkpoint
        _restore_log(self.trainer, callbacks.get(LOG_STATE) or {})
        if state.best_model_checkpoint is not None:  # as it was called where the run began
            state.best_model_checkpoint = str(self.checkpoint.with_name(Path(state.best_model_checkpoint).name))
        stop_on_signal.take_left_evaluation(self.trainer, str(self.checkpoint))
        if self.stopped or control.should_training_stop or state.global_step >= state.max_steps:
            raise _AlreadyTrained


def train(trainer: Any, checkpoint: str | None) -> None:
    """trainer.train, from the checkpoint where there is one; where it has all steps, the best weights are loaded.

    Raises:
        UserError: the checkpoint is of another model or optimizer.
    """
    distributed.require_same("checkpoint", checkpoint and Path(checkpoint).name)
    _seal_checkpoints(trainer)
    if checkpoint is None:
        trainer.train()
        return
    trainer.args.restore_callback_states_from_checkpoint = True  # patience of early stopping
    state = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    guard = _Resume(trainer, Path(checkpoint), bool(control.get("should_training_stop")))
    trainer.add_callback(guard)
    _explain(trainer, checkpoint)
    _know_numbered_cpus()
    try:
        with tensors_only(checkpoint):
            trainer.train(resume_from_checkpoint=checkpoint)
    except _AlreadyTrained:
        print(f"all {trainer.state.global_step} steps are trained; what comes after them is made")
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.is_in_train = False
        trainer.log({"train_loss": (trainer._total_loss_scalar + trainer._tr_loss.item()) / trainer.state.global_step})
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    finally:
        trainer.remove_callback(guard)


@cache
def _know_numbered_cpus() -> None:
    """Let torch.load put tensors on cpu:0, as accelerate (1.15) calls the CPU where several processes train on it."""
    import torch

    torch.serialization.register_package(
        11, lambda storage: None, lambda storage, place: storage if place.startswith("cpu:") else None
    )


def _seal_checkpoints(trainer: Any) -> None:
    """Give the trainer's checkpoints a manifest, before older ones are removed for them, and the state of its log."""
    save = trainer._save_checkpoint

    def save_checkpoint(model: Any, trial: Any) -> None:
        args, folder = trainer.args, Path(trainer.args.output_dir)
        checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
        if is_main_process():
            checkpoint_files.begin(checkpoint)
        trainer.accelerator.wait_for_everyone()
        trainer.state.stateful_callbacks[LOG_STATE] = _log_state(trainer)
        limit, args.save_total_limit = args.save_total_limit, None  # else it would remove them before
        try:
            save(model, trial)
        finally:
            args.save_total_limit = limit
        trainer.accelerator.wait_for_everyone()  # each process has written its random state
        if is_main_process():
            checkpoint_files.seal(checkpoint, trainer.state.global_step, run_record.id_of(folder))
            rotate_checkpoints(str(folder), limit, trainer.state.best_model_checkpoint)

    trainer._save_checkpoint = save_checkpoint


def _log_state(trainer: Any) -> dict[str, Any]:
    """What the trainer has summed since it logged last, which its own state does not hold."""
    return {
        "loss": trainer.accelerator.reduce(trainer._tr_loss, "mean").item(),
        "logged": trainer._globalstep_last_logged,
        "total": trainer._total_loss_scalar,
        "tokens": getattr(trainer, "_total_train_tokens", 0),
        "metrics": {
            name: [float(value) for value in values]
            for name, values in vars(trainer).get("_metrics", {}).get("train", {}).items()
        },
    }


def _restore_log(trainer: Any, saved: dict[str, Any]) -> None:
    if not saved:  # an earlier version kept none
        return
    trainer._tr_loss += saved["loss"]
    trainer._globalstep_last_logged, trainer._total_loss_scalar = saved["logged"], saved["total"]
    if hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = saved["tokens"]
    if saved["metrics"]:
        trainer._metrics["train"].update(saved["metrics"])


def _explain(trainer: Any, checkpoint: str) -> None:
    """Say in one message where a checkpoint cannot be loaded into what the run has now (--allow_changes)."""

    def explained(load: Any) -> Any:
        def loading(*args: Any, **kwargs: Any) -> Any:
            try:
                return load(*args, **kwargs)
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:300].rstrip(".")
                raise UserError(
                    f"{checkpoint} does not fit the model or optimizer that this run has now: {reason}. Undo what has "
                    "changed, or add --overwrite to begin again"
                ) from error

        return loading

    trainer._load_from_checkpoint = explained(trainer._load_from_checkpoint)
    trainer._load_optimizer_and_scheduler = explained(trainer._load_optimizer_and_scheduler)
