"""Programs that a model wrote, each run in a process of its own that can reach nothing (sandbox/seccomp.py)."""

import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tunebook.common.errors import UserError
from tunebook.evals.sandbox import seccomp

PASSED = "passed"
SECONDS = 10  # of one program, on the clock; HumanEval's own 3 s call right programs wrong on a loaded machine
MEMORY = 1 << 30  # bytes of address space
# What must be refused, and what must work, before any program of a model runs: name -> (program, its verdict).
PROBES = {
    "a program that computes": ("import math\nassert math.comb(5, 2) == 10", PASSED),
    "the network": ("import socket\nsocket.socket()", "failed: PermissionError"),
    "another process": ("import os\nos.fork()", "failed: PermissionError"),
    "a file that is written": ("open('x', 'w')", "failed: PermissionError"),
    "a file that is deleted": ("import os\nos.rmdir(os.getcwd())", "failed: PermissionError"),
    "a signal to another": ("import os\nos.kill(os.getppid(), 0)", "failed: PermissionError"),
}


def run(program: str, seconds: int = SECONDS, memory: int = MEMORY) -> str:
    """Run one program in an empty folder of its own.

    Args:
        seconds: on the clock, and of processor time.
        memory: bytes of address space, Python's own included.

    Returns:
        `passed`: it ran to its end. `failed: KIND`: it raised that. `timed out`. `ended by itself`: it ended its
        process before its last line, or was ended by the kernel.

    Raises:
        UserError: it cannot be contained here; it was not run.
    """
    token = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="tunebook_program_") as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="surrogatepass")
        receive, send = os.pipe()
        try:
            code = _wait([str(file), token, str(send), str(seconds), str(memory)], folder, send, seconds)
            # It has ended, so what it wrote is in the pipe, which holds little: more would have kept it waiting.
            verdict = os.read(receive, 4096).decode(errors="replace")
        finally:
            os.close(receive)
    if code in (None, -signal.SIGXCPU):
        return "timed out"
    found, _, verdict = verdict.partition(" ")
    if found != token:
        return "ended by itself"
    if verdict.startswith("not contained"):
        raise UserError(f"programs cannot be run safely here: {verdict}")
    return verdict


def _wait(words: list[str], folder: str, send: int, seconds: int) -> int | None:
    """Run sandbox/seccomp.py in the folder and give its exit code; None: it had to be stopped. Closes `send`."""
    process = subprocess.Popen(
        [sys.executable, "-I", seccomp.__file__, *words],
        cwd=folder,
        env={"HOME": folder, "OPENBLAS_NUM_THREADS": "1"},  # nothing of this process's own, such as keys
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[send],
        start_new_session=True,
    )
    os.close(send)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()
        process.wait()


def run_all(programs: Iterable[str], seconds: int = SECONDS, memory: int = MEMORY) -> list[str]:
    """The verdict on each program, in order; as many at a time as this process has cores."""
    check()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run(program, seconds, memory), programs))


@cache
def check() -> None:
    """See that programs are contained on this machine, by programs of our own.

    Raises:
        UserError: they are not.
    """
    if sys.platform != "linux" or platform.machine() not in seccomp.MACHINES:
        machines = " and ".join(seccomp.MACHINES)
        raise UserError(f"programs can be run safely on Linux ({machines}) alone; this is {platform.platform()}")
    for name, (program, expected) in PROBES.items():
        verdict = run(program)
        if verdict != expected:
            raise UserError(f"programs cannot be run safely here: {name}: expected {expected!r}, found {verdict!r}")
