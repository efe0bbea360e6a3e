"""Atomic writes, and samples of large files."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.process import faults

SAMPLES = 64  # places of a large file that are looked at


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A path to write to: what is there when the block ends takes the place of `path`; where it fails, nothing does.

    A link or a device is written through.

    Raises:
        IsADirectoryError: a folder has that name.
    """
    path = Path(path)
    if path.is_dir():  # libraries say so in other ways, without an errno
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes | Iterable[str | bytes]) -> None:
    """Write a text, bytes, or pieces of either, all or nothing. Half a surrogate pair in a text is written escaped.

    Raises:
        UserError: it cannot be written; says why.
    """
    pieces = [content] if isinstance(content, (str, bytes)) else content
    try:
        with atomic(path) as part, part.open("wb") as file:
            for piece in pieces:
                file.write(piece if isinstance(piece, bytes) else piece.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(faults.cannot_write(path, error)) from None


def share_weights(folder: Path) -> None:
    """Give .safetensors files below a folder the rights of other new files: the library lets their owner alone read
    them, and a server often runs as another user."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        with contextlib.suppress(OSError):  # of another owner, or on a disk without rights
            file.chmod(0o666 & ~mask)


def write_json(path: str | Path, value: Any, allow_nan: bool = True) -> None:
    """Write a value as JSON that people can read, all or nothing."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def json_line(row: Any) -> bytes:
    """A row as a line of JSON. Dates and the like become text; half a surrogate pair is escaped."""
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "backslashreplace")


def samples(path: Path) -> Iterator[bytes]:
    """4 KiB from the beginning and from SAMPLES places of a file too large to be read whole, such as weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in {0, *(size * part // SAMPLES for part in range(SAMPLES))}:
            file.seek(start)
            yield file.read(4096)
