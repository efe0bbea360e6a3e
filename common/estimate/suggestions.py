"""What would fit where a run does not: fewer rows at once, shorter rows, recomputed activations, a base in 4 bits."""

import dataclasses
from typing import Any

from tunebook.common.estimate import arithmetic, trainer_steps
from tunebook.common.estimate.arithmetic import MemoryModel
from tunebook.common.estimate.probe import StepFunctions
from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.estimate.trial import OutOfMemory, catch_oom
from tunebook.common.models import model_bytes
from tunebook.common.tokens.lengths import lengths_of

RANK = 16  # of the adapters that are put on a base in 4 bits, where all of it would train


def suggestions(run: StepFunctions, memory: MemoryModel, schedule: BatchSchedule, limit: int, step: int) -> list[str]:
    """Ways in words that fit into the limit by arithmetic.

    Args:
        step: rows of a step of one process, which a smaller batch has to divide.
    """
    (rows, width), joined, found = schedule.shape, schedule.joined, []
    if memory.activations is None:
        return ["a smaller --per_device_train_batch_size, which --find_batch_size finds, or a shorter --max_length"]
    most, length = arithmetic.largest_batch(memory, schedule, limit)
    if 0 < most // schedule.sequences < rows * joined // schedule.sequences:
        size = next(size for size in range(most // schedule.sequences, 0, -1) if step % size == 0)
        flags = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {step // size}"
        found.append(f"{flags}, which --find_batch_size does by itself")
    if 0 < length < width // joined:
        lost = int((lengths_of(schedule.dataset) > length).sum())
        if 2 * lost < len(schedule.dataset):
            found.append(f"--max_length {length}, which loses {lost} of {len(schedule.dataset)} rows")
    others = {
        "--set gradient_checkpointing=true, which recomputes activations": recomputed(run, memory, schedule),
        "a base in 4 bits with adapters (QLoRA)": in_four_bits(trainer_steps.unwrapped(run.model), memory),
    }
    for words, other in others.items():
        if other is not None and other.peak(rows, width) <= limit:
            found.append(words)
    return found


def recomputed(run: StepFunctions, memory: MemoryModel, schedule: BatchSchedule) -> MemoryModel | None:
    """The memory with activation checkpointing; None where it is on, or where not even small steps fit."""
    from tunebook.common.estimate import activations

    model = trainer_steps.unwrapped(run.model)
    if any(method.peft_type == "PREFIX_TUNING" for method in vars(model).get("peft_config", {}).values()):
        return None  # transformers leaves prefixes out where it recomputes a layer
    with trainer_steps.gradient_checkpointing(model) as turned:
        if not turned:
            return None
        try:
            batch = run.collate(schedule.longest)
            profile = catch_oom(model, activations.profile_batch, model, run.step, batch)
        except (OutOfMemory, activations.Unpredictable):
            return None
    return dataclasses.replace(memory, activations=profile)


def in_four_bits(model: Any, memory: MemoryModel) -> MemoryModel | None:
    """The memory, about, with all linear layers but the head in NF4 and what trains an adapter; None where they are."""
    import torch

    head, adapters, linear = model.get_output_embeddings(), 0, []
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head and min(module.weight.shape) > 256:
            linear.append(module.weight)
            adapters += RANK * sum(module.weight.shape)
    if not linear:
        return None
    less = sum(weight.nbytes - model_bytes.nf4(weight.numel()) for weight in linear)
    profile, gradients, optimizer = memory.activations, memory.gradients, memory.optimizer
    if gradients > 4 * adapters:  # all of it trained
        profile = dataclasses.replace(profile, sizes=profile.sizes * ~profile.grown[:, None])
        gradients, optimizer = 4 * adapters, 8 * adapters
    return dataclasses.replace(
        memory,
        weights=memory.weights - less,
        gradients=gradients,
        optimizer=optimizer,
        activations=profile,
        update=min(memory.update, gradients),
        buckets=min(memory.buckets, gradients),
    )
