"""The output folder of a run."""

import os
from pathlib import Path

from tunebook.common.errors import UserError

RUN_FILE = "run.json"
# What runs write into their folder; --overwrite removes these and nothing else.
WRITTEN = (RUN_FILE, "report.json", "report.html", "log.jsonl", "adapter", "model", "best", "base", "eval")
# Arguments that may differ when a run is resumed.
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
