"""One run at a time in an output folder: a file that names the process which trains there.

A file, and no lock of the system: network file systems and containers do not share those, or have none. A process that
was killed leaves its file behind, which is taken over as soon as no such process is found. One in another container, or
on another machine of the same name, cannot be found: that it lives is seen by its file, which it touches.
"""

import atexit
import contextlib
import json
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError

FILE = "run.lock"
BEAT = 10.0  # seconds after which the process that holds a lock touches it again
SILENT = 45.0  # and after which a lock that was not touched is one of a dead process
_held: dict[Path, dict[str, Any]] = {}  # of this process
_ended: dict[Path, threading.Event] = {}


def acquire(folder: Path) -> bool:
    """Take the folder for this process; where a run has several, their first one stands for all.

    It is released by `release`, or when the process ends.

    Returns:
        Whether a process that is gone had left its lock there: it was killed.

    Raises:
        UserError: another process trains there, or one of another machine may.
    """
    path = (folder / FILE).resolve()
    if not is_main_process() or _held.get(path, {}).get("pid") == os.getpid():
        return False
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": process_started(os.getpid()),
        "namespace": _namespace(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    left = False
    while not _create(path, mine):
        found = _read(path)
        if found is None:
            continue  # released meanwhile
        _refuse_live(found, path, folder)
        left |= _set_aside(path, found)
    _held[path], _ended[path] = mine, threading.Event()
    threading.Thread(target=_touch, args=(path, mine, _ended[path]), daemon=True).start()
    atexit.register(release)
    return left


def _touch(path: Path, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        if _read(path) != mine:  # somebody has removed it
            return
        with contextlib.suppress(OSError):
            os.utime(path)


def holder(folder: Path) -> str | None:
    """What a folder's lock says of its process, without touching it: "running", "running on HOST" or "killed" (it is
    gone); None where there is no lock."""
    path = folder / FILE
    found = _read(path)
    if found is None:
        return None
    pid, host = found.get("pid"), found.get("host")
    if not isinstance(pid, int) or not isinstance(host, str):
        return "killed"
    if host == socket.gethostname() and not _is_elsewhere(found):
        return "running" if _lives(pid, found.get("process_started")) else "killed"
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime < SILENT:
            return f"running on {host}"
    return "killed"


def release() -> None:
    """Release what this process holds. A lock that another one has taken over is left alone."""
    for path, mine in list(_held.items()):
        del _held[path]
        _ended.pop(path).set()
        if mine["pid"] == os.getpid() and _read(path) == mine:  # a fork has inherited the entry, not the lock
            with contextlib.suppress(OSError):
                path.unlink()


def process_started(pid: int) -> str | None:
    """When a living process began, in a form that stays when the clock is set; None where there is none, or it is not
    known. A process id is used again, the two together are not."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":  # dead; its parent has not asked yet
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {fields[19]}"
    if Path("/proc/self/stat").exists():
        return None
    import psutil

    with contextlib.suppress(psutil.Error):
        return f"{psutil.Process(pid).create_time():.0f}"
    return None


def _namespace() -> str | None:
    """In which processes have their numbers: each container has its own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _refuse_live(found: dict[str, Any], path: Path, folder: Path) -> None:
    """Raises UserError where the process may live that a lock names."""
    pid, host = found.get("pid"), found.get("host")
    if not isinstance(pid, int) or not isinstance(host, str):
        print(f"{folder / FILE} cannot be read, and is replaced")
        return
    who = f"--output_dir {folder} is used by process {pid} on {host}, since {found.get('time')}"
    if host != socket.gethostname():
        raise UserError(
            f"{who}. Whether it still runs cannot be seen from this machine ({socket.gethostname()}): if it does not, "
            f"remove {folder / FILE}; if it does, choose another folder"
        )
    began = found.get("process_started")
    if _is_elsewhere(found):
        if _is_touched(path):
            raise UserError(
                f"{who}, in another container or on another machine of that name, and it still runs. Wait for it, stop "
                "it, or choose another folder"
            )
    elif pid != os.getpid() and _lives(pid, began):
        raise UserError(f"{who}, which still runs. Wait for it, stop it (kill {pid}), or choose another folder")


def _is_elsewhere(found: dict[str, Any]) -> bool:
    """Whether a process of this host name is of another container, another machine, or of before this one was started:
    here its number is nobody's, or somebody else's."""
    mine, its = process_started(os.getpid()), found.get("process_started")
    boots = [text.partition(" ")[0] for text in (mine, its) if isinstance(text, str) and " " in text]
    return len(set(boots)) > 1 or found.get("namespace", _namespace()) != _namespace()


def _is_touched(path: Path) -> bool:
    """Whether the process that holds a lock goes on touching it; ages are by the clock of the file system."""
    clock = path.with_name(f"{FILE}.{os.getpid()}.clock")
    try:
        clock.touch()
        first = path.stat().st_mtime_ns
        rest = SILENT - (clock.stat().st_mtime_ns - first) / 1e9
        if rest > 0:
            print(f"{path.name} is of a process that cannot be seen from here: {rest:.0f} s show whether it lives")
        end = time.monotonic() + rest
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENT / 20))
            if path.stat().st_mtime_ns != first:
                return True
    except OSError:  # it was released
        pass
    finally:
        clock.unlink(missing_ok=True)
    return False


def _lives(pid: int, began: Any) -> bool:
    now = process_started(pid)
    if now is not None:
        return began is None or began == now
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()  # it is there, and hidden from this user
    except OSError:
        pass
    return False


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Make the file with its content at once; False where there is one."""
    part = path.with_name(f"{FILE}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(json.dumps(content) + "\n")
            except FileExistsError:
                return False
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says; {} where that cannot be read, None where there is no lock."""
    for _ in range(5):  # without hard links it is empty for a moment
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            time.sleep(0.05)
        else:
            return found if isinstance(found, dict) else {}
    return {}


def _set_aside(path: Path, found: dict[str, Any]) -> bool:
    """Remove a lock of a dead process. Of several processes that try, one does."""
    aside = path.with_name(f"{FILE}.{os.getpid()}.stale")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be removed: {error.strerror}") from None
    if (taken := _read(aside)) != found and taken is not None:  # another process was quicker: this is its new lock
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return True
