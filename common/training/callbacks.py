"""Callbacks: metrics, token-weighted evaluation, samples, and options that are refused."""

import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from tunebook.common import models
from tunebook.common.errors import UserError
from tunebook.common.generation import Samples
from tunebook.common.models import moe
from tunebook.common.process import progress, stopping
from tunebook.common.tokens.lengths import IGNORE_INDEX
from tunebook.common.training.metrics import HELD_OUT, TrainingMetrics
from tunebook.common.training.time_left import every

STATE_KEY = "tunebook.meter"  # of the metrics in a checkpoint's trainer_state.json


def tokens_of(inputs: dict[str, Any]) -> torch.Tensor:
    """float64 (): trained tokens of a batch."""
    return (inputs["labels"][:, 1:] != IGNORE_INDEX).sum().double()


def track_metrics(
    trainer: Any, log_file: Path, parts_of: Callable[[dict[str, Any]], torch.Tensor] = tokens_of
) -> TrainingMetrics:
    """Metrics that the trainer feeds, in place of its own printing.

    A held-out loss is a mean over all parts that `parts_of` counts in its batches, not over batches. It is
    cross-entropy in nats per token whatever trains: without label smoothing, the weights of DFT, and the router's loss
    of a mixture of experts. Only that of preferences is their own, by its name.
    """
    metrics = TrainingMetrics(log_file, *names(trainer))
    mean_over(trainer, parts_of)
    if trainer.label_smoother is not None:
        trainer.label_smoother = Smoother(trainer.label_smoother.epsilon)
    for callback in trainer.callback_handler.callbacks[:]:  # a bar, printed dicts, and the table of a notebook
        if isinstance(callback, (ProgressCallback, PrinterCallback)) or "Notebook" in type(callback).__name__:
            trainer.remove_callback(callback)
    without_wall_clock(trainer)
    trainer.add_callback(Measure(trainer, metrics))
    return metrics


def without_wall_clock(trainer: Any) -> None:
    """Leave out of what the trainer logs what it has timed: by a clock that may be set, and for this part of a run
    alone. TrainingMetrics has the times of the run."""
    own = trainer.log

    def log(logs: dict[str, Any], start_time: float | None = None) -> None:
        for name in [name for name in logs if name.endswith(("_runtime", "_per_second", "_preparation_time"))]:
            del logs[name]
        own(logs)  # which times nothing without start_time

    trainer.log = log


def names(trainer: Any) -> tuple[str, str]:
    """The names of the training loss and of the held-out loss of one of TRL's trainers."""
    args = trainer.args
    kind, held_out = getattr(args, "loss_type", "nll"), HELD_OUT
    if isinstance(kind, list):
        training = f"DPO loss ({' + '.join(kind)})"
        held_out = f"held-out {training}"
    else:
        training = "DFT loss" if kind == "dft" else "cross-entropy"
        if trainer.label_smoother is not None:
            training += f" with label smoothing of {args.label_smoothing_factor:g}"
    if vars(trainer).get("aux_loss_enabled", False):
        training += f" + {trainer.router_aux_loss_coef:g} x the balancing loss of the router"
    return training, held_out


def evaluate(trainer: Any) -> None:
    """Take the held-out loss, where there are held-out rows."""
    if trainer.eval_dataset is None:
        return
    with models.preserve_modes(trainer.model):
        trainer.evaluate()
    if trainer.args.world_size > 1 and trainer.model_wrapped is trainer.model:
        # An evaluation before training marks the model as prepared and does not wrap it; accelerate (1.15) would leave
        # it so when training begins, and each process would train by itself.
        trainer.model._is_accelerate_prepared = False


def mean_over(trainer: Any, parts_of: Callable[[dict[str, Any]], torch.Tensor]) -> None:
    """Make the trainer's evaluation loss and TRL's metrics means over what `parts_of` counts in all held-out rows. Its
    own are means over batches, which depend on their size.

    The last batches of several processes repeat rows so that all have as many; those count twice.
    """
    predict, loop, sums = trainer.prediction_step, trainer.evaluation_loop, []
    phases: list[progress.Phase] = []
    options, loader = trainer.args, trainer.get_eval_dataloader

    def get_eval_dataloader(*args, **kwargs):
        drop_last, options.dataloader_drop_last = options.dataloader_drop_last, False  # it is about training
        try:
            return loader(*args, **kwargs)
        finally:
            options.dataloader_drop_last = drop_last

    def prediction_step(model, inputs, *args, **kwargs):
        parts = parts_of(inputs)
        with cross_entropy(trainer):
            outputs = predict(model, inputs, *args, **kwargs)
        for phase in phases:  # none, where somebody else asks for a prediction
            phase.advance()
        sums.append(torch.stack([outputs[0].double() * parts, parts]))
        return outputs

    def evaluation_loop(*args, metric_key_prefix="eval", **kwargs):
        sums.clear()
        batches = len(args[0]) if args and isinstance(args[0], Sized) else None  # of its data loader
        with progress.start("held-out rows", batches, "batches") as phase:
            phases[:] = [phase]
            output = loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        phases.clear()
        batches_B2 = torch.stack(sums)
        loss, parts = trainer.accelerator.reduce(batches_B2.sum(0), "sum")
        output.metrics[f"{metric_key_prefix}_loss"] = (loss / parts).item()
        for values in vars(trainer).get("_metrics", {}).get("eval", {}).values():  # TRL's, one per batch
            if len(values) == len(sums):
                each_B = torch.tensor(values, dtype=torch.float64, device=batches_B2.device)
                values[:] = [(trainer.accelerator.reduce(each_B @ batches_B2[:, 1], "sum") / parts).item()]
        return output

    trainer.prediction_step, trainer.evaluation_loop = prediction_step, evaluation_loop
    trainer.get_eval_dataloader = get_eval_dataloader


@contextmanager
def cross_entropy(trainer: Any) -> Iterator[None]:
    """Inside, the loss of SFT is plain cross-entropy, without the weights of DFT and a router's balancing loss."""
    enabled = vars(trainer).get("aux_loss_enabled", False)  # TRL's; it then asks for the logits, whatever the config
    kind = getattr(trainer.args, "loss_type", None)
    trainer.aux_loss_enabled = False
    if kind == "dft":
        trainer.args.loss_type = "nll"
    try:
        with moe.without_router_logits(trainer.model):
            yield
    finally:
        trainer.aux_loss_enabled = enabled
        if kind == "dft":
            trainer.args.loss_type = kind


class Smoother(LabelSmoother):
    """Label smoothing in training, and none in evaluation."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super().__call__(*args, **kwargs)
        return LabelSmoother(epsilon=0.0)(*args, **kwargs)


class Measure(TrainerCallback):
    """Feeds TrainingMetrics; times the fetching of batches. Checkpoints hold the metrics."""

    def __init__(self, trainer: Any, metrics: TrainingMetrics):
        self.metrics, self.accelerator = metrics, trainer.accelerator
        self._fetch, trainer.get_batch_samples = trainer.get_batch_samples, self._timed_fetch
        self._evaluate, trainer.evaluate = trainer.evaluate, self._timed_evaluation

    def _timed_evaluation(self, *args: Any, **kwargs: Any) -> Any:
        self._since = time.monotonic()
        return self._evaluate(*args, **kwargs)

    def _timed_fetch(self, *args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        samples, items = self._fetch(*args, **kwargs)
        self.metrics.batches(samples, time.monotonic() - start, self.accelerator)
        return samples, items

    def on_train_begin(self, args, state, control, **kwargs):
        callbacks: Any = state.stateful_callbacks  # a dict once the state was read from a checkpoint
        if saved := callbacks.get(STATE_KEY):
            self.metrics.restore(saved)
        self.metrics.evaluates = args.eval_strategy != "no"
        self.metrics.pauses = pauses(args, state)
        self.metrics.begin(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, optimizer: Any = None, **kwargs):
        self.metrics.step(state.global_step, optimizer.step_was_skipped)
        state.stateful_callbacks[STATE_KEY] = self.metrics.state()  # trainer_state.json is written after it

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        self.metrics.log(state.global_step, logs)
        if "eval_loss" in logs:
            self.metrics.evaluated(state.global_step, logs["eval_loss"], seconds=0.0)  # with those of on_evaluate
        state.stateful_callbacks[STATE_KEY] = self.metrics.state()

    def on_evaluate(self, args, state, control, **kwargs):
        self.metrics.evaluating += time.monotonic() - self._since  # with the answers that are shown
        callbacks: Any = state.stateful_callbacks
        callbacks[STATE_KEY] = self.metrics.state()

    def on_train_end(self, args, state, control, model: Any = None, **kwargs):
        self.metrics.end()
        moe.ask_for_router_logits(model, False)  # a saved config that asks for them cannot answer


def pauses(args: Any, state: Any) -> set[int]:
    """The steps after which a trainer evaluates or saves."""
    found: set[int] = set()
    for strategy, size in ((args.eval_strategy, state.eval_steps), (args.save_strategy, state.save_steps)):
        if strategy == "steps":
            found |= every(size, state.max_steps)
        elif strategy == "epoch":
            found |= every(max(1, state.max_steps // max(1, state.num_train_epochs)), state.max_steps)
    return found


class RefuseForPrompts(TrainerCallback):
    """Refuses options that do not work with virtual tokens (prompt and prefix tuning) before anything trains."""

    def on_init_end(self, args, state, control, model: Any = None, **kwargs):
        methods = getattr(model, "peft_config", {}).values()
        virtual = max((method.num_virtual_tokens for method in methods if method.is_prompt_learning), default=0)
        if virtual and moe.ask_for_router_logits(model, False) is not None:
            args.router_aux_loss_coef = 0.0  # read by TRL after this; nothing of the router trains here
        if virtual and args.label_smoothing_factor:
            raise UserError(
                "--set label_smoothing_factor: label smoothing does not go with virtual tokens (prompt and prefix "
                "tuning): the trainer would compare answers with the wrong labels. Leave it out, or use lora_alpaca"
            )
        if virtual and args.neftune_noise_alpha is not None and not hasattr(model.base_model, "model"):
            raise UserError(
                "--set neftune_noise_alpha: behind virtual tokens transformers does not find the embeddings of a "
                f"{type(model.base_model).__name__}. Leave it out, or use lora_alpaca"
            )
        if args.gradient_checkpointing and any(method.peft_type == "PREFIX_TUNING" for method in methods):
            raise UserError(
                "--set gradient_checkpointing: transformers leaves prefixes out where it recomputes a layer. Leave it "
                "out, or use lora_alpaca"
            )
        limit = learned_positions(model) if virtual else None
        if limit is not None and args.max_length + virtual > limit:
            raise UserError(
                f"--max_length {args.max_length}: with {virtual} virtual tokens in front of each row this model's "
                f"{limit} learnt positions leave {limit - virtual} for it; --max_length {limit - virtual}"
            )


def learned_positions(model: Any) -> int | None:
    """The number of a model's learned position embeddings (GPT-2, OPT); None where positions are computed."""
    limit, tokens = getattr(model.config, "max_position_embeddings", None), model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not tokens]
    # OPT's table begins with two unused rows.
    return limit if any(limit is not None and 0 <= table.num_embeddings - limit <= 2 for table in tables) else None


class ShowSamples(TrainerCallback):
    """Prints the answers to the first two held-out prompts at every evaluation during training."""

    def __init__(self, samples: Samples):
        self.samples, self.training = samples, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero and self.training:
            answers = self.samples.answers(model, 2)
            if stopping.Waiting.asked:  # they were cut off
                return
            for answer, row in zip(answers, self.samples.rows[:2], strict=True):
                print(f"    answer {answer[:100]!r}, reference {row['reference'][:100]!r}", flush=True)
