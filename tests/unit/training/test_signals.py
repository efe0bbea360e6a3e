"""Signals: a step ends and is saved, and the same command goes on to the weights of a run that was never stopped."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import few
import forked
import killed
import pytest
from paths import ROOT

from tunebook.common.process import stopping
from tunebook.common.training import stop_on_signal

STEPS = 8


def flags(recipe, rows, folder, *more):
    words = ["--dataset", rows, "--output_dir", folder, "--eval_suite", "none", "--max_steps", STEPS,
             "--per_device_train_batch_size", "4"]  # fmt: skip
    words += [] if recipe == "loop_alpaca" else ["--set", "save_steps=4", "eval_steps=4", "logging_steps=1"]
    return [*words, *more]


def start(recipe, *words):
    return forked.run(ROOT / "recipes" / f"{recipe}.py", *words)


def checkpoints(folder):
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def weights(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("recipe", "number", "at"), [("lora_alpaca", signal.SIGTERM, 2), ("loop_alpaca", signal.SIGINT, 5)]
)
def test_a_stopped_run_goes_on_to_the_same_weights(recipe, number, at, tmp_path):
    rows = few.rows(tmp_path / "rows", train=32, others=8)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(recipe, *flags(recipe, rows, whole)).returncode == 0
    done = killed.signaled(number, at, ROOT / "recipes" / f"{recipe}.py", *flags(recipe, rows, run))
    assert done.returncode == 128 + number and "Traceback" not in done.stderr, done.stderr[-2000:]
    step = at + (recipe == "lora_alpaca")  # the Trainer logs when it has asked
    assert step in checkpoints(run)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"stopped by {number.name}: {run / f'checkpoint-{step}'} holds the run so far; "
        "the same command goes on from there"
    )
    done = start(recipe, *flags(recipe, rows, run))
    assert done.returncode == 0 and f"resuming from {run / f'checkpoint-{step}'}" in done.stdout, done.stderr[-2000:]
    assert weights(run) == weights(whole)
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [*range(1, STEPS + 1)]


def left_evaluation(checkpoint):
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state.get("evaluation_left") or "tunebook.evaluation" in state.get("stateful_callbacks", {})


@pytest.mark.recipe
@pytest.mark.parametrize(("recipe", "steps"), [("lora_alpaca", (4, 8)), ("loop_alpaca", (2, 8))])
def test_an_evaluation_is_left_at_a_signal_and_taken_when_the_run_goes_on(recipe, steps, tmp_path):
    """In the middle of the training, and after its last step, twice in a row: nothing differs in the end."""
    rows = few.rows(tmp_path / "rows", train=32, others=8)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(recipe, *flags(recipe, rows, whole)).returncode == 0
    words = [ROOT / "recipes" / f"{recipe}.py", *flags(recipe, rows, run)]
    evaluations = [line["step"] for line in killed.log(whole) if "eval_loss" in line]
    for number, step, evaluation in ((signal.SIGTERM, steps[0], 1), (signal.SIGINT, steps[1], 3)):
        if recipe == "lora_alpaca" and evaluation == 3:
            evaluation = 2  # the one that was left, and that of the last step
        done = killed.signaled_in_evaluation(number, evaluation, *words)
        assert done.returncode == 128 + number and "Traceback" not in done.stderr, done.stderr[-2000:]
        assert max(checkpoints(run)) == step and left_evaluation(run / f"checkpoint-{step}")
        taken = [line["step"] for line in killed.log(run) if "eval_loss" in line]
        assert taken == [other for other in evaluations if other < step]
    assert start(recipe, *flags(recipe, rows, run)).returncode == 0
    killed.same_account(whole, run, 2, how="stopped")


def test_a_checkpoint_that_only_a_signal_has_made_is_not_the_best_one():
    """At the end the undisturbed run takes the best of those that it saves itself."""
    for due, best in ((True, 3), (False, None)):
        state = SimpleNamespace(best_global_step=3, global_step=3)
        stop_on_signal._settle_best(SimpleNamespace(state=state), due)
        assert state.best_global_step == best
    state = SimpleNamespace(best_global_step=2, global_step=3)
    stop_on_signal._settle_best(SimpleNamespace(state=state), False)
    assert state.best_global_step == 2


@pytest.mark.parametrize("strategies", [("epoch", "epoch", "steps"), ("steps", "steps", "steps")])
def test_the_end_of_an_epoch_is_saved_after_its_evaluation(monkeypatch, strategies):
    monkeypatch.setattr(stopping.Waiting, "asked", signal.SIGTERM)
    names = ("eval_strategy", "save_strategy", "logging_strategy")
    args = SimpleNamespace(world_size=1, device="cpu", **dict(zip(names, strategies, strict=True)))
    stop, seen = stop_on_signal.StopOnSignal(), []
    for epoch in (1.5, 2.0):
        for event in (stop.on_step_end, stop.on_epoch_end):
            control = SimpleNamespace(should_save=False, should_evaluate=False)
            event(args, SimpleNamespace(epoch=epoch), control)
            seen.append(control.should_save)
    assert seen == ([True, False, False, True] if "epoch" in strategies else [True, False, True, False])


@pytest.mark.recipe
def test_a_second_signal_ends_at_once(tmp_path):
    rows = few.rows(tmp_path / "rows", train=32, others=8)
    words = flags("loop_alpaca", rows, tmp_path / "run")
    done = killed.signaled(signal.SIGINT, 3, ROOT / "recipes" / "loop_alpaca.py", *words, twice=True)
    assert done.returncode == 130 and "a second signal ends the run at once" in done.stderr
    assert 3 not in checkpoints(tmp_path / "run")


@pytest.mark.recipe
def test_a_run_that_trained_nothing_leaves_a_folder_for_any_other(tmp_path):
    rows = few.rows(tmp_path / "rows", train=32, others=8)
    words = flags("loop_alpaca", rows, tmp_path / "run")
    assert start("loop_alpaca", *words, "--dry_run").returncode == 0
    done = start("loop_alpaca", *words, "--seed", "3", "--dry_run")
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_signal_before_training_is_one_line(tmp_path):
    code = """
import time
from dataclasses import dataclass
from tunebook.common import cli
@dataclass
class Args:
    output_dir: str = "run"
def main(args):
    print("ready", flush=True)
    time.sleep(60)
cli.run(main, Args)
"""
    (tmp_path / "run").mkdir()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=tmp_path) as process:
            assert process.stdout.readline() == "ready\n"
            start = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
        assert process.returncode == 128 + number and time.monotonic() - start < 10
        assert said == f"stopped by {number.name}: nothing is finished yet; run can be used by the next command\n"
