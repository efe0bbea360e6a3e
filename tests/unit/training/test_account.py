"""The account of a run that stops: its log, its counts, and how far each part has come."""

import json

import pytest
import torch

from tunebook.common.training.metrics import TrainingMetrics

BATCH = {"input_ids": torch.ones(2, 8, dtype=torch.long), "labels": torch.tensor([[-100] * 6 + [1, 2]] * 2)}
BATCH["attention_mask"] = torch.ones_like(BATCH["input_ids"])


def steps(metrics, first, last):
    for step in range(first, last + 1):
        metrics.batches([BATCH], waited=0.0)
        metrics.step(step)
        metrics.log(step, {"loss": 1.0 / step})


def logged(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_resumed_part_goes_on_where_its_checkpoint_was_made(tmp_path):
    killed = TrainingMetrics(tmp_path / "log.jsonl")
    killed.log(0, {"eval_loss": 3.0})
    killed.begin(0, 6)
    steps(killed, 1, 3)
    saved = json.loads(json.dumps(killed.state()))
    steps(killed, 4, 5)
    (tmp_path / "log.jsonl").open("a").write('{"step": 6, "lo')  # cut off
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["to_step"], progress["trained_tokens"]) == (5, 20) and progress["peak_bytes"] > 0

    resumed, begun = TrainingMetrics(tmp_path / "log.jsonl"), []
    resumed.on_begin = lambda: begun.append((tmp_path / "log.jsonl").read_text().count("\n"))
    resumed.restore(saved)
    resumed.begin(3, 6)
    assert begun == [6] and logged(tmp_path) == [0, 1, 2, 3]
    steps(resumed, 4, 6)
    resumed.end()
    assert logged(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert [step for step, _ in resumed.loss] == [1, 2, 3, 4, 5, 6] and resumed.trained == 24
    assert resumed.seconds_to_first_step == killed.seconds_to_first_step
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["to_step"], progress["trained_tokens"]) == (6, 12)  # of this part alone
    assert progress["seconds"] == pytest.approx(resumed.seconds - saved["seconds"])
    assert resumed.measured()["peak_bytes"] == resumed.measured()["peak_bytes_of_all_processes"] == resumed.peaks[0]


def test_a_checkpoint_of_an_earlier_version_did_not_count_the_lines(tmp_path):
    killed = TrainingMetrics(tmp_path / "log.jsonl")
    killed.begin(0, 6)
    steps(killed, 1, 5)
    resumed = TrainingMetrics(tmp_path / "log.jsonl")
    resumed.restore({name: value for name, value in killed.state().items() if name != "_lines"})
    resumed.begin(3, 6)
    assert logged(tmp_path) == [1, 2, 3]
    killed.end()
    resumed.end()
