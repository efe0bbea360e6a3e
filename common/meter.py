"""The measurements of a run: time, tokens, waiting, memory and losses, shown on one line and kept in log.jsonl."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from common.batches import real
from common.cli import first_process
from common.masking import IGNORE
from common.memory import Peak

WAITING = 0.1  # a share of the time spent waiting for batches that is worth a warning
WARM = 20  # steps after which that share means something


class Meter:
    """Fed by a training loop: begin, batches, step, log, evaluated, end. `loss`, `evaluations`: [[step, value], ...].

    Shows a bar where there is a terminal, and otherwise a line of text every tenth of the run.
    """

    def __init__(self, log_file: Path):
        self.log_file, self.peak = log_file, Peak()
        self.loss: list[list[float]] = []
        self.evaluations: list[list[float]] = []
        self.seconds = self.seconds_to_first_step = self.waited = 0.0
        self.positions = self.tokens = self.trained = 0
        self.steps = self.max_steps = self.skipped = self._steps_here = 0
        self._next_line, self._warned, self._ended = 0.0, False, False
        self._bar: Any = None

    def begin(self, step: int, max_steps: int) -> None:
        """Training starts, or goes on, after `step` steps."""
        from tqdm.auto import tqdm

        self.steps, self.max_steps, self._begun = step, max_steps, time.monotonic()
        self._bar = tqdm(total=max_steps, initial=step, unit="step", disable=not sys.stderr.isatty())

    def batches(self, batches: list[dict[str, Any]], waited: float) -> None:
        """The batches of a step were there after `waited` seconds."""
        self.waited += waited
        for batch in batches:
            self.positions += batch["input_ids"].numel()
            self.tokens += int(real(batch).sum())
            self.trained += int((batch["labels"] != IGNORE).sum())

    def step(self, step: int, skipped: bool = False) -> None:
        """The optimizer has made a step, or has left it out for a gradient that float16 could not hold."""
        self.steps, self._steps_here = step, self._steps_here + 1
        self.skipped += skipped
        self.seconds = time.monotonic() - self._begun
        if not self.seconds_to_first_step:
            self.seconds_to_first_step = time.time() - psutil.Process().create_time()
        share = self.waited / max(self.seconds, 1e-9)
        if self._steps_here == WARM and share > WAITING and not self._warned:
            self._warned = True
            self._say(
                f"warning: {100 * share:.0f} % of the time is spent waiting for batches; "
                "more loader processes may help: --sft dataloader_num_workers=4"
            )
        self._bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep a line of values; show `loss` and `learning_rate` where they are among them."""
        if first_process():
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if "loss" not in values:
            return
        self.loss.append([step, values["loss"]])
        seconds = max(self.seconds, 1e-9)
        rate, speed, wait = values.get("learning_rate", 0.0), self.trained / seconds, 100 * self.waited / seconds
        if self._bar is not None and not self._bar.disable:
            text = f"loss {values['loss']:.3f}, rate {rate:.1e}, {speed:.0f} trained tokens/s, waiting {wait:.0f} %"
            self._bar.set_postfix_str(text)
        elif step >= self._next_line:
            self._next_line = step + self.max_steps / 10
            self._say(
                f"step {step}/{self.max_steps}  loss {values['loss']:.4f}  rate {rate:.1e}  "
                f"{speed:.0f} trained tokens/s  waiting for data {wait:.1f} %"
            )

    def evaluated(self, step: int, loss: float) -> None:
        """The held-out loss, nats a token."""
        self.evaluations.append([step, loss])
        place = "after training" if self._ended else f"step {step}/{self.max_steps}" if step else "before training"
        self._say(f"{place}  held-out loss {loss:.4f}")

    def end(self) -> None:
        self.peak.stop()
        self._bar.close()
        if self.skipped:
            self._say(f"{self.skipped} of {self._steps_here} steps changed no weight: a gradient overflowed float16")
        self._ended = True

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / self.positions if self.positions else 0.0

    @property
    def losses(self) -> tuple[float | None, float | None]:
        """Held-out loss before and after training; None where it was not taken."""
        before = next((value for step, value in self.evaluations if step == 0), None)
        return before, self.evaluations[-1][1] if self._ended and self.evaluations else None

    def measured(self) -> dict[str, Any]:
        """The `measured` fields of report.json; the seconds of training hold its evaluations."""
        seconds = max(self.seconds, 1e-9)
        return {
            "peak_bytes": self.peak.bytes,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / seconds,
            "trained_tokens_per_second": self.trained / seconds,
            "trained_tokens": self.trained,
            "data_wait_share": self.waited / seconds,
            "seconds_to_first_step": self.seconds_to_first_step,
        } | ({"skipped_steps": self.skipped} if self.skipped else {})

    def _say(self, text: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.write(text)
        else:
            print(text, flush=True)
