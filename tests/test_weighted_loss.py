"""Weights in every loss: weight 2 is the row twice, however rows are split, packed or dealt to processes.

Run as a script, it trains a small model in each way, each in a fork of its own, and writes the weights that came out.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import forked
import pytest
from paths import ROOT

WEIGHTS = (2, 1, 3, 1, 1, 4)
WAYS = {  # rows a device takes at once, accumulation, processes
    "whole": (6, 1, 1),
    "accumulated": (2, 3, 1),
    "processes": (1, 3, 2),
    "packed": (6, 1, 1),
    "small weights": (6, 1, 1),
    "loop": (3, 2, 1),
    "plain": (6, 1, 1),
    "twice": (12, 1, 1),
    "distilled": (2, 3, 1),
    "distilled twice": (12, 1, 1),
}


def rows(way):
    """Rows of 6 to 30 tokens, of which a part trains: with weights, or as often as these say."""
    import torch
    from datasets import Dataset

    generator, found = torch.Generator().manual_seed(1), []
    for weight in WEIGHTS:
        length = int(torch.randint(6, 31, (1,), generator=generator))
        ids = torch.randint(5, 200, (length,), generator=generator).tolist()
        start = int(torch.randint(1, length - 1, (1,), generator=generator))
        row = {"input_ids": ids, "labels": [-100] * start + ids[start:]}
        if "twice" in way:
            found += [row] * weight
        elif way == "plain":
            found.append(row)
        else:
            weight = weight / 1000 if way == "small weights" else weight
            per_token = [] if weight == 1 else [0.0] * start + [float(weight)] * (length - start)
            found.append(row | {"loss_weights": per_token})
    return Dataset.from_list(found)


def small(seed):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = dict(vocab_size=3072, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="sdpa"))


def trainer_of(way, folder):
    """An SFTTrainer as recipes make it, on all rows in each step."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from tunebook.common import distillation
    from tunebook.common.batching import collator, packing
    from tunebook.common.distillation.losses import DistillationLoss
    from tunebook.common.pocket import FOLDER
    from tunebook.common.training import weighted_loss

    size, accumulation, processes = WAYS[way]
    data, model, teacher = rows(way), small(0), None

    class Distiller(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return distillation.loss(self, model, inputs, num_items_in_batch, teacher, DistillationLoss(0.5, 2.0))

    if "distilled" in way:
        teacher = distillation.Teacher(small(1), "teacher")
        distillation.prepare(model, "student")
    trainer = (Distiller if teacher else SFTTrainer)(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(FOLDER / "model"),
        train_dataset=packing.pack_dataset(data, 64) if way == "packed" else data,
        eval_dataset=packing.pack_dataset(data, 64) if way == "packed" else rows("plain" if "twice" in way else way),
        data_collator=collator.PackedCollator(0) if way == "packed" else None,
        args=SFTConfig(
            output_dir=str(folder), max_length=64, packing=False, padding_free=False, eval_strategy="no",
            dataset_kwargs={"skip_prepare_dataset": True}, per_device_train_batch_size=size, max_steps=3,
            gradient_accumulation_steps=accumulation, gradient_checkpointing=False, lr_scheduler_type="constant",
            optim="sgd", learning_rate=0.5, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True,
            bf16=False, fp16=False, ddp_backend="gloo" if processes > 1 else None,
        ),
    )  # fmt: skip
    weighted_loss.pass_weights(trainer) if teacher else weighted_loss.weigh_loss(trainer)
    return trainer


def loop():
    """Three steps of the plain loop's own functions: the held-out loss before them, theirs, and the model."""
    import importlib.util

    import torch
    from accelerate import Accelerator
    from transformers import AutoTokenizer
    from trl.trainer import add_fused_lm_head

    from tunebook.common.batching import dataloader
    from tunebook.common.pocket import FOLDER
    from tunebook.common.training import loop

    spec = importlib.util.spec_from_file_location("loop", ROOT / "recipes" / "loop_alpaca.py")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["loop"] = recipe
    spec.loader.exec_module(recipe)
    model, accelerator = small(0), Accelerator(cpu=True)
    add_fused_lm_head(model)
    data, tokenizer = rows("loop"), AutoTokenizer.from_pretrained(FOLDER / "model")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    loader = dataloader.loader(data, tokenizer, WAYS["loop"][0])
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    before, losses = loop.mean_loss(accelerator, model, loader, recipe.loss_of), []
    for _ in range(3):
        parts = list(loader)
        items = sum(map(loop.total_weight, parts))
        losses.append(recipe.train_step(accelerator, model, optimizer, schedule, parts, items)["loss"])
    return before, losses, model


def learn(way, out):
    """Train, and write losses, weights and the held-out loss before training."""
    import torch

    from tunebook.common.training import callbacks

    if way == "loop":
        before, losses, model = loop()
    else:
        trainer = trainer_of(way, out / way)
        callbacks.mean_over(trainer, callbacks.tokens_of)
        before = trainer.evaluate()["eval_loss"]
        trainer.model._is_accelerate_prepared = False  # as callbacks.evaluate does
        trainer.train()
        losses, model = [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer.model
    if int(os.environ.get("RANK", "0")) == 0:
        flat = torch.cat([value.detach().flatten() for value in model.parameters()])
        torch.save({"losses": losses, "before": before, "weights": flat}, out / f"{way}.pt")


def in_forks(way, out):
    """`learn` in as many forks as the way has processes: the libraries are imported once."""
    processes = WAYS[way][2]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        if (child := os.fork()) == 0:
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in ranks.items()})
                os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
            code = 1
            try:
                learn(way, out)
                code = 0
            except Exception:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(out):
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import SFTConfig, SFTTrainer  # noqa: F401  once, for all forks

    codes = {way: in_forks(way, Path(out)) for way in WAYS}
    print(json.dumps(codes))
    sys.exit(any(code for found in codes.values() for code in found))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    import torch

    out = tmp_path_factory.mktemp("learnt")
    done = forked.run(__file__, out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return {way: torch.load(out / f"{way}.pt") for way in WAYS}


@pytest.mark.recipe
@pytest.mark.parametrize(
    "way, other",
    [("twice", way) for way in ("whole", "accumulated", "processes", "packed", "small weights", "loop")]
    + [("distilled twice", "distilled")],
)
def test_weight_2_is_the_row_twice(learnt, way, other):
    """Rows twice and three times train by the trainer's own loss, which knows no weights."""
    expected, found = learnt[way], learnt[other]
    moved = (expected["weights"] - learnt["plain"]["weights"]).abs().max().item()
    worst = (expected["weights"] - found["weights"]).abs().max().item()
    print(f"{other}: differs by {worst:.1e}; without weights by {moved:.1e}")
    assert worst < 2e-6 < 1e-3 < moved
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)


@pytest.mark.recipe
def test_a_held_out_loss_is_of_all_tokens_alike(learnt):
    for way in ("whole", "loop", "packed", "small weights"):
        assert learnt[way]["before"] == pytest.approx(learnt["plain"]["before"], rel=1e-5)


if __name__ == "__main__":
    main(sys.argv[1])
