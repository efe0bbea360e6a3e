"""Two processes (gloo) make what one makes with as many rows a step: every recipe, and resumed with another number."""

import json
import shutil

import few
import forked
import pytest
from paths import ROOT

KINDS = {"dpo_pairs": "pairs", "chat_sharegpt": "chat"}
# Plain gradient descent, see test_processes.py; these are the rates that move and do not diverge.
RATES = dict.fromkeys(["sft_alpaca", "dpo_pairs", "distill_alpaca", "distill_cached_alpaca"], "0.05")
RATES["prefix_alpaca"] = "0.01"
LOOP = "loop_alpaca"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "pretrain_pocket")
CHECKPOINTS = ["save_steps=4", "eval_steps=4", "save_total_limit=9", "load_best_model_at_end=false"]
NONE = ["save_strategy=no", "eval_strategy=no", "load_best_model_at_end=false"]

pytestmark = pytest.mark.recipe


def run(processes, recipe, folder, rows, steps, *settings):
    """Train with 8 rows a step (packed: 2 bins), in one process or two."""
    at_once = str((2 if recipe == "packed_alpaca" else 8) // processes)
    words = ["--dataset", rows, "--output_dir", folder, "--eval_suite", "none", "--max_steps", str(steps)]
    words += ["--per_device_train_batch_size", at_once]
    if recipe != LOOP:
        if recipe == "distill_on_policy":  # greedy: samples are another draw in other processes
            settings = ["top_k=1", *(word for word in settings if word.startswith("save"))]
        words += ["--learning_rate", RATES.get(recipe, "0.3"), "--set", "optim=sgd", "logging_steps=1", *settings]
    script = ROOT / "recipes" / f"{recipe}.py"
    done = forked.run(script, *words) if processes == 1 else forked.launch(2, script, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def apart(one, two):
    """Largest differences of a loss and of a weight, and how far the losses went."""
    from safetensors.torch import load_file

    losses = [
        [loss for _, loss in json.loads((place / "report.json").read_text())["train"]["loss"]] for place in (one, two)
    ]
    assert len(losses[0]) == len(losses[1])
    files = [sorted([*place.glob("adapter/*.safetensors"), *place.glob("model/*.safetensors")]) for place in (one, two)]
    assert files[0] and [path.name for path in files[0]] == [path.name for path in files[1]]
    worst = 0.0
    for pair in zip(*files, strict=True):
        a, b = map(load_file, pair)
        assert a.keys() == b.keys()
        worst = max(worst, *((a[name] - b[name]).abs().max().item() for name in a))
    return max(abs(a - b) for a, b in zip(*losses, strict=True)), worst, max(losses[0]) - min(losses[0])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_equal_one(tmp_path, recipe):
    rows = few.rows(tmp_path / "rows", KINDS.get(recipe, ""), train=160 if recipe == "packed_alpaca" else 64, others=8)
    run(1, recipe, tmp_path / "one", rows, 6, *NONE)
    done = run(2, recipe, tmp_path / "two", rows, 6, *NONE)
    loss, weight, range_of_losses = apart(tmp_path / "one", tmp_path / "two")
    print(f"{recipe}: losses {loss:.1e}, weights {weight:.1e}")
    assert loss < 1e-5 < 1e-2 < range_of_losses and weight < 1e-4
    assert done.stdout.count("report:") == 1
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["measured"]["trained_tokens"] == reports[1]["measured"]["trained_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["lora_alpaca", "dpo_pairs", "distill_cached_alpaca", LOOP])
@pytest.mark.parametrize("processes", [(2, 1), (1, 2)], ids=["2 to 1", "1 to 2"])
def test_resumed_with_another_number_of_processes(tmp_path, recipe, processes):
    """From a step in the second epoch, to the losses and weights of the run that was not stopped."""
    first, second = processes
    rows = few.rows(tmp_path / "rows", KINDS.get(recipe, ""), train=64, others=8)
    run(first, recipe, tmp_path / "whole", rows, 20, *CHECKPOINTS)
    stopped = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for name in ("report.json", "report.html"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "adapter")
    kept = stopped / ("checkpoint-16" if recipe == LOOP else "checkpoint-12")
    for path in stopped.glob("checkpoint-*"):
        if path != kept:
            shutil.rmtree(path)
    done = run(second, recipe, stopped, rows, 20, *CHECKPOINTS)
    assert f"resuming from {kept}" in done.stdout
    loss, weight, range_of_losses = apart(tmp_path / "whole", stopped)
    print(f"{recipe} {first} to {second}: losses {loss:.1e}, weights {weight:.1e}")
    assert loss < 1e-5 < 1e-2 < range_of_losses and weight < 1e-4
