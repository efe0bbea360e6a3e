"""Runs that are killed at a moment, without a word, and what is compared of two runs: weights, report, log."""

import hashlib
import json
import signal

import forked

from tunebook.common.run_folder import run_record

# Starts a recipe, and kills its process as soon as `moment` is true of its folder.
CODE = """
import glob, json, os, runpy, signal, sys, threading, time
moment, number, folder, script, *words = sys.argv[1:]

def steps():
    try:
        lines = open(folder + "/log.jsonl").read().splitlines()
    except OSError:
        return [0]
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"loss"' in line] or [0]

def saves():
    return {name.removesuffix(".part") for name in glob.glob(folder + "/checkpoint-*")}

old = saves()
moments = {
    "step": lambda: steps()[-1] >= int(number),
    "save": lambda: len(saves() - old) >= int(number),
    "result": lambda: bool(glob.glob(folder + "/adapter/*") or glob.glob(folder + "/model/model.safetensors")),
}

def watch():
    while not moments[moment]():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
sys.argv, sys.path[0] = [script, *words], os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""
# Starts a recipe, which sends a signal to itself while a step of training is logged, as `kill` would. Of several
# processes, one does: SIGNALED_RANK.
SIGNALED = """
import os, runpy, sys
from tunebook.common.training import metrics
number, at, twice = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "twice"
here = os.environ.get("RANK") == os.environ.get("SIGNALED_RANK")
log = metrics.TrainingMetrics.log
def sent(self, step, values):
    log(self, step, values)
    if here and step == at and "loss" in values:
        os.kill(os.getpid(), number)
        if twice:
            import time
            from tunebook.common.process import stopping
            time.sleep(stopping.ONE + 0.1)
            os.kill(os.getpid(), number)
metrics.TrainingMetrics.log = sent
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Starts a recipe, which sends a signal to itself at the second batch of an evaluation, while it trains.
EVALUATING = """
import os, runpy, sys
from tunebook.common.process import stopping
number, evaluation = int(sys.argv[1]), int(sys.argv[2])
leave, batches = stopping.leave_evaluation, []
here = os.environ.get("RANK") == os.environ.get("SIGNALED_RANK")
def sent(world=1, device="cpu"):
    if here and stopping.Waiting.on:
        batches.append(world)
        if len(batches) == 2 * evaluation:
            os.kill(os.getpid(), number)
    leave(world, device)
stopping.leave_evaluation = sent
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What a clock says, and what is made of it.
CLOCK = ("time", "runtime", "per_second", "flos", "peak_bytes")


def at(moment, number, folder, recipe, *words):
    """Run a recipe into `folder` and kill it: at a `step` that is logged, in its `save` number N, or while it writes
    its `result`. Returns whether it was killed before its end."""
    done = forked.run("-c", CODE, moment, number, folder, recipe, "--output_dir", folder, *words)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode != 0


def signaled(number, step, recipe, *words, twice=False):
    """Run a recipe that gets a signal when it has logged a step; `twice`: and again, a second later."""
    return forked.run("-c", SIGNALED, int(number), step, "twice" if twice else "once", recipe, *words)


def signaled_in_evaluation(number, evaluation, recipe, *words):
    """Run a recipe that gets a signal at the last of two batches of an evaluation, the first, second, ... of this
    part of its training."""
    return forked.run("-c", EVALUATING, int(number), evaluation, recipe, *words)


def weights(folder):
    """A hash of the final weights, bit for bit."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    for path in sorted([*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]):
        with safe_open(path, "np") as file:
            for name in sorted(file.keys()):
                value = file.get_tensor(name)
                digest.update(f"{name} {value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()


def log(folder):
    """log.jsonl without times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not any(word in name for word in CLOCK)} for line in lines]


def same_account(whole, resumed, kills, how="killed"):
    """Assert that weights, losses, log and tokens of a resumed run are those of the one that was left alone."""
    assert weights(resumed) == weights(whole)
    report, of_parts = (json.loads((folder / "report.json").read_text()) for folder in (whole, resumed))
    for name in ("steps", "loss", "evaluations", "parts"):
        assert of_parts["train"][name] == report["train"][name], name
    assert of_parts["eval"] == report["eval"]
    assert of_parts["measured"]["trained_tokens"] == report["measured"]["trained_tokens"]
    assert log(resumed) == log(whole)
    run = of_parts["run"]
    assert [part["how"] for part in run["parts"]] == [how] * kills + ["finished"]
    assert sum(part["trained_tokens"] for part in run["parts"]) >= report["measured"]["trained_tokens"]
    assert all(part["to_step"] >= part["from_step"] for part in run["parts"])
    assert all(part["ended"] for part in run["parts"] if part["seconds"])
    assert run["id"] == run_record.id_of(resumed) and not (resumed / "run.lock").exists()
