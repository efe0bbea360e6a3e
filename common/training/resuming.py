"""Resuming an interrupted run from its newest intact checkpoint."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from tunebook.common import distributed, files, output_dir
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.training.checkpoints import STATE, tensors_only


class _AlreadyTrained(Exception):
    """The checkpoint has all steps of the run."""


class _StopIfTrained(TrainerCallback):
    """Raises where a checkpoint has all steps, before the Trainer makes one more. By then the Trainer has loaded the
    checkpoint, and every other callback has begun."""

    def __init__(self, stopped: bool):
        self.stopped = stopped

    def on_train_begin(self, args, state, control, **kwargs):
        if self.stopped or state.global_step >= state.max_steps:
            raise _AlreadyTrained


def find_checkpoint(folder: Path, args: dict[str, Any], resume: bool, overwrite: bool) -> str | None:
    """The checkpoint to resume from, or None for a fresh start. Writes the run's arguments to run.json.

    With `overwrite`, the files of an earlier run are removed first, and nothing else in the folder.

    Raises:
        UserError: the folder holds a run with other arguments, an interrupted one that is not to be resumed, or one
            whose checkpoints are all damaged.
    """
    path = folder / output_dir.RUN_FILE
    if overwrite and is_main_process():
        for old in [*folder.glob("checkpoint-*"), *(folder / name for name in output_dir.WRITTEN)]:
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    new = {name: value for name, value in json.loads(json.dumps(args)).items() if name not in output_dir.FREE}
    if path.exists() and not overwrite and any(folder.glob("checkpoint-*")):  # else nothing is lost with other ones
        old = json.loads(path.read_text(encoding="utf-8"))
        changes = [f"{name} {old.get(name)!r} -> {new[name]!r}" for name in new if new[name] != old.get(name)]
        if changes:
            raise UserError(
                f"--output_dir {folder} holds a run with other arguments ({', '.join(changes)}); "
                "choose another folder or add --overwrite"
            )
    checkpoint = None if overwrite else newest(folder)
    if checkpoint and not resume:
        raise UserError(f"--output_dir {folder} contains an interrupted run; resume it, choose another, or --overwrite")
    if is_main_process():
        files.write_json(path, new)  # all at once: another process may be reading it
    if checkpoint is None:
        return None
    print(f"resuming from {checkpoint}")
    return str(checkpoint)


def train(trainer: Any, checkpoint: str | None) -> None:
    """trainer.train, from the checkpoint where there is one; where it has all steps, the best weights are loaded."""
    distributed.require_same("checkpoint", checkpoint and Path(checkpoint).name)
    if checkpoint is None:
        trainer.train()
        return
    trainer.args.restore_callback_states_from_checkpoint = True  # patience of early stopping
    state = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    guard = _StopIfTrained(bool(control.get("should_training_stop")))
    trainer.add_callback(guard)
    try:
        with tensors_only(checkpoint):
            trainer.train(resume_from_checkpoint=checkpoint)
    except _AlreadyTrained:
        print(f"all {trainer.state.global_step} steps are trained; what comes after them is made")
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.is_in_train = False
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    finally:
        trainer.remove_callback(guard)


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint of a run's folder. Newer damaged ones are renamed, with a line.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    written = [path for path in folder.glob("checkpoint-*") if (path / STATE).exists()]  # the last of its files
    damaged = {}
    for path in sorted(written, key=lambda path: int(re.sub(r"\D", "", path.name) or 0), reverse=True):
        if problem := damage(path):
            damaged[path] = problem
            continue
        for bad, problem in damaged.items():
            aside = bad.with_name(f"damaged-{bad.name}")
            print(f"{bad} is damaged ({problem}) and set aside as {aside.name}")
            if is_main_process():
                bad.rename(aside)
        return path
    if damaged:
        problems = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        remedy = "Begin again with --overwrite, or in another --output_dir"
        raise UserError(f"no checkpoint of {folder} is whole: {problems}. {remedy}")
    return None


def damage(checkpoint: Path) -> str:
    """The first missing or damaged file of a checkpoint, and why; "" where it is intact."""
    if not (weights := sorted(checkpoint.rglob("*.safetensors"))):
        return "no weights (.safetensors) are in it"
    for index in checkpoint.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is not what lists the files of weights"
        if lost := sorted(names - {path.name for path in weights}):
            return f"{lost[0]} is not there"
    by_loop = bool(list(checkpoint.glob("random_states_*")))
    needed = ("optimizer.bin",) if by_loop else ("optimizer.pt", "scheduler.pt")
    for name in needed:
        if not (checkpoint / name).exists():
            return f"{name} is not there, without which training would go on in another way"
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass  # it has compared the length with the header
        except (OSError, SafetensorError):
            return f"{path.name} is cut off or no safetensors file"
    for path in (path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")):
        try:
            zipfile.ZipFile(path).close()
        except (OSError, zipfile.BadZipFile):
            return f"{path.name} is cut off or no file of torch's"
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{STATE} is no JSON"
    return ""
