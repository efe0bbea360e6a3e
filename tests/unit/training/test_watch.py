"""The watch over a training: what is no number ends it, what looks wrong is told once, and what is usual is not."""

import json
import math
import random
import re

import few
import forked
import pytest
from paths import ROOT

from tunebook.common.errors import CheckFailed
from tunebook.common.training import watch
from tunebook.common.training.watch import TrainingWatch

NAN, INF = math.nan, math.inf
GIB = 1 << 30


def told(losses, norms=None, held=None, last=1000, limit=100 * GIB, every=1):
    """Warnings over the logs of a run, by their first words."""
    taken = iter(held or [GIB] * len(losses))
    one, found = TrainingWatch(lambda: next(taken), lambda: limit), []
    for place, loss in enumerate(losses):
        values = {"loss": loss, "grad_norm": (norms or [1.0] * len(losses))[place], "learning_rate": 0.01}
        found += one.look(place * every + 1, values, last=last)
    return found


def ends(values, skipped=False, one=None):
    """Which of its values ends a run that logs them; "" for none."""
    try:
        list((one or TrainingWatch(lambda: 1, lambda: 2)).look(3, values, skipped))
    except CheckFailed as error:
        return str(error).split()[0]
    return ""


def test_a_loss_or_norm_that_is_no_number_ends_a_run():
    for skipped in (False, True):
        assert ends({"loss": NAN}, skipped) == "loss"
        assert ends({"loss": INF, "grad_norm": 1.0}, skipped) == "loss"
        assert ends({"eval_loss": NAN}, skipped) == "eval_loss"
        assert ends({"loss": 1.0, "grad_norm": 1.0}, skipped) == ""
    assert ends({"loss": 1.0, "grad_norm": NAN}) == "grad_norm"


def test_float16_may_look_for_its_scale_and_not_for_ever():
    """Sixteen halvings take 65,536 to 1; an evaluation between two of them does not begin the count anew."""
    one, over = TrainingWatch(lambda: 1, lambda: 2), {"loss": 1.0, "grad_norm": INF}
    for _ in range(watch.HALVINGS):
        assert ends(over, True, one) == ""
        assert ends({"eval_loss": 1.0}, True, one) == ""
    assert ends(over, True, one) == "grad_norm"
    assert ends({"loss": 1.0, "grad_norm": 1.0}, False, one) == ""
    assert ends(over, True, one) == ""


def test_a_loss_that_explodes_is_told_once():
    usual = [1.0 + 0.2 * math.sin(step) for step in range(30)]
    (text,) = told([*usual, *[9.0] * 20])
    assert "step 33: the loss is 9, where the median was" in text and "try half of --learning_rate" in text
    assert told([*usual, 9.0, 9.0, *usual]) == []  # hard batches
    assert told([0.001] * 30 + [0.01] * 10) == []  # ten times next to nothing
    assert told([9.0] * 5 + [9.0 * 0.9**step for step in range(100)]) == []


def test_gradients_that_vanish_are_told_once():
    (text,) = told([1.0] * 40, norms=[1.0] * 10 + [0.0] * 30)
    assert "step 20: the gradient norm has been 0 for 10 logs: nothing is learned any more" in text
    assert told([1.0] * 40, norms=([0.0] * 9 + [1.0]) * 4) == []
    assert told([1e-4] * 40, norms=[1e-5] * 40) == []


def test_memory_that_grows_is_told_once():
    """By a fifth: at once. By less: where it is used up before the end."""
    (text,) = told([1.0] * 60, held=[GIB + place * GIB // 50 for place in range(60)])
    assert "memory grows, by 20.5 MiB a step" in text
    slow = [10 * GIB + place * GIB // 50 for place in range(60)]
    assert told([1.0] * 60, held=slow) == []
    (text,) = told([1.0] * 60, held=slow, limit=13 * GIB)
    assert re.search(r"used up after (\d+) more steps", text)


def test_memory_that_settles_or_varies_is_not_told():
    generator = random.Random(0)
    for seed in range(30):
        generator.seed(seed)
        noise = [4 * GIB + generator.randrange(GIB // 4) for _ in range(100)]
        assert told([1.0] * 100, held=noise, last=10**6, limit=8 * GIB) == [], seed
    filling = [GIB + min(place, 10) * GIB // 10 for place in range(100)]
    assert told([1.0] * 100, held=filling, last=10**6, limit=4 * GIB) == []


@pytest.mark.recipe
@pytest.mark.parametrize("recipe", ["loop_alpaca", "lora_alpaca"])
def test_a_run_that_diverges_ends_and_keeps_its_checkpoints(recipe, tmp_path):
    """A loss that is no number from step 7 on, with checkpoints at 4 and 8 or 3, 6 and 9."""
    rows = few.rows(tmp_path / "rows", train=32, others=8)
    flags = ["--dataset", rows, "--output_dir", tmp_path / "run", "--eval_suite", "none", "--max_steps", "12",
             "--per_device_train_batch_size", "4"]  # fmt: skip
    flags += ["--set", "save_steps=4", "eval_steps=4", "logging_steps=1"] if recipe == "lora_alpaca" else []
    code = f"""
import runpy, sys
from tunebook.common.training import watch
look = watch.TrainingWatch.look
def broken(self, step, values, *more, **others):
    late = step >= 7 and "loss" in values
    return look(self, step, {{**values, "loss": float("nan")}} if late else values, *more, **others)
watch.TrainingWatch.look = broken
sys.argv = [{str(ROOT / "recipes" / recipe) + ".py"!r}, *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = forked.run("-c", code, *flags)
    assert done.returncode == 1, done.stderr[-2000:]
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("check failed"))
    assert "loss is nan at step 7: training has diverged" in line and "--learning_rate" in line
    assert "Traceback" not in done.stderr
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == (["checkpoint-4"] if recipe == "lora_alpaca" else ["checkpoint-3", "checkpoint-6"])
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 7
