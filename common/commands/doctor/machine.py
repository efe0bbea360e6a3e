"""What `tunebook doctor` says of the machine: device and precision that will be used, cores, memory."""

import os
import shutil
import sys
from pathlib import Path

from tunebook.common import distributed
from tunebook.common.commands.doctor.finding import GOOD, NOTE, WRONG, Finding

GIB = 2**30
LOW_MEMORY = 4 * GIB  # a recipe on the bundled model peaks at about half of it
DRIVER = 580  # the first for CUDA 13, for which the pinned torch is built
LOW_SHARED = 256 * 2**20  # loader workers hand batches over in /dev/shm; containers often have 64 MiB


def examine() -> list[Finding]:
    """Device, precision, cores, memory, the compiler, the bundled model."""
    return [_device(), _precision(), _cores(), _memory(), *_shared_memory(), *_compiler(), _pocket()]


def _device() -> Finding:
    import torch

    from tunebook.common.models import device

    found = f"{device.describe()}; {torch.cuda.device_count()} GPU(s) in all"
    if torch.cuda.is_available() and unreached() is None:
        major, minor = torch.cuda.get_device_capability(0)
        return Finding("device", GOOD, f"{found}, compute capability {major}.{minor}, CUDA {torch.version.cuda}")
    if hidden():
        return Finding("device", GOOD, f"{device.describe()}; CUDA_VISIBLE_DEVICES hides every GPU")
    if shutil.which("nvidia-smi") is None:
        return Finding("device", GOOD, device.describe())
    why, remedy = unreached() or ("torch finds no GPU", "see what nvidia-smi says of it")
    return Finding("device", WRONG, f"{device.describe()}; this machine has an NVIDIA driver, but {why}", remedy)


def hidden() -> bool:
    """Whether the user has told CUDA to show no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def unreached() -> tuple[str, str] | None:
    """Why torch cannot compute on this machine's NVIDIA GPU, and what to do about it; None where it can."""
    import torch

    built = torch.version.cuda
    if built is None:
        return (
            f"torch {torch.__version__} is a build for the CPU, which pip prefers where it finds both",
            "take the one for CUDA and go on: .venv/bin/pip install -c constraints.txt torch===2.13.0 && make install",
        )
    try:
        torch.cuda.init()
        torch.zeros(1, device="cuda").add_(1).item()  # where CUDA starts, the build may have no kernels for the card
    except RuntimeError as error:
        return (
            f"torch {torch.__version__} cannot compute on it: {str(error).splitlines()[0]}",
            f"CUDA {built} needs driver {DRIVER} or later and a card of Turing (T4) or later: update the driver, or "
            'make clean install PIP_FLAGS="--extra-index-url URL", with the index of CUDA 12.6 that PyTorch\'s '
            "installation page names",
        )
    return None


def require_gpu() -> None:
    """For `make install` on a machine with a GPU: end it with what is wrong, before minutes are spent on the rest."""
    problem = None if hidden() else unreached()
    if problem:
        sys.exit(f"this machine has an NVIDIA GPU, but {problem[0]}\n→ {problem[1]}")


def _precision() -> Finding:
    from tunebook.common.models import device

    words = {"float32": "float32, no mixed precision", "bfloat16": "bfloat16", "float16": "float16 with a loss scaler"}
    name = str(device.current().dtype).removeprefix("torch.")
    checkpointing = device.current().gradient_checkpointing or "off"
    return Finding("precision", GOOD, f"{words[name]}; activation checkpointing {checkpointing}")


def _cores() -> Finding:
    usable, load = distributed.cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    threads = os.environ.get("OMP_NUM_THREADS", "")
    free = min(usable, max(1, round(usable - load)))  # a thread that waits for a core holds up all others
    busy = f"; load {load:.1f}" if load >= 0.5 else ""
    advice = f"export OMP_NUM_THREADS={free}"
    if usable > 1 and threads == "1" and free > 1:
        return Finding("cores", NOTE, f"{usable}, of which OMP_NUM_THREADS=1 lets one work{busy}", advice)
    takes = int(threads) if threads.isdigit() and int(threads) > 0 else usable
    if takes > free:
        return Finding("cores", NOTE, f"{usable} usable, {takes} threads{busy}: fewer threads are quicker now", advice)
    return Finding("cores", GOOD, f"{usable} usable of {os.cpu_count()}, {takes} thread{'s' * (takes != 1)}{busy}")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():  # a container may have less than its machine
        total = min(total, int(limit.read_text()))
        used = Path("/sys/fs/cgroup/memory.current")
        free = min(free, total - int(used.read_text()) if used.exists() else total)
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if free < LOW_MEMORY:
        return Finding("memory", NOTE, found, "close other programs, or take a smaller model or batch")
    return Finding("memory", GOOD, found)


def _shared_memory() -> list[Finding]:
    if not Path("/dev/shm").exists():
        return []
    size = shutil.disk_usage("/dev/shm").total
    if size >= LOW_SHARED:
        return []
    return [Finding("/dev/shm", NOTE, f"{size / 2**20:.0f} MiB; loader workers may stop with a bus error",
                    "docker run --shm-size 1g, or --set dataloader_num_workers=0")]  # fmt: skip


def _compiler() -> list[Finding]:
    """Triton builds kernels on a GPU with the machine's C compiler."""
    import torch

    if not torch.cuda.is_available() or any(map(shutil.which, ("cc", "gcc", "clang"))):
        return []
    return [Finding("C compiler", WRONG, "none; GPU kernels are built with one", "apt-get install gcc")]


def _pocket() -> Finding:
    from tunebook.common.pocket import FOLDER

    weights = FOLDER / "model" / "model.safetensors"
    missing = [name for name in ("train.jsonl", "validation.jsonl", "test.jsonl") if not (FOLDER / name).exists()]
    missing += [] if weights.exists() and weights.stat().st_size > 10_000 else ["model/model.safetensors"]
    if missing:
        return Finding("pocket", WRONG, f"the bundled set lacks {', '.join(missing)}", "git checkout -- common/pocket")
    return Finding("pocket", GOOD, f"bundled model ({weights.stat().st_size / 2**20:.0f} MiB) and rows are here")
