"""Memory of this process: how much it takes, its peak, and how much it may take. Bytes throughout.

With a GPU that is what the process's tensors take of it; the allocator's gaps between them come on top, and are part of
what `limit` gives. Without a GPU it is what the process keeps resident.
"""

import ctypes
import gc
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import ClassVar

import psutil

RESET_PEAK = Path("/proc/self/clear_refs")  # Linux keeps the peak itself, and forgets it where 5 is written here
BEGAN = time.monotonic()
UNLIMITED = 2**60  # control groups write no limit as a very large number


class Peak:
    """The largest memory since it was made or last reset: `bytes`.

    CUDA's allocator and Linux keep one peak for all, so that no short one is missed; elsewhere a thread looks every
    `interval` seconds.
    """

    _all: ClassVar["weakref.WeakSet[Peak]"] = weakref.WeakSet()
    _kernel: ClassVar[bool] = sys.platform == "linux"  # until a reset is refused, as some containers do

    def __init__(self, interval: float = 0.05):
        self._highest, self._stop = 0, threading.Event()
        self.reset()
        Peak._all.add(self)
        self._thread = threading.Thread(target=self._watch, args=(interval,), daemon=True)
        self._thread.start()

    def _watch(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._highest = max(self._highest, held())

    def reset(self) -> None:
        """Begin anew from what is held now. Other Peaks of this process keep what they have seen."""
        import torch

        for other in Peak._all:
            other._highest = other.bytes
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif Peak._kernel:
            try:
                RESET_PEAK.write_text("5")
            except OSError:
                Peak._kernel = False
        self._highest = held()

    @property
    def bytes(self) -> int:
        if not self._stop.is_set():
            self._highest = max(self._highest, _high_water(), held())
        return self._highest

    def stop(self) -> int:
        found = self.bytes
        self._stop.set()
        self._thread.join()
        return found


def held() -> int:
    """What is taken now: with a GPU, tensors on it and paged optimizer states."""
    import torch

    return torch.cuda.memory_allocated() + paged() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def paged() -> int:
    """Bytes of optimizer states in CUDA's managed memory, which moves between GPU and host. torch does not count them,
    and bitsandbytes never frees them."""
    functional = sys.modules.get("bitsandbytes.functional")  # whoever has such states has imported it
    if functional is None:
        return 0
    return sum(buffer.nbytes for buffer in functional.GlobalPageManager.get_instance().paged_tensors)


def limit() -> int:
    """What this process may take in all, gaps included: of the GPU, or else of memory, its control group, and
    `ulimit -v` or `-d`."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    return held() + min([psutil.virtual_memory().available, *_control_groups(), *_process_limits()])


def age() -> float:
    """Seconds since this process began, by a clock that nobody sets; outside Linux since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # from the start of the machine
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - BEGAN


def release() -> None:
    """Give back what nobody refers to any more; torch keeps it of a GPU, and glibc of memory, until they are told."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # musl has none
            library.malloc_trim(0)


def _high_water() -> int:
    """The largest memory since the last reset, where CUDA's allocator or Linux keeps it; else 0."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() + paged()
    if not Peak._kernel:
        return 0
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _process_limits() -> list[int]:
    """Room left under the limits of address space and of data, where they are set."""
    if sys.platform == "win32":
        return []
    import resource

    now = psutil.Process().memory_info()
    sizes = {resource.RLIMIT_AS: now.vms, resource.RLIMIT_DATA: getattr(now, "data", now.vms)}
    soft = {which: resource.getrlimit(which)[0] for which in sizes}
    return [
        max(0, soft[which] - size + _free_of_heap())
        for which, size in sizes.items()
        if soft[which] != resource.RLIM_INFINITY
    ]


class _Mallinfo2(ctypes.Structure):
    """As in glibc's malloc.h (2.33)."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _free_of_heap() -> int:
    """Bytes of this process's heap that are free, 0 where glibc does not tell: `release` gives back the memory behind
    them, but not their addresses."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallinfo2"):
        return 0
    library.mallinfo2.restype = _Mallinfo2
    return library.mallinfo2().fordblks


def _control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Room left in the control groups that hold this process (a container has one); cache that can go is room."""
    if not own.exists():
        return []
    rooms = []
    for line in own.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = root / kinds
        names = ("memory.max", "memory.current", "inactive_file") if kinds == "" else (
            "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # fmt: skip
        place = top / path.strip("/")
        for folder in [place, *(parent for parent in place.parents if parent == top or top in parent.parents)]:
            most, used, stat = folder / names[0], folder / names[1], folder / "memory.stat"
            if not (most.exists() and used.exists() and most.read_text().strip().isdigit()):
                continue
            cache = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
            if int(most.read_text()) < UNLIMITED:
                taken = int(used.read_text()) - int(cache.get(names[2], 0))
                rooms.append(max(0, int(most.read_text()) - taken))
    return rooms
