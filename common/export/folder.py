"""An export's folder: written beside its place and renamed to it, so that nothing half-written stays."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from tunebook.common import files
from tunebook.common.errors import UserError


def check_new(path: str) -> Path:
    """The folder to write to, which must not be there, or be empty.

    Raises:
        UserError: it is there, or cannot be made.
    """
    folder = Path(path).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output_dir {path} is there already; choose another folder, or remove it")
    if folder.resolve() == Path.cwd().resolve() or folder.is_symlink() or ".." in folder.parts[-1:]:
        raise UserError(f"--output_dir {path}: name a new folder, which the export is renamed to when it is complete")
    above = _above(folder)
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--output_dir {path}: {above} {'cannot be written' if above.is_dir() else 'is a file'}")
    return Path(path)


def _above(folder: Path) -> Path:
    """The nearest of the folders above that exists."""
    return next(one for one in folder.resolve().parents if one.exists())


def check_space(folder: Path, needed: int) -> None:
    """Refuse before anything is written.

    Raises:
        UserError: the disk has less room than `needed` bytes.
    """
    above = _above(folder)
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            f"--output_dir: the export takes {needed / 2**30:.1f} GiB, and the disk has "
            f"{free / 2**30:.1f} GiB left; make room or name a folder on another disk"
        )


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when the block ends; where it fails, nothing stays.

    Raises:
        UserError: something cannot be written, such as where the disk is full.
    """
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        print(f"note: {left} was left by an export that was killed, unless that still runs; remove it")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rmdir()
        files.share_weights(part)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--output_dir {folder} cannot be written: {said}; nothing of it was kept") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
