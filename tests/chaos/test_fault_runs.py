"""Faults of the machine while a recipe trains: one message and its exit code; then the same command goes on."""

import os
import subprocess

import few
import forked
import killed
import pytest
from paths import ROOT

SCRIPT = ROOT / "recipes" / "lora_alpaca.py"
FLAGS = ["--eval_suite", "none", "--max_steps", "12", "--per_device_train_batch_size", "4", "--set",
         "save_steps=4", "eval_steps=4", "logging_steps=1", "dataloader_num_workers=1",
         "dataloader_persistent_workers=true"]  # fmt: skip
# Something happens in the run's own process, at once or when a step is logged.
CODE = """
import os, resource, runpy, shutil, sys
import psutil
fault, folder, script, *words = sys.argv[1:]
from tunebook.common.training import metrics
log = metrics.TrainingMetrics.log
def late(self, step, values):
    log(self, step, values)
    if step == 6 and "loss" in values:
        if fault == "folder gone":
            shutil.rmtree(folder)
        if fault == "loader killed":
            for child in psutil.Process().children():
                child.kill()
        if fault == "no memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        if fault == "unknown":
            raise LookupError("something new")
metrics.TrainingMetrics.log = late
if fault == "file size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
"""
FAULTS = {
    "folder gone": (2, "Was it removed while the command ran?"),
    "loader killed": (2, "a loader process has ended"),
    "no memory": (2, "out of memory"),
    "file size": (2, "ulimit -f"),
    "unknown": (1, "LookupError: something new; where it comes from is written to"),
}
pytestmark = [pytest.mark.slow, pytest.mark.recipe]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("faults")
    words = ["--dataset", few.rows(place / "rows", train=32, others=8), *FLAGS]
    done = forked.run(SCRIPT, "--output_dir", place / "whole", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return words, killed.weights(place / "whole")


def plain(done, code, says):
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code and message.startswith("error: ") and says in message, done.stderr[-3000:]
    assert "Traceback" not in done.stderr + done.stdout


def goes_on(whole, folder):
    words, weights = whole
    done = forked.run(SCRIPT, "--output_dir", folder, *words)
    assert done.returncode == 0 and killed.weights(folder) == weights, done.stderr[-3000:]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_message_and_the_run_goes_on(fault, whole, tmp_path):
    folder = tmp_path / "run"
    plain(forked.run("-c", CODE, fault, folder, SCRIPT, "--output_dir", folder, *whole[0]), *FAULTS[fault])
    goes_on(whole, folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("size", ["8k", "1500k", "3500k", "6300k"])
def test_a_full_disk(size, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]).returncode:
        pytest.skip("this container may not mount")
    try:
        done = forked.run(SCRIPT, "--output_dir", disk / "run", *whole[0])
        if done.returncode:
            plain(done, 2, f"on the disk at {disk}")
            subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
            goes_on(whole, disk / "run")
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
