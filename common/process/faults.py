"""Errors of the machine and of libraries as one plain message: the place, the cause and the remedy."""

import errno
import os
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from tunebook.common.distributed import is_main_process
from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.format import byte_size
from tunebook.common.process.stopping import Stopped

LITTLE = 4 << 20  # bytes free on a disk that is as good as full
LONGEST = 300  # characters of a library's own words
KEPT = "What was written before is kept; the same command goes on from there"
SYSTEM = {
    errno.EROFS: "it is read-only. Mount it for writing, or choose another folder",
    errno.EACCES: "there is no permission. Change it, or choose another folder",
    errno.EPERM: "there is no permission. Change it, or choose another folder",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.EEXIST: "a file stands where a folder is needed. Choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed. Choose another path",
    errno.EISDIR: "a folder stands where a file is needed. Move it away",
    errno.ELOOP: "its links lead in a circle. Name the place itself",
    errno.ENOENT: "it is not there. Was it removed while the command ran? Begin again",
    errno.ESTALE: "the disk of the network has gone away. Mount it again",
    errno.EIO: "the disk cannot be read or written. Check it, or choose another",
}
NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")


def ending(error: BaseException, folder: str | None, debug: bool = False) -> tuple[str, int]:
    """What a command says of the error that ends it, and its exit code.

    Args:
        folder: where it writes.
        debug: the traceback has been shown.
    """
    if isinstance(error, CheckFailed):
        return f"check failed: {error}", 1
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, (KeyboardInterrupt, Stopped)):
        name, number = (error.name, error.number) if isinstance(error, Stopped) else ("SIGINT", 2)
        return (f"stopped by {name}: {_going_on(folder)}" if is_main_process() else ""), 128 + number
    if text := explain(error, folder):
        return f"error: {text}", 2
    words = " ".join(str(error).split())
    where = "" if debug else _kept_traceback(error)
    return f"error: {type(error).__name__}: {words[:LONGEST]}{where}", 1


def _going_on(folder: str | None) -> str:
    """How a run that was stopped goes on."""
    if folder is None or not Path(folder).exists():
        return "nothing was written over"
    found = {int(path.name[11:]): path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()}
    if not found:
        return f"nothing is finished yet; {folder} can be used by the next command"
    return f"{found[max(found)]} holds the run so far; the same command goes on from there"


def _kept_traceback(error: BaseException) -> str:
    """Where the traceback of an error that nothing here knows was written, in words."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tunebook-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return "; --debug shows where it comes from"
    return f"; where it comes from is written to {file.name}, and --debug shows it"


def explain(error: BaseException, folder: str | None = None) -> str | None:
    """What has happened to the machine, in words; None where the error is no such thing.

    Args:
        folder: where the command writes.
    """
    text = " ".join(str(error).split())
    place = _place(error, text, folder)
    number = getattr(error, "errno", None) or next(
        (int(found[1] or found[2]) for found in [NUMBER.search(text)] if found), None
    )
    if number in (errno.ENOSPC, errno.EDQUOT) or (_about_writing(text) and _full(place)):
        return f"no space is left for {place}: {_room(place)}. Make room, or choose another folder. {KEPT}"
    if number == errno.EFBIG or "File too large" in text or (_about_writing(text) and _file_limit()):
        return f"{place}: a file may not get that large here (ulimit -f). Raise the limit. {KEPT}"
    if number == errno.EMFILE or "Too many open files" in text:
        return f"too many files are open (ulimit -n is {_open_files()}): ulimit -n 4096. {KEPT}"
    if isinstance(error, ValueError) and "embedded null" in text:
        return "a name holds a null character, which no file's name does. Leave it out"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _about_memory(error, text):
        return f"out of memory ({text[:LONGEST] or 'MemoryError'}). Lower --per_device_train_batch_size or --max_length"
    if "DataLoader worker" in text:
        return (
            f"a loader process has ended ({text[:LONGEST]}); it may have been killed for memory. "
            f"--set dataloader_num_workers=0 reads without one. {KEPT}"
        )
    if number in SYSTEM and isinstance(error, OSError):
        return f"{place}: {SYSTEM[number]}" + ("" if number == errno.ENOENT else f". {KEPT}")
    if _about_writing(text):
        what = "the folder is gone" if not Path(place).exists() else text[:LONGEST]
        return f"{place} cannot be written: {what}. {KEPT}"
    return None


def cannot_write(path: str | Path, error: OSError) -> str:
    """The message for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f": {_room(str(path))}. Make room, or choose another folder"
    else:
        remedy = SYSTEM.get(error.errno or 0, "").partition(".")[2]
        remedy = remedy and f".{remedy}"
    return f"{path} cannot be written: {error.strerror}{remedy}"


def _place(error: BaseException, text: str, folder: str | None) -> str:
    name = getattr(error, "filename", None)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str):
        found = re.search(r"(?:No such file or directory: |cannot be opened: |directory )'?(/[^'\s]+)", text)
        name = found[1] if found else None
    return name or folder or "."


def _there(place: str) -> Path:
    """The nearest folder of a path that exists."""
    path = Path(place).absolute()
    return next(parent for parent in [path, *path.parents] if parent.exists())


def _full(place: str) -> bool:
    return shutil.disk_usage(_there(place)).free < LITTLE


def _room(place: str) -> str:
    """What is free of the disk of a path."""
    there = _there(place)
    mount = next(parent for parent in [there, *there.parents] if parent.is_mount() or parent == parent.parent)
    usage = shutil.disk_usage(there)
    return f"{byte_size(usage.free)} free of {byte_size(usage.total)} on the disk at {mount}"


def _about_writing(text: str) -> bool:
    """How torch and safetensors say that a file cannot be written; they leave out why."""
    return any(
        words in text for words in ("PytorchStreamWriter", "file write failed", "Parent directory", "unexpected pos")
    )


def _about_memory(error: BaseException, text: str) -> bool:
    words = (
        "can't allocate memory",
        "Cannot allocate memory",
        "not enough memory",
        "CUDA out of memory",
        "std::bad_alloc",
    )
    return type(error).__name__ == "OutOfMemoryError" or any(one in text for one in words)


def _file_limit() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _open_files() -> int:
    if sys.platform == "win32":
        return 512
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
