"""Peaks that last a moment are seen and can be forgotten; limits come from control groups and ulimit, too."""

import mmap
import subprocess
import sys

import psutil
import pytest
import torch
from paths import ROOT

from tunebook.common import resources

MIB = 2**20


@pytest.fixture
def peak():
    made = resources.Peak()
    yield made
    made.stop()


def taken(mib):
    """Resident memory of its own. A large array may lie in a hole of the heap, which free() does not give back."""
    pages = mmap.mmap(-1, mib * MIB)
    pages[::4096] = bytes(mib * MIB // 4096)
    return pages


def touch(mib):
    taken(mib).close()


def test_a_short_peak_is_seen_and_forgotten(peak):
    before = peak.bytes
    touch(300)
    assert 290 * MIB < peak.bytes - before < 340 * MIB
    peak.reset()
    assert peak.bytes - before < 50 * MIB


def test_a_reset_leaves_other_peaks(peak):
    before = peak.bytes
    touch(200)
    other = resources.Peak()
    assert other.bytes - before < 50 * MIB
    other.reset()
    assert peak.bytes - before > 190 * MIB
    other.stop()


def test_a_stopped_peak_stays(peak):
    peak.stop()
    stopped = peak.bytes
    touch(200)
    assert peak.bytes == stopped


class Card:
    """CUDA's allocator as far as Peak asks it: one peak for all, which a reset forgets."""

    def __init__(self, monkeypatch):
        self.now = self.highest = 0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.highest)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: self.take(self.now, fresh=True))

    def take(self, size, fresh=False):
        self.now, self.highest = size, size if fresh else max(size, self.highest)


def test_peaks_of_a_card(monkeypatch):
    """What one forgets the others keep, and paged states, which the allocator does not know, are in all of them."""
    from bitsandbytes import functional

    card, pages = Card(monkeypatch), []
    monkeypatch.setattr(functional.GlobalPageManager.get_instance(), "paged_tensors", pages)
    card.take(10 * MIB)
    peak = resources.Peak()
    card.take(700 * MIB)
    card.take(100 * MIB)
    other = resources.Peak()
    assert (peak.bytes, other.bytes) == (700 * MIB, 100 * MIB)
    card.take(900 * MIB)
    other.stop()
    card.take(50 * MIB)
    peak.reset()
    assert (peak.bytes, other.bytes) == (50 * MIB, 900 * MIB)
    pages.append(torch.zeros(4 * MIB, dtype=torch.uint8))
    assert resources.held() == 54 * MIB and peak.bytes == 54 * MIB and other.bytes == 900 * MIB
    peak.stop()


def test_without_the_kernels_peak_a_thread_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "RESET_PEAK", tmp_path / "no" / "such")
    monkeypatch.setattr(resources.Peak, "_kernel", True)
    touch(400)  # the kernel still remembers this; it must not be taken for ours
    peak = resources.Peak(interval=0.001)
    before = psutil.Process().memory_info().rss
    assert not resources.Peak._kernel and peak.bytes - before < 50 * MIB
    held = taken(200)
    assert peak.stop() - before > 190 * MIB
    held.close()


def test_limit_is_what_is_left_of_an_address_space():
    code = "import torch, psutil; from tunebook.common import resources; print(resources.limit() - resources.held(), "
    code += "4 * 2**30 - psutil.Process().memory_info().vms)"
    command = ["bash", "-c", f"ulimit -v {4 * 2**20}; exec {sys.executable} -c '{code}'"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    room, expected = map(int, done.stdout.split())
    assert abs(room - expected) < 30 * MIB and room < 4 * 2**30


@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_control_groups(tmp_path, version):
    """The tightest of all groups above the process counts, and cache that can go is room."""
    top = tmp_path / ("memory" if version == 1 else "")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") if version == 1 else (
        "memory.max", "memory.current", "inactive_file")  # fmt: skip
    inner = top / "pod" / "job"
    inner.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("3:cpu:/elsewhere\n" + ("9:memory:/pod/job\n" if version == 1 else "0::/pod/job\n"))
    assert resources._control_groups(tmp_path, own) == []

    def group(folder, most, used, cache):
        (folder / names[0]).write_text(f"{most}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"active_file 7\n{names[2]} {cache}\n")

    group(inner, 1000 * MIB, 400 * MIB, 100 * MIB)
    group(top / "pod", 2000 * MIB, 1900 * MIB, 50 * MIB)
    group(top, "max" if version == 2 else 2**63 - 4096, 1, 0)
    assert sorted(resources._control_groups(tmp_path, own)) == [150 * MIB, 700 * MIB]


def test_release_gives_memory_back():
    """Small blocks of a list: glibc keeps them until it is told."""
    blocks = [bytes(1000) for _ in range(200_000)]
    last = bytes(2000)  # on top of the heap, so that what is under it is not given back by itself
    full = resources.held()
    del blocks
    resources.release()
    assert full - resources.held() > 100 * MIB and last


HOLES = """
import ctypes, resource
import torch
from tunebook.common import resources
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
library.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: all of the heap
resources.limit()  # what it imports
vms = resources.psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (vms + 2**30, vms + 2**30))
before = resources.limit()
blocks = [library.malloc(2**20) for _ in range(300)]
pin = library.malloc(2**20)  # on top of them: the heap keeps their addresses
for block in blocks:
    library.free(block)
resources.release()
print(before - resources.limit())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_addresses_that_the_heap_has_free_are_room():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout)) < 30 * MIB
