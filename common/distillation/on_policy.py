"""On-policy distillation: prompts of encoded rows, batches of the student's answers, forecast and metrics."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from tunebook.common import models
from tunebook.common.batching import dataloader, samplers
from tunebook.common.distillation import losses, student
from tunebook.common.estimate import forecast, probe, trainer_steps
from tunebook.common.estimate.probe import StepFunctions
from tunebook.common.format import duration
from tunebook.common.tokens import lengths
from tunebook.common.tokens.lengths import IGNORE_INDEX
from tunebook.common.training import checks, loop
from tunebook.common.training.callbacks import Measure, PrinterCallback, ProgressCallback, without_wall_clock
from tunebook.common.training.metrics import TrainingMetrics


def taking_ids(trainer: Any) -> type:
    """TRL's DistillationTrainer for prompts that are ids already, in which no text of the data is control. Their order
    in an epoch is known by its number, for a run that is resumed there."""

    class Trainer(trainer):
        def _tokenize_prompts(self, prompts: Any) -> tuple[Any, None, dict]:
            return prompts, None, {}

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            sampler.set_epoch = lambda epoch: draw_orders(sampler, epoch)
            return sampler

    return Trainer


def draw_orders(sampler: Any, count: int) -> None:
    """Bring TRL's sampler (1.15) to where it is after `count` epochs; it counts none and draws an order for each."""
    if sampler.shuffle:
        sampler.generator.manual_seed(sampler.seed)
        for _ in range(count):
            torch.randperm(sampler.num_samples, generator=sampler.generator)


def prompts(rows: Any) -> Any:
    """A datasets.Dataset with `prompt`: the ids of each encoded row before its first label that trains."""
    import datasets

    def before(row: dict[str, Any]) -> list[int]:
        first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        return row["input_ids"][:first]

    return datasets.Dataset.from_list([{"prompt": before(row)} for row in rows])


def batch_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompts (padded left) and answers (padded right) of TRL's DistillationTrainer as one batch, whose labels are the
    answers' tokens."""
    ids_BT, mask_BT = (torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask"))
    labels_BT = ids_BT.masked_fill(mask_BT == 0, IGNORE_INDEX)
    labels_BT[:, : inputs["prompt_ids"].shape[1]] = IGNORE_INDEX
    positions_BT = (mask_BT.long().cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT, "labels": labels_BT}


class Watch(Measure):
    """Feeds TrainingMetrics; batches come by `answered`, when the student has answered."""

    def __init__(self, trainer: Any, metrics: TrainingMetrics):
        self.metrics, self.accelerator = metrics, trainer.accelerator

    def answered(self, batch: dict[str, torch.Tensor]) -> None:
        self.metrics.batches([batch], 0.0, self.accelerator)


def measure(trainer: Any, log_file: Path) -> Watch:
    """Metrics that the trainer feeds, in place of its own printing."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    without_wall_clock(trainer)
    watch = Watch(trainer, TrainingMetrics(log_file))
    trainer.add_callback(watch)
    return watch


def rehearse(
    trainer: Any, rows: Any, tokenizer: Any, teacher: Any, blend: losses.DistillationLoss, debug_batches: int = 0
) -> tuple[list[list], dict[str, Any]]:
    """The preview of the first batch, and the forecast: that of a loss on the reference answers, plus the time of
    answering. Adapters are in float32 afterwards; other state is restored.
    """

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        return student.loss(trainer, model, batch, None, teacher, blend)

    models.train_in_float32(trainer.model)
    args = trainer.args
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    group = size * accumulation * args.world_size
    order = samplers.LengthGroupedSampler(lengths.lengths_of(rows), group, args.seed)
    loader = trainer.accelerator.prepare(dataloader.loader(rows, tokenizer, size, order))
    preview = checks.first_batch(loader, tokenizer, debug_batches)
    count = loop.num_steps(len(rows), group, args.num_train_epochs, args.max_steps)
    with trainer_steps.preserve_trainer(trainer):
        result = forecast.forecast_loop(step_functions(trainer, loader, loss), loader, args.optim.value, count)
        answering = seconds_of_answers(trainer, size) * accumulation * count
    result.seconds = (result.seconds or 0.0) + answering
    forecast.print_once(f"forecast: {duration(answering)} more for the student's own answers")
    tokenizer.padding_side = "left"  # the prompts' side
    return preview, result.as_dict()


def step_functions(trainer: Any, loader: Any, loss: Any) -> StepFunctions:
    """Single steps on rows with their reference answers, as the trainer makes them."""

    def step(batch: dict[str, Any]) -> None:
        trainer.model.train()
        with trainer.accelerator.autocast():
            value = loss(trainer.model, batch)
        trainer.accelerator.backward(value)

    def optimizer() -> Any:
        made, trainer.optimizer = trainer.create_optimizer(), None
        return made

    accumulation = trainer.args.gradient_accumulation_steps
    plain = trainer_steps.loop_step_functions(trainer.accelerator, trainer.model, loader, loss, accumulation)
    return dataclasses.replace(plain, step=step, optimizer=optimizer)


def seconds_of_answers(trainer: Any, count: int) -> float:
    """How long the student takes to answer the first prompts."""
    prompts = [trainer.train_dataset[index] for index in range(min(count, len(trainer.train_dataset)))]
    with probe.restore_state(trainer.model):
        start = time.monotonic()
        trainer._generate_and_score_completions(prompts)
        return time.monotonic() - start
