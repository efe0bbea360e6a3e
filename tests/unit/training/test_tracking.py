"""What TensorBoard, W&B and trackio have of a run that was interrupted: read back from what they wrote."""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import tracked

from tunebook.common.training import trackers, tracking

# A part of a run: from a step to another, as TrainingMetrics tells it; then the report, where it is the last part.
PART = """
import json, pathlib, sys
import torch
from tunebook.common.training import tracking
from tunebook.common.training.metrics import TrainingMetrics
kind, folder, (first, last) = sys.argv[1], pathlib.Path(sys.argv[2]), map(int, sys.argv[3:5])
config = {"learning_rate": 1e-3, "dataset": ["pocket"], "note": "«é»"}
metrics = TrainingMetrics(folder / "log.jsonl")
metrics.tracker = tracking.start(kind, folder, "0123456789abcdef", first, config, {})
ones = torch.ones(2, 4, dtype=torch.long)
batch = {"input_ids": ones, "attention_mask": ones, "labels": ones}
if not first:
    metrics.evaluated(0, 3.0)
metrics.begin(first, 6)
for step in range(first + 1, last + 1):
    metrics.batches([batch], 0.0)
    metrics.step(step)
    metrics.log(step, {"loss": 1 / step, "grad_norm": 2.5, "learning_rate": 1e-3 / step, "mean_token_accuracy": 0.5,
                       "num_tokens": 8.0 * step, "word": "none"})
    if step % 3 == 0:
        metrics.log(step, {"eval_loss": 2 / step})
if last == 6:
    metrics.end()
    metrics.log(6, {"eval_loss": 9.0})  # of the best weights: no point of the curve
    report = {"scores": {"comparison": {"task": {"exact_match": {"before": 0.25, "after": 0.5}}}},
              "train": {"evaluations": [[0, 3.0]]}, "eval": {"loss": 1.5}}
    for name in tracking.FILES:
        (folder / name).write_text(json.dumps(report))
    metrics.tracker.end(6, report, folder)
"""
EXPECTED = {
    **{f"train/{name}": {step: value(step) for step in range(1, 7)} for name, value in {
        "loss": lambda step: 1 / step, "grad_norm": lambda step: 2.5, "learning_rate": lambda step: 1e-3 / step,
        "mean_token_accuracy": lambda step: 0.5, "num_tokens": lambda step: 8.0 * step}.items()},
    "eval/loss": {0: 3.0, 3: 2 / 3, 6: 1 / 3},
    "scores_before/task/exact_match": {6: 0.25}, "scores_after/task/exact_match": {6: 0.5},
    "scores_before/held_out/loss": {6: 3.0}, "scores_after/held_out/loss": {6: 1.5},
}  # fmt: skip
MEASURED = ("train/trained_tokens_per_second", "train/peak_bytes")


def part(kind, folder, first, last):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO"))}
    words = [sys.executable, "-c", PART, kind, str(folder), str(first), str(last), "hf_abcdefghijklmnopqrstuvwxyz"]
    done = subprocess.run(words, capture_output=True, text=True, env={**env, "WANDB_MODE": "offline"}, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("kind", tracking.KINDS)
def test_one_run_with_the_same_scalars_arguments_and_report(kind, tmp_path):
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f'{kind} is not installed: pip install "tunebook[{kind}]"')
    folder = tmp_path / "my_run"
    folder.mkdir()
    part(kind, folder, 0, 5)  # killed; its last checkpoint is of step 3
    part(kind, folder, 3, 6)
    found = tracked.READERS[kind](folder)
    assert found.runs == 1 and "my_run" in str(found.names)
    assert found.scalars.keys() == {*EXPECTED, *MEASURED}
    for name, values in EXPECTED.items():
        assert found.scalars[name].keys() == values.keys(), name
        assert all(math.isclose(found.scalars[name][step], value, rel_tol=1e-6) for step, value in values.items()), name
    for name in MEASURED:
        assert found.scalars[name].keys() == set(range(1, 7)) and min(found.scalars[name].values()) > 0
    assert found.config["learning_rate"] == 1e-3 and found.config["note"] == "«é»"
    assert "report.json" in found.artifacts and (kind == "tensorboard" or "report.html" in found.artifacts)
    assert {path.name for path in tmp_path.iterdir()} == {"my_run"}
    for file in folder.rglob("*"):  # nor in a description of the command
        assert not file.is_file() or b"hf_abcdefghijklmnopqrstuvwxyz" not in file.read_bytes(), file


def test_scalars_have_the_names_that_transformers_gives_them():
    logged = ("loss", "eval_loss", "eval_mean_token_accuracy", "num_tokens", "train_loss")
    names = ["train/loss", "eval/loss", "eval/mean_token_accuracy", "train/num_tokens", "train/train_loss"]
    assert [tracking.named(name) for name in logged] == names


def test_the_folders_of_trackers_are_removed_with_a_run_that_is_overwritten():
    from tunebook.common.run_folder import output_dir

    assert set(trackers.FOLDERS) <= set(output_dir.WRITTEN)


def test_records_of_leveldb_over_several_blocks():
    long = bytes(range(256)) * 300
    data, at = bytearray(tracked.HEADER), tracked.HEADER
    pieces = [b"short", long, b"", b"last"]
    for whole in pieces:
        left, begun = whole, False
        while True:
            room = tracked.BLOCK - at % tracked.BLOCK - tracked.HEADER
            if room < 0:
                data += bytes(room + tracked.HEADER)
                at = len(data)
                continue
            piece, left = left[:room], left[room:]
            kind = (3 if begun else 2) if left else (4 if begun else 1)
            data += bytes(4) + len(piece).to_bytes(2, "little") + bytes([kind]) + piece
            at, begun = len(data), True
            if not left:
                break
    assert list(tracked.records(bytes(data))) == pieces
