"""The processes of a run: how many were asked for and how many have joined, which of them prints, writes and prepares
the data, and the CPU threads of each."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError

TORCHRUN = "Start them with torchrun --nproc_per_node N recipes/NAME.py; docs/processes.md has launches for each case"
# Set by mpirun and srun, which start processes and leave it to them to find each other.
STARTED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # set by accelerate launch and torchrun


def is_main_process() -> bool:
    """Whether this is the process of a run that prints and writes; the only one, where there is one."""
    return os.environ.get("RANK", "0") == "0"


def is_local_main_process() -> bool:
    """Whether this is the first process of its machine, which prepares the data for those beside it."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def check_launch(several: bool) -> None:
    """Refuse processes that do not know of each other, each of which would be a run by itself in the same folder; and
    one process where several were asked for. Looks at the environment alone.

    Args:
        several: whether the command takes several processes.

    Raises:
        UserError: with the launch that works.
    """
    asked = _number("WORLD_SIZE")
    if asked > 1 and not several:
        raise UserError(f"WORLD_SIZE={asked}: this command runs in one process; start it with python, or by its name")
    if asked > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(f"WORLD_SIZE={asked} is set and LOCAL_RANK is not: the processes cannot join. {TORCHRUN}")
    if "WORLD_SIZE" in os.environ:
        return
    if (started := max(map(_number, STARTED))) > 1:
        raise UserError(f"{started} processes were started that do not know of each other. {TORCHRUN}")
    # accelerate launch (1.15) sets an address where it was asked for several, and without GPUs it starts one all the
    # same: it leaves the rest to mpirun.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(
            f"accelerate launch was asked for several processes and has started one, as it does with --cpu. {TORCHRUN}"
            " (one process: --num_processes 1, and no MASTER_ADDR in the environment)"
        )


def world_size() -> int:
    """Processes in this run.

    Raises:
        UserError: torch or accelerate has not joined as many as were asked for.
    """
    import torch

    asked = _number("WORLD_SIZE")
    found = {"torch.distributed": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1}
    state: Any = sys.modules.get("accelerate.state")
    if state is not None and state.PartialState._shared_state:
        found["accelerate"] = state.PartialState().num_processes
    for library, count in found.items():
        if count != asked:
            raise UserError(f"{asked} processes were asked for, and {library} has joined {count}. {TORCHRUN}")
    return asked


def require_same(what: str, value: Any) -> None:
    """Refuse to go on where the processes of a run disagree, such as on two machines with a folder each.

    Raises:
        UserError: with what each of them has.
    """
    import torch

    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    if any(other != values[0] for other in values):
        each = ", ".join(f"process {rank}: {other}" for rank, other in enumerate(values))
        raise UserError(f"the processes of this run have not the same {what} ({each}); give all one --output_dir")


def wait_for(path: Path) -> None:
    """Return when another process of this machine has made the file. Launchers end all processes where one fails."""
    while not path.exists():
        time.sleep(0.1)


def threads() -> int | None:
    """CPU threads that this process should take, where a launcher has set them in the user's place; None elsewhere.

    accelerate launch and torchrun set OMP_NUM_THREADS=1 where it is not set: what the user has set stands in the
    environment that the launcher itself was given. Without that, each process takes its share of the cores.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return None
    asked = _threads_of_user()
    return asked or max(1, cores() // _number("LOCAL_WORLD_SIZE"))


def _threads_of_user() -> int:
    """0 where nothing was set."""
    import psutil

    own = os.environ.get("OMP_NUM_THREADS", "")
    try:
        for process in psutil.Process().parents():
            words = [word.replace("-", "_") for word in process.cmdline()]
            if any("num_cpu_threads_per_process" in word for word in words):
                return int(own) if own.isdigit() else 0
            environment = process.environ()
            if not any(name in environment for name in LAUNCHED):
                given = environment.get("OMP_NUM_THREADS", "")
                return int(given) if given.isdigit() else 0
    except (psutil.Error, OSError):
        pass
    return int(own) if own.isdigit() and own != "1" else 0


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_are_busy() -> bool:
    """Whether other work holds half of the cores or more, by the average of the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > cores() / 2


def _number(name: str) -> int:
    """A count in the environment; 1 where it is not set."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 1
