"""The record of a run: its folder, data, first batch, forecast, metrics and report."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.flags import ranges, redaction
from tunebook.common.process import progress
from tunebook.common.run_folder import lock, output_dir, run_record
from tunebook.common.training import trackers

HELD_OUT = 300  # rows whose loss is taken while training


@dataclass
class RunOptions:
    """The flags of every recipe that are not of its method.

    Attributes:
        SEVERAL_PROCESSES: whether the recipe trains with several; a command that does not say so runs in one.
    """

    SEVERAL_PROCESSES: ClassVar[bool] = True
    output_dir: str | None = None  # output folder; default: runs/<recipe>
    bad_rows: str = "refuse"  # drop: leave out rows that cannot be trained on, counted by reason
    eval_suite: str = "auto"  # lm-eval suite before and after; auto: pocket's own; none: skip
    eval_share: float = 0.1  # of the run, for held-out evaluations; a short run takes fewer rows; 1: always all
    report_to: str = "none"  # none, tensorboard, wandb or trackio
    seed: int = 0
    gradient_accumulation_steps: int = 1  # micro-batches per optimizer step
    max_steps: int = -1  # overrides num_train_epochs if positive
    resume: bool = True  # resume an interrupted run in output_dir
    allow_changes: bool = False  # resume it although recipe, arguments, data, models or versions have changed
    overwrite: bool = False  # start over where output_dir contains a run
    dry_run: bool = False  # prepare the data, preview what trains, forecast memory and time, and stop
    debug_batches: int = 0  # describe the first N batches


@dataclass
class TrainerOptions(RunOptions):
    """Those of a recipe with a Trainer whose steps can be profiled."""

    find_batch_size: bool = False  # halve the batch and double the accumulation until it fits
    set: list[str] = field(default_factory=list)  # other fields of the trainer's config: warmup_steps=20 optim=sgd


class Run:
    """A run in its folder `dir`, with its `overrides` (--set), `checkpoint`, `stats` of its data, `preview` of a row,
    `forecast` and `metrics`, as they become known.

    Args:
        recipe: the recipe's own file.

    Raises:
        UserError: a flag's number is out of range, the folder cannot be written, holds a finished run, or another
            process trains in it.
    """

    def __init__(self, recipe: str, args: Any):
        self.recipe, self.args = recipe, args
        progress.to_stdout()
        trackers.check(args.report_to)
        ranges.check(vars(args))
        args.output_dir = args.output_dir or f"runs/{Path(recipe).stem}"
        self._set = list(getattr(args, "set", []))
        if self._set:
            args.set = redaction.without_secrets(self._set)  # what is written from here on
        self.dir, killed = output_dir.prepare_run(args.output_dir, args.overwrite)
        self.record = run_record.RunRecord(self.dir, killed)
        self.overrides: dict[str, Any] = {}
        self.checkpoint: str | None = None
        self.stats: Any = None
        self.evaluated = False
        self.held_out: Any = None
        self.tokenizer: Any = None
        self.preview: list[list] = []
        self.forecast: dict[str, Any] = {}
        self.metrics: Any = None
        self._importing: Any = None
        self._costs: Any = ()

    def load_data(self, load: Callable[..., Any] | None = None) -> Any:
        """The rows of --dataset by split. Where the folder has an interrupted run, it must be this one, on these rows,
        and its newest checkpoint is found.

        Args:
            load: in place of data.load; as preference.pairs.load.

        Raises:
            UserError: the rows are wrong, or the folder's run is another one, is not to be resumed, or damaged.
        """
        from tunebook.common import data

        splits = (load or data.load)(self.args.dataset, seed=self.args.seed, bad_rows=self.args.bad_rows)
        self.checkpoint = self.record.resume_from(Path(self.recipe), self.args, splits)
        self._importing = progress.start("loading the training libraries")  # which a recipe does next
        return splits

    def start(self, config_class: type | None = None, unheard: Mapping[str, str] | None = None) -> None:
        """Check --set against the fields of `config_class`, and begin: anew, or from the checkpoint.

        Args:
            unheard: more fields that would do nothing in this recipe -> why, and what does it.
        """
        from transformers import set_seed

        from tunebook.common.training import config_overrides

        if self._importing:
            self._importing.close()
        set_seed(self.args.seed)  # prefixes begin at random
        flags = vars(self.args)
        if config_class is not None:
            unheard = {**(unheard or {}), **trackers.unheard(self.args.report_to)}
            self.overrides = config_overrides.overrides(self._set, config_class, set(flags), unheard)
        if token := self.overrides.pop("hub_token", None):
            os.environ["HF_TOKEN"] = token  # where the Hub's client looks; in the config it would be saved with weights
        if not self.record.identity:  # a recipe that loads its rows itself
            self.checkpoint = self.record.resume_from(Path(self.recipe), self.args)
        if self.args.dry_run:
            return
        if self.args.overwrite and is_main_process():
            output_dir.clear(self.dir)
        self.record.begin(self.checkpoint, self.args.overwrite)
        if self.checkpoint:
            print(f"resuming from {self.checkpoint}")

    def encode(
        self, splits: Any, tokenizer: Any, template: Any, max_length: int, held_out: int = HELD_OUT,
        encode: Callable[..., Any] | None = None, packed: bool = False, **masks: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Training and held-out rows as ids and labels, with every row that is lost counted; several sources mixed.

        Args:
            held_out: the most rows of the validation split; fewer where --eval_share asks for it.
            encode: in place of encoding.encode; as preference.encode.
            packed: rows of max_length tokens will be made of them.
            masks: as encoding.encode.

        Returns:
            Two datasets.Dataset; None in place of an empty second one.

        Raises:
            CheckFailed: almost nothing would train.
        """
        from tunebook.common.batching import mixing
        from tunebook.common.tokens import encoding

        self.tokenizer = tokenizer
        encode, folder = encode or encoding.encode, self.dir / "tokens"
        train, self.stats = encode(splits["train"], tokenizer, template, max_length, **masks, folder=folder)
        validation, _ = encode(splits["validation"][:held_out], tokenizer, template, max_length, **masks)
        more = f"; {len(validation)} held-out rows" if held_out else ""
        print(f"{' '.join(self.args.dataset)}: {self.stats.summary()}{more}", *splits.notes, sep="\n")
        self.stats.require_trainable(max_length)
        train, self.stats.sources = mixing.mix(train, splits.weights, splits.unit, self.args.seed)
        if not held_out and self.args.eval_share != RunOptions.eval_share:
            raise UserError("--eval_share: this recipe evaluates no held-out rows; leave it out")
        self.evaluated = len(validation) > 0
        if not self.evaluated:
            return train, None
        self.held_out = self._held_out(train, validation, max_length if packed else None)
        if note := self.held_out.note():
            print(note)
        return train, self.held_out.take(validation)

    def _held_out(self, train: Any, validation: Any, width: int | None) -> Any:
        """The held-out rows that evaluations take, by counts that are known before training."""
        from types import SimpleNamespace

        from tunebook.common.estimate import schedule
        from tunebook.common.tokens.lengths import lengths_of
        from tunebook.common.training import config_overrides, held_out

        args, lengths = self.args, lengths_of(train)
        tokens, mean = float(lengths.sum()), width or float(lengths.mean())
        group = args.per_device_train_batch_size * args.gradient_accumulation_steps
        group *= int(os.environ.get("WORLD_SIZE", "1"))
        epochs = args.num_train_epochs
        steps = args.max_steps if args.max_steps > 0 else max(1, round(epochs * tokens / mean / group))
        plan = {**config_overrides.EVALUATION_SCHEDULE, "eval_delay": 0, **self.overrides}
        times = schedule.evaluations(SimpleNamespace(**plan), steps, max(1, round(steps * group * mean / tokens)))
        return held_out.choose(args.eval_share, validation, steps * group * mean, times)

    def defaults(self, model: Any, tokenizer: Any, template: Any, **pairs: tuple[float, float]) -> None:
        """Fill the learning rate and the epochs that no flag gave by the model's size (training/defaults.py).

        Args:
            pairs: rate, epochs: for a small model, and for one of 50 M parameters or more.
        """
        from tunebook.common.training import defaults

        defaults.choose(self.args, model, tokenizer, template, **pairs)

    def processing_class(self, template: Any, model: Any) -> Any:
        """The tokenizer to be saved with the weights: its chat template and end token are those of the training. The
        model's card will name no path of this machine."""
        from tunebook.common.models import model_card
        from tunebook.common.training import served_tokenizer

        model_card.hide_paths(model)
        return served_tokenizer.with_template(self.tokenizer, template, model)

    def accelerator_options(self) -> dict[str, Any]:
        """Arguments of accelerate.Accelerator: device, precision, folder."""
        from tunebook.common.models import device

        here = device.current()
        # cpu: else it joins no other process without a GPU
        return dict(cpu=not here.gpu, mixed_precision=here.mixed_precision, project_dir=self.dir)

    def config(self, config_class: Any, **choices: Any) -> Any:
        """`config_class` with the recipe's choices, beside them what run and device decide, and --set over all."""
        from tunebook.common.batching import dataloader
        from tunebook.common.models import device
        from tunebook.common.training import config_overrides

        args = self.args
        settings = dict(
            output_dir=str(self.dir),
            report_to="none",  # the metrics tell it, from before the first step to the report
            seed=args.seed,
            per_device_train_batch_size=args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            num_train_epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            gradient_checkpointing=bool(device.current().gradient_checkpointing),
            logging_steps=0.01,
            save_steps=0.2,
            save_total_limit=2,
        )
        if "dataset_kwargs" in config_class.__dataclass_fields__:  # SFTConfig: rows are encoded, and packed, already
            settings |= dict(dataset_kwargs={"skip_prepare_dataset": True}, packing=False, padding_free=False)
        if self.evaluated:
            settings |= config_overrides.EVALUATION_SCHEDULE
            settings["per_device_eval_batch_size"] = args.per_device_train_batch_size
        settings |= {**device.current().precision, **dataloader.dataloader_settings()}
        return config_class(**{**settings, **choices, **self.overrides})

    def callbacks(self, samples: Any) -> list[Any]:
        """Stop at signals, and show answers (generation.Samples) at every evaluation."""
        from tunebook.common.training import callbacks, stop_on_signal

        shown = [callbacks.ShowSamples(samples)] if self.held_out is None or self.held_out.answers else []
        return [callbacks.RefuseForPrompts(), stop_on_signal.StopOnSignal(), *shown]

    def prepare(self, trainer: Any, weigh: Callable[[Any], Any] | None = None) -> None:
        """Length-grouped batches unless rows are packed, loss weights of rows, adapters in float32; then the first
        batch previewed, and memory and time estimated by a few steps that leave nothing behind.

        Args:
            weigh: gives the trainer's loss the weights of rows; default: weighted_loss.weigh_loss, for TRL's losses.

        Raises:
            CheckFailed: nothing trains, or the run does not fit into memory.
        """
        from tunebook.common import models
        from tunebook.common.batching import samplers
        from tunebook.common.estimate import forecast
        from tunebook.common.training import checks, weighted_loss

        if hasattr(trainer.model, "peft_config"):
            models.train_in_float32(trainer.model)
        if "seq_lengths" not in trainer.train_dataset.column_names:
            samplers.group_by_length(trainer)
        (weigh or weighted_loss.weigh_loss)(trainer)
        self.preview = checks.first_batch(trainer.get_train_dataloader(), self.tokenizer, self.args.debug_batches)
        found = forecast.forecast(trainer, self.args.find_batch_size)
        self.forecast, self._costs = found.as_dict(), found.costs

    def prepare_loop(self, steps: Any, loader: Any, optimizer: Any, max_steps: int) -> Any:
        """For a loop without a Trainer: the first batch previewed, memory and time estimated, metrics ready.

        Args:
            steps: as trainer_steps.loop_step_functions.
            loader: prepared by Accelerate.
            optimizer: named as in TrainingArguments.optim.
        """
        from tunebook.common.estimate import forecast
        from tunebook.common.training import checks
        from tunebook.common.training.metrics import TrainingMetrics

        self.preview = checks.first_batch(loader, self.tokenizer, self.args.debug_batches)
        found = forecast.forecast_loop(steps, loader, optimizer, max_steps)
        self.forecast = found.as_dict()
        self.metrics = TrainingMetrics(self.dir / output_dir.LOG)
        self.metrics.costs = found.costs
        self._ready()
        return self.metrics

    def _ready(self) -> None:
        """The metrics tell run.json when the steps begin, and the tracker what they are told."""
        from tunebook.common.training import tracking

        self.metrics.on_begin = self.record.commit
        if not self.args.dry_run:
            step = int(self.checkpoint.rpartition("-")[2]) if self.checkpoint else 0
            about = redaction.without_paths(redaction.without_secrets(vars(self.args)), self.dir)
            where = (self.args.report_to, self.dir, self.record.id, step)
            self.metrics.tracker = tracking.start(*where, about, self.overrides)

    def train(self, trainer: Any, metrics: Any = None) -> None:
        """`trainer.train`, from the checkpoint where there is one, between two evaluations of the run.

        Args:
            metrics: as callbacks.track_metrics gives them; default: those of tokens.
        """
        from tunebook.common.training import callbacks, resuming, stop_on_signal

        self.metrics = metrics or callbacks.track_metrics(trainer, self.dir / output_dir.LOG)
        stop_on_signal.attach(trainer)
        self.metrics.costs = self._costs
        self._ready()
        if self.checkpoint is None:  # else it was taken when the run began
            callbacks.evaluate(trainer)
        resuming.train(trainer, self.checkpoint)
        callbacks.evaluate(trainer)

    def finish(self, model: Any, samples: Any, scores: dict[str, Any]) -> dict[str, Any]:
        """Write report.json, which is returned, and report.html.

        Args:
            samples: generation.Samples. scores: as report.write.
        """
        from tunebook.common import files, report

        self.record.finish()
        for name in ("adapter", "model", "base"):
            files.share_weights(self.dir / name)
        account = self.record.summary(self.metrics.steps, self.metrics.seconds, self.metrics.trained)
        self.metrics.held_out_rows = self.held_out
        written = (self.stats, self.preview, self.forecast, self.metrics, samples.rows, scores, account)
        try:
            found = report.write(self.recipe, self.dir, vars(self.args), model, *written)
            self.metrics.tracker.end(self.metrics.steps, found, self.dir)
            return found
        finally:
            lock.release()
