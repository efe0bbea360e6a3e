"""Every recipe, killed while it trains, saves and writes its result, up to three times: the same run in the end."""

import json
import random

import few
import forked
import killed
import pytest
from paths import ROOT, WHOLE

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
KINDS = {"dpo_pairs": "pairs", "chat_sharegpt": "chat"}
# Moments of one run each, of 18 steps in three epochs; the numbers are of steps or saves.
KILLS = [
    [("step", 13)],
    [("save", 3)],
    [("step", 7), ("save", 1), ("step", 17)],
]
if WHOLE:
    KILLS += [[("step", 1)], [("save", 1)], [("result", 0)]]
pytestmark = [pytest.mark.slow, pytest.mark.recipe]


def flags(recipe, folder):
    rows = few.rows(folder / "rows", KINDS.get(recipe, ""), 27 if recipe == "packed_alpaca" else 24, 8)
    words = ["--dataset", rows, "--eval_suite", "none", "--num_train_epochs", "3", "--per_device_train_batch_size", "4"]
    if recipe == "packed_alpaca":
        words[-1] = "1"
    if recipe == "loop_alpaca":  # it saves every fifth, and has no --set
        return words
    evaluates = [] if recipe == "distill_on_policy" else ["eval_steps=4"]
    return [*words, "--set", "save_steps=4", "logging_steps=3", *evaluates]  # a save between two logged steps


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "pretrain_pocket"])
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, recipe):
    script, words = ROOT / "recipes" / f"{recipe}.py", flags(recipe, tmp_path)
    whole = tmp_path / "whole"
    done = forked.run(script, "--output_dir", whole, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, moments in enumerate(KILLS):
        folder = tmp_path / f"killed {number}"
        kills = sum(killed.at(*moment, folder, script, *words) for moment in moments)
        assert kills
        again = forked.run(script, "--output_dir", folder, *words)
        assert again.returncode in (0, 2), again.stderr[-3000:]  # 2: it had ended before the last kill
        killed.same_account(whole, folder, kills)


def test_killed_pretraining_ends_as_if_it_had_not_been(tmp_path):
    script = ROOT / "recipes" / "pretrain_pocket.py"
    words = ["--max_steps", "24", "--per_device_train_batch_size", "4", "--hidden_size", "64"]
    words += ["--num_attention_heads", "2"]
    done = forked.run(script, "--output_dir", tmp_path / "whole", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = json.loads((tmp_path / "whole" / "pretraining.json").read_text())
    draw = random.Random(3)
    for number in range(3):
        folder = tmp_path / f"killed {number}"
        moments = [("save", draw.randint(1, 2)) for _ in range(number + 1)]
        assert all(killed.at(*moment, folder, script, *words) for moment in moments)
        assert forked.run(script, "--output_dir", folder, *words).returncode == 0
        assert killed.weights(folder) == killed.weights(tmp_path / "whole")
        found = json.loads((folder / "pretraining.json").read_text())
        assert (found["loss"], found["held_out_loss"]) == (whole["loss"], whole["held_out_loss"])
        assert [part["how"] for part in found["run"]["parts"]] == ["killed"] * len(moments) + ["finished"]
