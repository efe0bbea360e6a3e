"""Times are those of a clock that nobody sets."""

import time
from types import SimpleNamespace

from tunebook.common import resources
from tunebook.common.training import callbacks
from tunebook.common.training.metrics import TrainingMetrics


def test_a_clock_that_is_set_changes_no_duration(tmp_path, monkeypatch):
    before = resources.age()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= resources.age() < before + 60
    metrics = TrainingMetrics(tmp_path / "log.jsonl")
    metrics.begin(0, 2)
    metrics.step(1)
    metrics.end()
    assert 0 <= metrics.seconds < 60 and before <= metrics.seconds_to_first_step < before + 60


def test_what_the_trainer_times_is_left_out():
    kept = []
    trainer = SimpleNamespace(log=lambda logs: kept.append(logs))
    callbacks.without_wall_clock(trainer)
    trainer.log({"eval_loss": 1.0, "eval_runtime": -3.0, "eval_samples_per_second": -2.0}, 7.0)
    assert kept == [{"eval_loss": 1.0}]
