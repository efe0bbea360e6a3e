"""The folder of a run: made, not written over, and read for the checkpoint to resume from."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError

RUN_FILE = "run.json"
# What runs write into their folder; --overwrite removes these and nothing else.
WRITTEN = (RUN_FILE, "report.json", "report.html", "log.jsonl", "adapter", "model", "best", "base", "eval")
# may differ when a run goes on
FREE = {"output_dir", "overwrite", "resume", "report_to", "dry_run", "eval_suite", "debug_batches"}


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
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output_dir {path} cannot be written")
    return folder


def find_checkpoint(folder: Path, args: dict[str, Any], resume: bool, overwrite: bool) -> str | None:
    """The checkpoint to resume from, or None for a fresh start. Writes what the run is, so that it can be told later.

    With `overwrite`, what an earlier run wrote is removed first, and nothing else in the folder.

    Raises:
        UserError: the folder holds a run of other arguments, an unfinished one while --no-resume was given, or one
            whose checkpoints are all damaged.
    """
    path = folder / RUN_FILE
    if overwrite and is_main_process():
        for old in [*folder.glob("checkpoint-*"), *(folder / name for name in WRITTEN)]:
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    mine = {name: value for name, value in json.loads(json.dumps(args)).items() if name not in FREE}
    if path.exists() and not overwrite:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in mine if mine[name] != theirs.get(name)]
        if other:
            changes = ", ".join(f"{name} {theirs.get(name)!r} -> {mine[name]!r}" for name in other)
            raise UserError(
                f"--output_dir {folder} holds a run with other arguments ({changes}); "
                "choose another folder or add --overwrite"
            )
    from tunebook.common.training import resuming

    found = None if overwrite else resuming.newest(folder)
    if found and not resume:
        raise UserError(f"--output_dir {folder} holds a run that stopped; resume it, choose another, or --overwrite")
    path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    if found:
        print(f"going on from {found}")
        return str(found)
    return None
