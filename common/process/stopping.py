"""Signals that end a command. While a model trains, the first one lets the step end and be saved."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any, ClassVar

SIGNALS = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of prctl
ONE = 1.0  # seconds in which a second signal is the first one again: launchers pass on what the group has got, too


class Stopped(BaseException):
    """A signal that ends the command, with exit code 128 + its number."""

    def __init__(self, number: int):
        self.number, self.name = number, signal.Signals(number).name
        super().__init__(self.name)


class EvaluationLeft(Exception):
    """A signal has come while an evaluation was under way, which is taken when the run goes on."""


class Waiting:
    """Whether a signal waits for the end of a step or ends the command where it is; `asked`: its number, 0 for none."""

    on: ClassVar[bool] = False
    asked: ClassVar[int] = 0
    since: ClassVar[float] = 0.0


def listen() -> None:
    """Handle the signals that end a command, but those that are ignored, as SIGHUP is under nohup."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in SIGNALS:
        number = getattr(signal, name)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def follow_launcher() -> None:
    """Get SIGHUP when `accelerate launch` ends: to the one process that it starts it passes no signal on, which would
    train on for nobody."""
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if alone and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGHUP)


def _handle(number: int, frame: object) -> None:
    if not Waiting.on:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(number)
    if Waiting.asked:
        if time.monotonic() - Waiting.since > ONE and number != getattr(signal, "SIGHUP", None):  # see follow_launcher
            os._exit(128 + number)
        return
    Waiting.asked, Waiting.since = number, time.monotonic()
    if hasattr(signal, "SIGCHLD"):  # loader workers of the same group end, too; torch would raise in this process
        signal.signal(signal.SIGCHLD, lambda *_: None)
    if os.environ.get("RANK", "0") == "0":
        text = f"\n{signal.Signals(number).name}: the step ends and is saved; a second signal ends the run at once\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # print may be what was interrupted


def wait() -> None:
    """From now on a signal waits until the step that runs is done: see `check`."""
    Waiting.on, Waiting.asked = True, 0


def end(world: int = 1) -> None:
    """From now on a signal ends the command where it is. Where one has come, this does, once all processes are here."""
    Waiting.on = False
    if Waiting.asked:
        if world > 1:
            import torch

            torch.distributed.barrier()  # a launcher ends the others when the first has ended
        raise Stopped(Waiting.asked)


def asked(world: int = 1, device: Any = "cpu") -> int:
    """The number of the signal that has come to a process of the run; 0 for none.

    Args:
        world: the processes of the run. They all must ask, and agree, for they have to stop at the same step.
        device: of their tensors.
    """
    if world > 1:
        import torch

        number = torch.tensor(Waiting.asked, device=device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        Waiting.asked = int(number)
    return Waiting.asked


def leave_evaluation(world: int = 1, device: Any = "cpu") -> None:
    """Before each batch of an evaluation: where a signal waits, it is left. Args as in `asked`.

    Raises:
        EvaluationLeft: then the run is to be saved, and ended.
    """
    if Waiting.on and asked(world, device):
        raise EvaluationLeft
