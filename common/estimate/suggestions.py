"""What would fit where a run does not: smaller batches, shorter rows, activation checkpointing, a base in 4 bits."""

import dataclasses
from typing import Any

import torch

from tunebook.common.estimate import activations, arithmetic, trainer_steps
from tunebook.common.estimate.arithmetic import MemoryModel
from tunebook.common.estimate.probe import OutOfMemory, StepFunctions, catch_oom
from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.models import model_bytes
from tunebook.common.tokens.lengths import lengths_of

RANK = 16  # of the adapters on a base in 4 bits, where all of it would train


def suggestions(run: StepFunctions, memory: MemoryModel, schedule: BatchSchedule, limit: int) -> list[str]:
    """Changes of the run that fit into the limit by arithmetic."""
    (rows, width), joined, ways = schedule.shape, schedule.joined, []
    if memory.activations is None:
        return ["a smaller --per_device_train_batch_size, which --find_batch_size finds, or a shorter --max_length"]
    most, length = arithmetic.largest_batch(memory, schedule, limit)
    step = schedule.batch_size * run.accumulation
    if 0 < most // schedule.sequences < rows * joined // schedule.sequences:
        size = next(size for size in range(most // schedule.sequences, 0, -1) if step % size == 0)
        flags = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {step // size}"
        ways.append(f"{flags}, which --find_batch_size does by itself")
    if 0 < length < width // joined:
        lost = int((lengths_of(schedule.dataset) > length).sum())
        if 2 * lost < len(schedule.dataset):
            ways.append(f"--max_length {length}, which loses {lost} of {len(schedule.dataset)} rows")
    methods = {
        "--set gradient_checkpointing=true, which recomputes activations": recomputed(run, memory, schedule),
        "a base in 4 bits with adapters (QLoRA)": in_four_bits(run.unwrapped, memory),
    }
    for name, other in methods.items():
        if other is not None and other.peak(rows, width) <= limit:
            ways.append(name)
    return ways


def recomputed(run: StepFunctions, memory: MemoryModel, schedule: BatchSchedule) -> MemoryModel | None:
    """The memory with activation checkpointing; None where it is on, or where not even small steps fit."""
    model = run.unwrapped
    if any(method.peft_type == "PREFIX_TUNING" for method in vars(model).get("peft_config", {}).values()):
        return None  # transformers leaves prefixes out where it recomputes a layer
    with trainer_steps.gradient_checkpointing(model) as turned_on:
        if not turned_on:
            return None
        try:
            batch = run.collate(schedule.longest)
            profile = catch_oom(model, activations.profile_batch, model, run.step, batch)
        except (OutOfMemory, activations.Unpredictable):
            return None
    return dataclasses.replace(memory, activations=profile)


def in_four_bits(model: Any, memory: MemoryModel) -> MemoryModel | None:
    """The approximate memory of QLoRA on all linear layers but the head; None where they are in 4 bits already."""
    head, adapters, linear = model.get_output_embeddings(), 0, []
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head and min(module.weight.shape) > 256:
            linear.append(module.weight)
            adapters += RANK * sum(module.weight.shape)
    if not linear:
        return None
    profile, gradients, optimizer = memory.activations, memory.gradients, memory.optimizer
    if gradients > 4 * adapters:  # all of it trained
        profile = dataclasses.replace(profile, sizes=profile.sizes * ~profile.grown[:, None])
        gradients, optimizer = 4 * adapters, 8 * adapters
    return dataclasses.replace(
        memory,
        weights=memory.weights - sum(weight.nbytes - model_bytes.nf4(weight.numel()) for weight in linear),
        gradients=gradients,
        optimizer=optimizer,
        activations=profile,
        update=min(memory.update, gradients),
        buckets=min(memory.buckets, gradients),
    )
