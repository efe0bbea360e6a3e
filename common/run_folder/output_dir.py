"""The output folder of a run."""

import os
import re
import shutil
from pathlib import Path

from tunebook.common.errors import UserError
from tunebook.common.run_folder import lock

RUN_FILE, REPORT, LOG, PROGRESS = "run.json", "report.json", "log.jsonl", "progress.json"
# What runs write into their folder; --overwrite removes these and nothing else.
WRITTEN = (
    RUN_FILE,
    REPORT,
    "report.html",
    LOG,
    PROGRESS,
    "adapter",
    "model",
    "best",
    "base",
    "eval",
    "pretraining.json",
    *("tensorboard", "wandb", "trackio"),  # of --report_to
)
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
UNFINISHED = re.compile(r"checkpoint-\d+\.part")  # while it is written: a plain loop's itself, a mark beside others
DAMAGED = "damaged-"


def prepare(path: str, overwrite: bool, marker: str) -> Path:
    """The output folder, made if needed.

    Raises:
        UserError: it is a file, cannot be written, or holds `marker` (a finished run) and `overwrite` is off.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"--output_dir {path} is a file; name a folder")
    if (folder / marker).exists() and not overwrite:
        raise UserError(
            f"--output_dir {path} holds a finished run ({marker}); choose another folder or add --overwrite"
            + (f". To train on from it: tunebook export {path} --to merged makes a --model of it" * (marker == REPORT))
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path}: {error.strerror}; choose another folder") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output_dir {path} cannot be written; choose another folder")
    return folder


def prepare_run(path: str, overwrite: bool, marker: str = REPORT) -> tuple[Path, bool]:
    """The same for a run, which has the folder for itself until it ends (lock.py); and whether the one before it there
    was killed."""
    folder = prepare(path, overwrite, marker)
    for inside in sorted(folder.iterdir()):
        if inside.is_symlink() and (inside.name in (*WRITTEN, "tokens", lock.FILE) or CHECKPOINT.match(inside.name)):
            raise UserError(
                f"--output_dir {path}: {inside.name} in it is a link to {os.readlink(inside)}, where the run would "
                "write. Remove the link, or choose another folder"
            )
    return folder, lock.acquire(folder)


def clear(folder: Path) -> None:
    """Remove what an earlier run has written, and nothing else."""
    kept = [path for pattern in (CHECKPOINT, UNFINISHED) for path in matching(folder, pattern)]
    for old in [*kept, *folder.glob(f"{DAMAGED}checkpoint-*"), *(folder / name for name in WRITTEN)]:
        remove(old)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of what is called a checkpoint, by step."""
    found = [(int(path.name.rpartition("-")[2]), path) for path in matching(folder, CHECKPOINT)]
    return sorted(found)


def matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if pattern.fullmatch(path.name)]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
