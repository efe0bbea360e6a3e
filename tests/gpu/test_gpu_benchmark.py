"""benchmarks/gpu.py: its arithmetic, and a case that fails is said to have failed, with why."""

import importlib
import os
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_without_a_gpu_it_is_one_message():
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 2 and "needs a CUDA GPU; --quick" in done.stderr and "Traceback" not in done.stderr


def test_shapes_are_those_of_llama_3(gpu):
    """Parameters as Meta counts them: 1.24 and 8.03 billion."""
    total, multiplied = gpu.numbers("1B")
    assert total == multiplied == 1_235_814_400  # the embedding table is the output layer, too
    total, multiplied = gpu.numbers("8B")
    assert total == 8_030_261_248 and multiplied == total - 128_256 * 4096


def test_operations_of_a_token(gpu):
    _, n = gpu.numbers("8B")
    assert gpu.operations({"size": "8B", "method": "full", "trainable": n}) == 6 * n
    assert gpu.operations({"size": "8B", "method": "QLoRA", "trainable": 41_943_040}) == 4 * n + 6 * 41_943_040


@pytest.mark.parametrize(
    ("card", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_rates_of_known_cards(gpu, card, rate):
    assert gpu.peak_rate(card, [{"matmul_rate": 1.0}])[0] == rate


def test_an_unknown_card_is_measured(gpu):
    assert gpu.peak_rate("NVIDIA T1000", [{"matmul_rate": 2e12}, {}]) == (2e12, "a large matrix product, measured here")
    assert gpu.peak_rate("NVIDIA T1000", [{}])[0] is None


def test_what_cannot_fit_is_skipped_with_the_arithmetic(gpu):
    case = {"size": "8B", "way": "tunebook"}
    assert "8.03 billion parameters x (2 weight + 2 gradient + 8 Adam) bytes = 90 GiB of 80" in gpu.too_large(
        case, 80 * 2**30
    )
    assert not gpu.too_large(case, 141 * 2**30) and gpu.too_large({**case, "way": "TRL"}, 120 * 2**30)
    assert not gpu.too_large({"size": "1B", "way": "TRL"}, 80 * 2**30)


def test_rows_have_the_lengths_of_alpaca(gpu):
    import numpy

    rows = importlib.import_module("cases.random_llama").rows("1B", 8192)
    lengths = numpy.array([len(row) for row in rows["input_ids"]])
    trained = sum(label != -100 for row in rows["labels"] for label in row)
    assert lengths.max() <= 1024 and abs(lengths.mean() - 102.7) < 5  # 51,953 rows: mean 102.7, median 89, 99th 299
    assert abs(numpy.median(lengths) - 89) < 3 and abs(numpy.percentile(lengths, 99) - 299) < 35
    assert abs(trained / lengths.sum() - 0.549) < 0.02


def test_a_case_that_fails_says_why(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 60)
    broken = {"size": "tiny", "method": "no method", "folder": str(tmp_path), "quick": True}
    cases = [{**broken, "unknown_field": 1, "way": "TRL", "packed": False}]
    gpu.run_all(cases, tmp_path, end=float("inf"))
    assert cases[0]["status"] == "failed" and "unknown_field" in cases[0]["error"]
    child = gpu.Child(broken, tmp_path / "slow")
    child.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE)
    child.log.write_text("reading\nwaiting\n")
    assert child.end(0.2) == {"status": "failed", "error": "not done after 0 s; it wrote: waiting"}


def test_what_would_begin_late_is_not_run(gpu, tmp_path):
    cases = [{"size": "tiny", "method": "LoRA", "packed": True, "way": "TRL"}]
    gpu.run_all(cases, tmp_path, end=0)
    assert cases[0]["status"] == "not run"
