"""What a run refuses: sets that teach nothing, folders of other runs; what it goes on with."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.tokens.encoding_stats import EncodingStats
from tunebook.common.training import resuming

ARGS = {"model": "pocket", "learning_rate": 0.1, "report_to": "none"}


def checkpoint(folder, step):
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "trainer_state.json").write_text("{}")
    save_file({"weight": torch.zeros(2)}, place / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, place / name)


@pytest.mark.parametrize(
    "counts",
    [
        EncodingStats(rows=5, kept=0),
        EncodingStats(rows=5, kept=5, tokens=50, trained_tokens=0),
        EncodingStats(rows=100, kept=9, tokens=90, trained_tokens=9),
    ],
)
def test_gate_refuses(counts):
    with pytest.raises(CheckFailed, match="would train"):
        counts.require_trainable(512)


def test_gate_lets_pass():
    EncodingStats(rows=100, kept=90, tokens=900, trained_tokens=90).require_trainable(512)


def test_goes_on_from_the_last_whole_checkpoint(tmp_path):
    assert resuming.find_checkpoint(tmp_path, ARGS, resume=True, overwrite=False) is None
    for step in (9, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-200").mkdir()  # killed while it was written
    free = {**ARGS, "report_to": "wandb"}
    assert resuming.find_checkpoint(tmp_path, free, resume=True, overwrite=False) == str(tmp_path / "checkpoint-100")
    with pytest.raises(UserError, match="contains an interrupted run"):
        resuming.find_checkpoint(tmp_path, ARGS, resume=False, overwrite=False)


def test_another_run_is_not_touched(tmp_path):
    resuming.find_checkpoint(tmp_path, ARGS, resume=True, overwrite=False)
    checkpoint(tmp_path, 9)
    with pytest.raises(UserError, match=r"learning_rate 0.1 -> 0.2"):
        resuming.find_checkpoint(tmp_path, {**ARGS, "learning_rate": 0.2}, resume=True, overwrite=False)
    assert json.loads((tmp_path / "run.json").read_text())["learning_rate"] == 0.1


def test_overwrite_removes_what_runs_write_and_nothing_else(tmp_path):
    checkpoint(tmp_path, 9)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    assert resuming.find_checkpoint(tmp_path, ARGS, resume=True, overwrite=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "run.json"]
