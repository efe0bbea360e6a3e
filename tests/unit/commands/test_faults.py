"""Faults of machine and libraries: one message that names place and remedy, and the exit code."""

import errno
import os
import subprocess
import sys

import pytest

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.process import faults
from tunebook.common.training import trackers

LIBRARY = (
    "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0: file write failed"
)


@pytest.fixture
def no_room(monkeypatch):
    usage = type("Usage", (), {"free": 0, "total": 10 << 20})()
    monkeypatch.setattr(faults.shutil, "disk_usage", lambda place: usage)


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device", "/somewhere/run/log.jsonl"),
    RuntimeError(LIBRARY),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
])  # fmt: skip
def test_a_full_disk_is_named(error, no_room, tmp_path):
    text, code = faults.ending(error, str(tmp_path / "run"))
    assert (
        code == 2 and text.startswith("error: no space is left for /") and "0 B free of 10 MiB on the disk at" in text
    )
    assert "Make room" in text and "the same command goes on from there" in text and "\n" not in text


@pytest.mark.parametrize(("error", "says"), [
    (OSError(errno.EROFS, "Read-only file system", "/a/b"), "/a/b: it is read-only"),
    (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: there is no permission"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "the name is too long"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/a/log.jsonl"), "/a/log.jsonl: it is not there"),
    (FileExistsError(errno.EEXIST, "File exists", "/a/b"), "/a/b: a file stands where a folder is needed"),
    (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (RuntimeError("Parent directory /gone/c does not exist."), "/gone/c cannot be written: the folder is gone"),
    (MemoryError(), "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a loader process has ended"),
    (ValueError("embedded null byte"), "a name holds a null character"),
])  # fmt: skip
def test_faults_of_the_machine(error, says):
    text, code = faults.ending(error, "runs/x")
    assert code == 2 and says in text and "\n" not in text and "where it comes from" not in text, text


def test_what_is_not_known_is_one_line_with_a_traceback_in_a_file():
    try:
        raise KeyError("no\nsuch")
    except KeyError as error:
        text, code = faults.ending(error, None)
    name = text.rpartition("written to ")[2].partition(",")[0]
    with open(name, encoding="utf-8") as file:
        assert "Traceback" in (said := file.read()) and "KeyError" in said
    os.unlink(name)
    assert code == 1 and text.startswith("error: KeyError: ") and "\n" not in text
    assert faults.ending(CheckFailed("no"), None) == ("check failed: no", 1)
    assert faults.ending(UserError("no"), None) == ("error: no", 2)


@pytest.mark.parametrize(("name", "says"), [
    ("evil", "there is none, tensorboard, wandb, trackio"), ("wand", "the nearest is wandb"),
])  # fmt: skip
def test_trackers_that_are_not_there(name, says):
    with pytest.raises(UserError, match=f"--report_to {name}: .*{says}"):
        trackers.check(name)


def test_trackers_that_are_not_installed_or_have_no_key(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"it is not installed: pip install \"tunebook\[wandb\]\""):
        trackers.check("wandb")
    trackers.check("none")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(trackers, "_logged_in", lambda: False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="there is no key for it: wandb login"):
        trackers.check("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check("wandb")


@pytest.mark.parametrize(("words", "says"), [
    (["--report_to", "evil"], "there is none, tensorboard"), (["--output_dir", "x" * 300], "the name is too long"),
    (["--output_dir", "a\0b"], "null character"), (["--output_dir", "/proc/x/y"], "/proc/x"),
    (["--model", "y" * 300], "y"), (["--model", ""], "no such folder"),
    (["--dataset", "z" * 300 + ".jsonl"], "the name is too long"),
])  # fmt: skip
def test_bad_flags_load_nothing_heavy(words, says, tmp_path):
    """Known before torch is there, so said within a second."""
    code = f"""
import runpy, sys
sys.argv = ["recipes/lora_alpaca.py", *{words!r}]
try:
    runpy.run_module("tunebook.recipes.lora_alpaca", run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) <= 3, done.stderr
    assert "Traceback" not in done.stderr
