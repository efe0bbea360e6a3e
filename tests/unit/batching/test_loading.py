"""Loader settings, what a batch is said to hold, and batches copied ahead."""

import pytest
import torch
from torch.utils.data import DataLoader

from tunebook.common import distributed
from tunebook.common.batching import dataloader
from tunebook.common.batching.dataloader import describe


def padded(**more):
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    return {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": mask, "labels": labels, **more}


def test_a_batch_in_words():
    weights = torch.tensor([[0.5, float("nan")], [float("inf"), float("-inf")]], dtype=torch.bfloat16)
    lines = describe(padded(weights=weights, scale=torch.tensor(1.0), names=["a", "b"])).splitlines()
    assert lines[0] == "6 entries, 204 bytes"  # 3 x 64 + 8 + 4
    assert lines[1] == "  input_ids       2 x 4      int64     cpu  64 bytes"
    words = [" ".join(line.split()) for line in lines[4:7]]
    assert words == [
        "weights 2 x 2 bfloat16 cpu 8 bytes 1 NaN, 2 infinite",
        "scale one value float32 cpu 4 bytes 0 NaN, 0 infinite",
        "names list",
    ]
    assert lines[7:] == ["  7 of 8 positions hold tokens (87.5%)", "  4 labels train, 2 to 2 a row"]


def test_a_packed_batch_and_one_with_neither_mask_nor_positions():
    packed = {name: value for name, value in padded().items() if name != "attention_mask"}
    assert "hold tokens" not in describe(packed)
    packed["position_ids"] = torch.tensor([[0, 1, 0, 0], [0, 1, 2, 3]])  # two tokens and padding; four tokens
    assert "6 of 8 positions hold tokens (75.0%)" in describe(packed)


def pretend(monkeypatch, gpu, cores, processes=1):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(distributed, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores of a small test machine
@pytest.mark.parametrize(
    "gpu, cores, processes, workers",
    [(False, 64, 1, 0), (True, 16, 1, 4), (True, 16, 8, 1), (True, 2, 1, 1), (True, 1, 1, 0), (True, 4, 8, 0)],
)
def test_settings(monkeypatch, gpu, cores, processes, workers):
    pretend(monkeypatch, gpu, cores, processes)
    given = dataloader.workers()
    assert given["num_workers"] == workers and given["pin_memory"] == gpu
    assert dataloader.dataloader_settings() == {f"dataloader_{name}": value for name, value in given.items()}
    assert len(DataLoader([1, 2, 3], **given)) == 3  # torch refuses settings that do not go together


def test_cores_are_at_least_one():
    assert 1 <= distributed.cores() <= 4096
