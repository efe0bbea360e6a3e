"""What happens beside training: a progress line, a log file, samples, and a watchdog for losses that are no numbers."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from common.batches import real
from common.cli import Refused
from common.generation import Samples
from common.masking import IGNORE
from common.memory import Peak

FORECAST_STEP = 5  # the forecast is made after this step: the first ones also warm up


class Meter(TrainerCallback):
    """One progress line, log.jsonl, and the measurements of the report, taken from the trainer's own batches.

    Shows a bar where there is a terminal, and otherwise a line of text every tenth of the run. `loss` and `evaluations`
    are [[step, value], ...]; `forecast` is {"peak_bytes", "seconds"}, made after the first steps.
    """

    def __init__(self, trainer: Any, log_file: Path, started: float, peak: Peak):
        self.log_file, self.started, self.peak = log_file, started, peak
        self.loss: list[list[float]] = []
        self.evaluations: list[list[float]] = []
        self.forecast: dict[str, float | None] = {"peak_bytes": None, "seconds": None}
        self.seconds = self.seconds_to_first_step = self.waited = 0.0
        self.positions = self.tokens = self.trained = self._steps_here = 0
        self._next_line, self._ended = 0.0, False
        self._bar: Any = None
        self._fetch, trainer.get_batch_samples = trainer.get_batch_samples, self._timed_fetch
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def _timed_fetch(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's get_batch_samples, with its time and the sizes of its batches added up."""
        begun = time.monotonic()
        samples, items = self._fetch(*args, **kwargs)
        self.waited += time.monotonic() - begun
        for batch in samples:
            self.positions += batch["input_ids"].numel()
            self.tokens += int(real(batch).sum())
            self.trained += int((batch["labels"] != IGNORE).sum())
        return samples, items

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / self.positions if self.positions else 0.0

    def measured(self) -> dict[str, float]:
        """The `measured` fields of report.json but for peak_bytes; the seconds of training hold its evaluations."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / seconds,
            "trained_tokens_per_second": self.trained / seconds,
            "data_wait_share": self.waited / seconds,
            "seconds_to_first_step": self.seconds_to_first_step,
        }

    def on_train_begin(self, args, state, control, **kwargs):
        from tqdm.auto import tqdm

        self._begun = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=not terminal)

    def on_step_end(self, args, state, control, **kwargs):
        self._steps_here += 1
        self.seconds = time.monotonic() - self._begun
        self.seconds_to_first_step = self.seconds_to_first_step or time.time() - self.started
        if self._steps_here == 1:
            self._first = self.seconds
        elif self._steps_here == FORECAST_STEP:
            each = (self.seconds - self._first) / (FORECAST_STEP - 1)
            left = state.max_steps - state.global_step
            self.forecast = {"peak_bytes": self.peak.bytes, "seconds": self.seconds + each * left}
        self._bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        if "eval_loss" in logs:
            self.evaluations.append([state.global_step, logs["eval_loss"]])
            place = "after training" if self._ended else f"step {state.global_step}/{state.max_steps}"
            place = place if state.global_step else "before training"
            self._say(f"{place}  held-out loss {logs['eval_loss']:.4f}")
        if "loss" in logs:
            self.loss.append([state.global_step, logs["loss"]])
            speed = self.trained / max(self.seconds, 1e-9)
            rate = logs.get("learning_rate", 0.0)
            if self._bar is not None and not self._bar.disable:
                self._bar.set_postfix_str(f"loss {logs['loss']:.3f}, rate {rate:.1e}, {speed:.0f} trained tokens/s")
            elif state.global_step >= self._next_line:
                self._next_line = state.global_step + state.max_steps / 10
                self._say(
                    f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  rate {rate:.1e}  "
                    f"{speed:.0f} trained tokens/s"
                )

    def on_train_end(self, args, state, control, **kwargs):
        self._bar.close()
        self._ended = True

    def _say(self, text: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.write(text)
        else:
            print(text, flush=True)


class Watchdog(TrainerCallback):
    """Stops at a loss or gradient norm that is not a number, with what to try; checkpoints already written are kept."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise Refused(
                    f"{name} is {logs[name]} at step {state.global_step}: training has diverged. Lower --learning_rate "
                    f"(now {args.learning_rate:g}), or lengthen the warm-up; checkpoints in {args.output_dir} are kept"
                )


class ShowSamples(TrainerCallback):
    """Prints the answers to the first two held-out prompts at every evaluation while training."""

    def __init__(self, samples: Samples):
        self.samples, self.training = samples, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero and self.training:
            for answer, row in zip(self.samples.answers(model, 2), self.samples.rows[:2], strict=True):
                print(f"    answer {answer[:100]!r}, reference {row['reference'][:100]!r}", flush=True)
