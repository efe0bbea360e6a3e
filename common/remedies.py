"""What would fit where a run does not: fewer rows at once, shorter rows, recomputed activations, a base in 4 bits."""

import dataclasses
from typing import Any

from common import fits, footprint, trainers
from common.attempts import OutOfMemory, guarded
from common.lengths import lengths_of
from common.rehearsal import Actor
from common.workload import Workload

RANK = 16  # of the adapters that are put on a base in 4 bits, where all of it would train


def find(actor: Actor, sizes: fits.Sizes, workload: Workload, limit: int, step: int) -> list[str]:
    """Ways in words that fit into the limit by arithmetic.

    Args:
        step: rows of a step of one process, which a smaller batch has to divide.
    """
    (rows, width), found = workload.shape, []
    if sizes.moments is None:
        return ["a smaller --per_device_train_batch_size, which --find_batch_size finds, or a shorter --max_length"]
    length, joined = fits.longest_width(sizes, rows, limit, width), workload.joined
    if joined > 1:  # fewer of them make a shorter row
        most, asked = length * joined // width, joined
    else:
        most, asked = fits.most_rows(sizes, width, limit) // workload.sequences, rows // workload.sequences
    if 0 < most < asked:
        size = fits.divisor(step, most)
        flags = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {step // size}"
        found.append(f"{flags}, which --find_batch_size does by itself")
    length, width = length // joined, width // joined
    if 0 < length < width:
        lost = int((lengths_of(workload.dataset) > length).sum())
        if 2 * lost < len(workload.dataset):
            found.append(f"--max_length {length}, which loses {lost} of {len(workload.dataset)} rows")
    others = {
        "--sft gradient_checkpointing=true, which recomputes activations": recomputed(actor, sizes, workload),
        "a base in 4 bits with adapters (QLoRA)": in_four_bits(trainers.unwrapped(actor.model), sizes),
    }
    for words, other in others.items():
        if other is not None and other.peak(rows, width) <= limit:
            found.append(words)
    return found


def recomputed(actor: Actor, sizes: fits.Sizes, workload: Workload) -> fits.Sizes | None:
    """The sizes with activation checkpointing; None where it is on, or where not even small steps fit."""
    model = trainers.unwrapped(actor.model)
    if any(method.peft_type == "PREFIX_TUNING" for method in vars(model).get("peft_config", {}).values()):
        return None  # transformers leaves prefixes out where it recomputes a layer
    with trainers.recomputed(model) as turned:
        if not turned:
            return None
        try:
            batch = actor.collate(workload.longest)
            moments = guarded(model, footprint.moments_of, model, actor.step, batch)
        except (OutOfMemory, footprint.Unknown):
            return None
    return dataclasses.replace(sizes, moments=moments)


def in_four_bits(model: Any, sizes: fits.Sizes) -> fits.Sizes | None:
    """The sizes, about, with all linear layers but the head in NF4 and what trains an adapter; None where they are."""
    import torch

    head, adapters, linear = model.get_output_embeddings(), 0, []
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head and min(module.weight.shape) > 256:
            linear.append(module.weight)
            adapters += RANK * sum(module.weight.shape)
    if not linear:
        return None
    saved = sum(weight.nbytes - footprint.four_bit(weight.numel()) for weight in linear)
    moments, gradients, optimizer = sizes.moments, sizes.gradients, sizes.optimizer
    if gradients > 4 * adapters:  # all of it trained
        moments = dataclasses.replace(moments, sizes=moments.sizes * ~moments.grown[:, None])
        gradients, optimizer = 4 * adapters, 8 * adapters
    return dataclasses.replace(
        sizes,
        weights=sizes.weights - saved,
        gradients=gradients,
        optimizer=optimizer,
        moments=moments,
        update=min(sizes.update, gradients),
        buckets=min(sizes.buckets, gradients),
    )
