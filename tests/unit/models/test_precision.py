"""Precision: chosen from the device, overridden by --sft; fp16 scales its loss, tf32 rounds float32 products.

Run as a script, it trains two steps with the precision that it is told.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paths import TESTS

from tunebook.common import models
from tunebook.common.models import device


def pretend(monkeypatch, capability):
    """A CUDA device of that compute capability, or none. Cards before 8.0 have bfloat16 by emulation alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(major=capability and capability[0], minor=capability and capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=0: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capability)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)


@pytest.mark.parametrize(
    ("capability", "dtype", "fields", "name"),
    [
        (None, torch.float32, {"bf16": False, "fp16": False}, "no"),
        ((7, 5), torch.float16, {"bf16": False, "fp16": True}, "fp16"),
        ((8, 0), torch.bfloat16, {"bf16": True, "fp16": False}, "bf16"),
        ((9, 0), torch.bfloat16, {"bf16": True, "fp16": False}, "bf16"),
    ],
    ids=["CPU", "Turing", "Ampere", "Hopper"],
)
def test_chosen_from_the_device(monkeypatch, capability, dtype, fields, name):
    pretend(monkeypatch, capability)
    assert device.current().dtype == dtype
    assert fields.items() <= device.current().precision.items()
    assert device.current().mixed_precision == name


def train(out, fields):
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    model, tokenizer = models.load("pocket", 64)
    model = FastLanguageModel.get_peft_model(model, r=8, lora_dropout=0.0, use_gradient_checkpointing=False)
    ids = torch.randint(5, 1000, (8, 40), generator=torch.Generator().manual_seed(0)).tolist()
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        args=SFTConfig(
            output_dir=str(Path(out).parent),
            packing=False,
            padding_free=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            per_device_train_batch_size=4,
            gradient_checkpointing=False,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            **{**device.current().precision, **fields},
        ),
    )
    models.train_in_float32(trainer.model)
    seen = set()
    trainer.model.get_input_embeddings().register_forward_hook(
        lambda module, given, output: seen.add(str(torch.get_autocast_dtype("cpu")) * torch.is_autocast_enabled("cpu"))
    )
    trainer.train()
    found = {
        "autocast": sorted(seen),
        "trained": sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}),
        "loss": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def trained(tmp_path, *settings):
    """What was seen of a run with each of these settings, one after the other in a process of their own."""
    outs = [tmp_path / f"{number}.json" for number in range(len(settings))]
    environment = {**os.environ, "UNSLOTH_DISABLE_STATISTICS": "1", "PYTHONPATH": str(TESTS)}
    environment |= {"UNSLOTH_CPU_BF16": "1"}  # also where bfloat16 is emulated, and slow
    command = [sys.executable, __file__, str(tmp_path), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.recipe
@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_bf16_on_a_cpu_where_it_is_asked_for(tmp_path):
    """The forward computes in bfloat16; the weights that train, and what the optimiser goes on from, do not."""
    plain, asked = trained(tmp_path, {}, {"bf16": True})
    assert plain["autocast"] == [""] and asked["autocast"] == ["torch.bfloat16"]
    assert plain["trained"] == asked["trained"] == ["torch.float32"]
    for one, other in zip(plain["loss"], asked["loss"], strict=True):
        assert one != other and math.isclose(one, other, rel_tol=0.01)


def tiny(folder, **fields):
    """A transformers Trainer over a small random Llama with float32 weights, on the device that there is."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    ids = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(0)).tolist()
    return Trainer(
        model=LlamaForCausalLM(config).float(),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=8,
            logging_steps=1,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            **fields,
        ),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_fp16_scales_its_loss(tmp_path, monkeypatch):
    pretend(monkeypatch, (7, 5))
    fields = {name: device.current().precision[name] for name in ("bf16", "fp16")}
    monkeypatch.undo()
    assert fields == {"bf16": False, "fp16": True}
    trainer = tiny(tmp_path, **fields)
    scaler = trainer.accelerator.scaler
    assert scaler is not None and scaler.is_enabled()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert scaler.get_scale() > 1 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_tf32_rounds_products(tmp_path):
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no tf32")
    from transformers.utils.import_utils import enable_tf32

    enable_tf32.cache_clear()  # it does nothing for a value that it has seen before in the process
    before, errors = torch.backends.fp32_precision, {}
    a, b = torch.randn(2, 512, 512, dtype=torch.float64, device="cuda")
    try:
        for asked in (True, False):
            tiny(tmp_path, tf32=asked)  # making the arguments sets it for the process
            errors[asked] = ((a.float() @ b.float()).double() - a @ b).abs().max().item()
    finally:
        torch.backends.fp32_precision = before
    assert errors[False] < 1e-3 < errors[True] < 0.5


if __name__ == "__main__":
    for number, fields in enumerate(json.loads(sys.argv[2])):
        train(Path(sys.argv[1]) / f"{number}.json", fields)
