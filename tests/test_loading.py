"""Loader settings, what a batch is said to hold, and batches copied ahead."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from common import loading
from common.loading import Prefetcher, describe


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
    monkeypatch.setattr(loading, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores of a small test machine
@pytest.mark.parametrize(
    "gpu, cores, processes, workers",
    [(False, 64, 1, 0), (True, 16, 1, 4), (True, 16, 8, 1), (True, 2, 1, 1), (True, 1, 1, 0), (True, 4, 8, 0)],
)
def test_settings(monkeypatch, gpu, cores, processes, workers):
    pretend(monkeypatch, gpu, cores, processes)
    given = loading.workers()
    assert given["num_workers"] == workers and given["pin_memory"] == gpu
    assert loading.settings() == {f"dataloader_{name}": value for name, value in given.items()}
    assert len(DataLoader([1, 2, 3], **given)) == 3  # torch refuses settings that do not go together


def test_cores_are_at_least_one():
    assert 1 <= loading.cores() <= 4096


def test_a_cpu_gets_the_batches_themselves():
    batches = [padded(), padded()]
    ahead = Prefetcher(batches, torch.device("cpu"))
    assert len(ahead) == 2
    for _ in range(2):  # an epoch after the other
        assert [id(batch) for batch in ahead] == [id(batch) for batch in batches]
    assert list(Prefetcher(iter([1, 2]), "cpu")) == [1, 2]


class Watched(torch.Tensor):
    """A tensor that tells what is done with it, and stays where it is."""

    events = None

    def tell(self, word):
        self.events.append((word, int(self[0])))
        return self

    def is_pinned(self):
        return False

    def pin_memory(self):
        return self.tell("pin")

    def to(self, device, non_blocking):
        assert non_blocking and device.type == "cuda"
        return self.tell("copy")

    def record_stream(self, stream):
        assert stream.name == "computes"
        self.tell("record")


def test_the_next_copy_starts_before_a_batch_is_computed(monkeypatch):
    """The order of the calls, with streams that only tell of it: what CUDA does with them is a test with a GPU."""
    events = []
    computes = SimpleNamespace(name="computes", wait_stream=lambda stream: events.append(("wait", stream.name)))

    class Entered:
        def __enter__(self):
            events.append(("on", "copies"))

        def __exit__(self, *error):
            events.append(("off", "copies"))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(name="copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Entered())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computes)
    batches = []
    for number in range(3):
        value = torch.tensor([number]).as_subclass(Watched)
        value.events = events
        batches.append({"input_ids": value, "count": number})
    for batch in Prefetcher(batches, "cuda"):
        assert batch["count"] == int(batch["input_ids"][0])
        events.append(("compute", batch["count"]))

    def copied(number):
        return [("on", "copies"), ("pin", number), ("copy", number), ("off", "copies")]

    assert events == [
        *copied(0), ("wait", "copies"), ("record", 0), *copied(1), ("compute", 0),
        ("wait", "copies"), ("record", 1), *copied(2), ("compute", 1),
        ("wait", "copies"), ("record", 2), ("compute", 2),
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_values_are_the_same_on_a_gpu():
    """Large batches, and work that outlasts a copy: a copy that is read or overwritten too early shows."""
    torch.manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 1000, (64, 65536)), "count": number} for number in range(20)]
    square = torch.randn(4096, 4096, device="cuda")
    for _ in range(2):
        sums = []
        for batch in Prefetcher(batches, "cuda"):
            assert batch["input_ids"].is_cuda
            for _ in range(10):
                square = (square @ square).tanh()
            sums.append((batch["input_ids"].sum(), batch["input_ids"][:, -1].clone(), batch["count"]))
        assert [number for _, _, number in sums] == list(range(20))
        for batch, (total, last, _) in zip(batches, sums, strict=True):
            assert int(total) == int(batch["input_ids"].sum()) and torch.equal(last.cpu(), batch["input_ids"][:, -1])
