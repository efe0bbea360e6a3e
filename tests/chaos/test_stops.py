"""Every recipe, stopped by signals at three steps of one run: each time a checkpoint of that step, and the same end."""

import os
import signal
import subprocess
import sys
import time

import few
import forked
import killed
import pytest
from paths import ROOT

from tunebook.common.run_folder import output_dir

KINDS = {"dpo_pairs": "pairs", "chat_sharegpt": "chat"}
STOPS = ((signal.SIGTERM, 2), (signal.SIGINT, 7), (signal.SIGHUP, 11))
pytestmark = [pytest.mark.slow, pytest.mark.recipe]


@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "pretrain_pocket")
)
def test_a_stopped_run_ends_as_if_it_had_not_been(tmp_path, recipe):
    script = ROOT / "recipes" / f"{recipe}.py"
    rows = few.rows(tmp_path / "rows", KINDS.get(recipe, ""), 36, 8)
    words = ["--dataset", rows, "--eval_suite", "none", "--max_steps", "14", "--per_device_train_batch_size",
             "1" if recipe == "packed_alpaca" else "4"]  # fmt: skip
    if recipe != "loop_alpaca":
        evaluates = [] if recipe == "distill_on_policy" else ["eval_steps=4"]
        words += ["--set", "save_steps=4", "logging_steps=1", *evaluates]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = forked.run(script, "--output_dir", whole, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, step in STOPS:
        done = killed.signaled(number, step, script, "--output_dir", run, *words)
        assert done.returncode == 128 + number and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert step <= output_dir.checkpoints(run)[-1][0] <= step + 1
        assert "the same command goes on from there" in done.stderr.splitlines()[-1]
    done = forked.run(script, "--output_dir", run, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    killed.same_account(whole, run, len(STOPS), how="stopped")


def in_two(code, *words):
    """Start code of killed.py as a file in two processes; the second one gets its signal."""
    script = words[-1].parent / "starts.py"
    script.write_text(code)
    environment = {**os.environ, "SIGNALED_RANK": "1"}
    return forked.launch(2, script, *words[:-1], env=environment)


@pytest.mark.parametrize("recipe", ["lora_alpaca", "loop_alpaca", "dpo_pairs"])
def test_one_of_two_processes_is_stopped(tmp_path, recipe):
    """By a signal to one of them alone, in a step and in an evaluation: both stop at the same step."""
    script = ROOT / "recipes" / f"{recipe}.py"
    rows = few.rows(tmp_path / "rows", KINDS.get(recipe, ""), 36, 16)
    words = ["--dataset", rows, "--eval_suite", "none", "--max_steps", "12", "--per_device_train_batch_size", "2"]
    if recipe != "loop_alpaca":
        words += ["--set", "save_steps=3", "logging_steps=1", "eval_steps=3", "per_device_eval_batch_size=2"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = forked.launch(2, script, "--output_dir", whole, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    words = [script, "--output_dir", run, *words, tmp_path]
    for code, at in (
        (killed.SIGNALED, [int(signal.SIGTERM), 2, "once"]),
        (killed.EVALUATING, [int(signal.SIGTERM), 2]),
    ):
        done = in_two(code, *at, *words)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert done.stderr.count("the same command goes on from there") >= 1, done.stderr[-3000:]
    done = forked.launch(2, *words[:-1])
    assert done.returncode == 0, done.stderr[-3000:]
    killed.same_account(whole, run, 2, how="stopped")


def test_the_launcher_of_two_processes_is_stopped(tmp_path):
    """torchrun passes SIGTERM on to both, one after the other."""
    script = ROOT / "recipes" / "lora_alpaca.py"
    rows = few.rows(tmp_path / "rows", "", 36, 8)
    words = ["--dataset", rows, "--eval_suite", "none", "--max_steps", "60", "--per_device_train_batch_size", "2",
             "--set", "save_steps=20", "logging_steps=1", "eval_steps=20"]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = forked.launch(2, script, "--output_dir", whole, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    command = list(map(str, [*command, "--output_dir", run, *words]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while not (run / "log.jsonl").exists() or len(killed.log(run)) < 8:
            assert launcher.poll() is None, (tmp_path / "said").read_text()[-3000:]
            time.sleep(0.01)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(120) != 0
    text = (tmp_path / "said").read_text()
    assert "the same command goes on from there" in text and not (run / "run.lock").exists(), text[-3000:]
    assert 8 <= output_dir.checkpoints(run)[-1][0] < 60
    done = forked.launch(2, script, "--output_dir", run, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    killed.same_account(whole, run, 1, how="stopped")
