"""Every recipe, stopped by signals at three steps of one run: each time a checkpoint of that step, and the same end."""

import signal

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
