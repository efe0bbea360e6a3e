"""Accumulation counts tokens: a step of 4 x 1, 1 x 4 or 2 x 2 rows gives the same weights, though lengths differ.

Run as a script, it trains one way of every split, and writes what moved and by how much the splits differ.
"""

import json
import sys
from pathlib import Path

import few
import forked
import pytest
from paths import ROOT

SPLITS = ((4, 1), (1, 4), (2, 2))


def rows():
    """Rows of 4 to 120 tokens of which 1 to all train, so that a mean of means is far from the mean of all."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(48):
        length = int(torch.randint(4, 121, (1,), generator=generator))
        ids = torch.randint(5, 1000, (length,), generator=generator).tolist()
        start = int(torch.randint(0, length - 1, (1,), generator=generator))
        found.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return Dataset.from_list(found)


def train(way, optimizer, per_device, accumulation, folder, by_micro_batch=False):
    """Six steps; returns the trained weights before and after.

    Args:
        way: lora, full or packed (LoRA on packed rows).
        by_micro_batch: average each micro-batch by itself, which is wrong: no count of the whole step's tokens is
            handed to the loss.
    """
    import torch
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from tunebook.common import models
    from tunebook.common.batching import collator, packing, samplers
    from tunebook.common.models import device

    model, tokenizer = models.load("pocket", 128, full=way == "full")
    if way != "full":
        model = FastLanguageModel.get_peft_model(
            model, r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", random_state=0,
            use_gradient_checkpointing=False,
        )  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=packing.pack_dataset(rows(), 128) if way == "packed" else rows(),
        data_collator=collator.PackedCollator(0) if way == "packed" else None,
        args=SFTConfig(
            output_dir=str(folder),
            max_length=128,
            packing=False,
            padding_free=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=False,
            max_steps=6,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            **optimizer,
            **device.current().precision,
        ),
    )
    samplers.group_by_length(trainer)
    if by_micro_batch:
        fetch = trainer.get_batch_samples
        trainer.get_batch_samples = lambda *words, **named: (fetch(*words, **named)[0], None)

    def weights():
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]).clone()

    before = weights()
    trainer.train()
    return before, weights()


def main(way, optimizer, out):
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft

    folder = Path(out).parent
    before, reference = train(way, optimizer, *SPLITS[0], folder)
    moved = reference - before
    found = {"moved": moved.abs().max().item()}
    runs = {f"{per} x {steps}": train(way, optimizer, per, steps, folder)[1] for per, steps in SPLITS[1:]}
    runs["wrong"] = train(way, optimizer, 1, 4, folder, by_micro_batch=True)[1]
    for name, weights in runs.items():
        difference = weights - reference
        found[name] = {"largest": difference.abs().max().item(), "share": (difference.norm() / moved.norm()).item()}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def measured(way, tmp_path, **optimizer):
    out = tmp_path / "found.json"
    done = forked.run(__file__, way, json.dumps(optimizer), out)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    print(way, optimizer, found)
    return found


@pytest.mark.recipe
@pytest.mark.parametrize("way", ["lora", "full", "packed"])
def test_splits_of_a_step_give_the_same_weights(way, tmp_path):
    """Plain gradient descent adds gradients as they are, clipped by their norm: a wrong weight shows as it is."""
    found = measured(way, tmp_path, optim="sgd", learning_rate=0.1)
    assert found["moved"] > 1e-2
    for per_device, steps in SPLITS[1:]:
        assert found[f"{per_device} x {steps}"]["largest"] < 1e-6
    assert found["wrong"]["largest"] > 1e-3  # this test can fail


@pytest.mark.recipe
def test_splits_under_adam(tmp_path):
    """Adam divides a gradient by its own size, so that weights whose gradient is rounding alone go where rounding
    points, by up to a learning rate a step. All others stay together: the update as a whole is the same."""
    found = measured("lora", tmp_path, optim="adamw_torch", learning_rate=1e-3)
    for per_device, steps in SPLITS[1:]:
        assert found[f"{per_device} x {steps}"]["share"] < 1e-3
    assert found["wrong"]["share"] > 1e-2


@pytest.mark.slow
@pytest.mark.recipe
def test_splits_by_the_flags_of_the_loop(tmp_path):
    """The plain loop as it is run, with its AdamW; test_loop.py has its step under plain gradient descent."""
    from safetensors.torch import load_file

    losses, adapters = [], []
    for per_device, steps in SPLITS:
        folder = tmp_path / f"{per_device}x{steps}"
        sizes = ["--per_device_train_batch_size", str(per_device), "--gradient_accumulation_steps", str(steps)]
        words = [*sizes, "--max_steps", "6", "--learning_rate", "1e-3", "--eval_suite", "none"]
        words += ["--dataset", str(few.rows(tmp_path / "few"))]
        done = forked.run(ROOT / "recipes" / "loop_alpaca.py", "--output_dir", folder, *words)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
        adapters.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert len(losses[0]) == 6 and len(set(map(len, losses))) == 1
    for mine, adapter in zip(losses[1:], adapters[1:], strict=True):
        assert mine == pytest.approx(losses[0], rel=1e-5)
        for name, value in adapters[0].items():
            if "lora_B" in name:  # 0 at the start: what it holds is what was learnt
                assert (adapter[name] - value).norm() < 1e-3 * value.norm()
    print("losses differ by", [max(abs(a - b) for a, b in zip(one, losses[0], strict=True)) for one in losses])


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
