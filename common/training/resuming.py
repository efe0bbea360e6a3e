"""Going on with a run that stopped: from its newest whole checkpoint, and no step further than it was to go."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from tunebook.common import output_dir
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.training.checkpoints import STATE


class _Ended(Exception):
    """The checkpoint is that of a run that had trained to its end."""


class _NoStepFurther(TrainerCallback):
    """Ends a training whose checkpoint has all of its steps, before the Trainer makes one more.

    By then the Trainer has loaded the checkpoint, and every other callback has begun.
    """

    def __init__(self, stopped: bool):
        self.stopped = stopped

    def on_train_begin(self, args, state, control, **kwargs):
        if self.stopped or state.global_step >= state.max_steps:
            raise _Ended


def find_checkpoint(folder: Path, args: dict[str, Any], resume: bool, overwrite: bool) -> str | None:
    """The checkpoint to resume from, or None for a fresh start. Writes what the run is, so that it can be told later.

    With `overwrite`, what an earlier run wrote is removed first, and nothing else in the folder.

    Raises:
        UserError: the folder holds a run of other arguments, an unfinished one while --no-resume was given, or one
            whose checkpoints are all damaged.
    """
    path = folder / output_dir.RUN_FILE
    if overwrite and is_main_process():
        for old in [*folder.glob("checkpoint-*"), *(folder / name for name in output_dir.WRITTEN)]:
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    mine = {name: value for name, value in json.loads(json.dumps(args)).items() if name not in output_dir.FREE}
    if path.exists() and not overwrite:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in mine if mine[name] != theirs.get(name)]
        if other:
            changes = ", ".join(f"{name} {theirs.get(name)!r} -> {mine[name]!r}" for name in other)
            raise UserError(
                f"--output_dir {folder} holds a run with other arguments ({changes}); "
                "choose another folder or add --overwrite"
            )
    found = None if overwrite else newest(folder)
    if found and not resume:
        raise UserError(f"--output_dir {folder} contains an interrupted run; resume it, choose another, or --overwrite")
    path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    if found:
        print(f"resuming from {found}")
        return str(found)
    return None


def train(trainer: Any, checkpoint: str | None) -> None:
    """trainer.train, from the checkpoint where there is one; of a run that had ended, its best weights are loaded."""
    if checkpoint is None:
        trainer.train()
        return
    trainer.args.restore_callback_states_from_checkpoint = True  # patience of early stopping
    held = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
    control = held.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    guard = _NoStepFurther(bool(control.get("should_training_stop")))
    trainer.add_callback(guard)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except _Ended:
        print(f"all {trainer.state.global_step} steps are trained; what comes after them is made")
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.is_in_train = False
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    finally:
        trainer.remove_callback(guard)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder. Damaged ones that are newer are set aside, with a line.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda place: int(re.sub(r"\D", "", place.name) or 0))
    found = [place for place in found if (place / STATE).exists()]  # one that was being written has none
    damaged = []
    for place in reversed(found):
        if not (wrong := damage(place)):
            for bad, said in damaged:
                aside = bad.with_name(f"damaged-{bad.name}")
                print(f"{bad} is damaged ({said}) and set aside as {aside.name}")
                if is_main_process():
                    bad.rename(aside)
            return place
        damaged.append((place, wrong))
    if damaged:
        raise UserError(
            f"no checkpoint of {folder} is whole: "
            + "; ".join(f"{place.name}: {said}" for place, said in damaged)
            + ". Begin again with --overwrite, or in another --output_dir"
        )
    return None


def damage(checkpoint: Path) -> str:
    """The file of a checkpoint that is not there or not whole, and why; "" where all are."""
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
