"""An export's folder: written beside its place and renamed to it, so that nothing half-written stays."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from tunebook.common.errors import UserError


def check_new(path: str) -> Path:
    """The folder to write to, which must not be there, or be empty.

    Raises:
        UserError: it is there, or cannot be made.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output_dir {path} is there already; choose another folder, or remove it")
    above = next(one for one in folder.resolve().parents if one.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"--output_dir {path}: {above} cannot be written")
    return folder


def check_space(folder: Path, needed: int) -> None:
    """Refuse before anything is written.

    Raises:
        UserError: the disk has less room than `needed` bytes.
    """
    above = next(one for one in folder.resolve().parents if one.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            f"--output_dir {folder}: the export takes {needed / 2**30:.1f} GiB, and the disk has "
            f"{free / 2**30:.1f} GiB left; make room or name a folder on another disk"
        )


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when the block ends; where it fails, nothing stays.

    Raises:
        UserError: something cannot be written, such as where the disk is full.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--output_dir {folder} cannot be written: {said}; nothing of it was kept") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
