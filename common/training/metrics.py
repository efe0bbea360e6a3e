"""The metrics of a run: time, tokens, waiting for data, memory and losses, shown on one line and kept in log.jsonl."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.batching.collator import without_padding
from tunebook.common.distributed import is_main_process
from tunebook.common.format import byte_size
from tunebook.common.process import progress
from tunebook.common.resources import Peak, age
from tunebook.common.run_folder import output_dir, run_record
from tunebook.common.tokens.lengths import IGNORE_INDEX
from tunebook.common.training.time_left import TimeLeft, every
from tunebook.common.training.watch import TrainingWatch

WAITING = 0.1  # share of the time spent waiting for batches that is worth a warning
HELD_OUT = "held-out loss"  # cross-entropy in nats per token
PARTS = {"divergence", "cross_entropy"}  # of a training loss, as distillation/student.py logs them
# Of a run's parts together, each step once.
SUMS = (
    "seconds", "waited", "positions", "tokens", "trained", "skipped", "_steps_here", "seconds_to_first_step",
    "stepping", "evaluating",
)  # fmt: skip
BEFORE = ("answers", "scoring", "held-out rows")  # phases before training, which come again after it
SHARE = 0.02  # of the time, that keeping the progress may take
WARM = 20  # steps after which that share means something


class TrainingMetrics:
    """Fed by a training loop: begin, batches, step, log, evaluated, end. `loss`, `evaluations`: [[step, value], ...];
    `parts`: the same of each of PARTS that the loop logs.

    Args:
        training, held_out: names of the losses.

    Attributes:
        costs: what each step takes beside the others; empty: all the same (TimeLeft).
        pauses: steps after which there is a pause; None: after each fifth of the run.
        evaluates: whether that is an evaluation.
        stepping, evaluating: seconds of steps, and of evaluations.
    """

    def __init__(self, log_file: Path, training: str = "cross-entropy", held_out: str = HELD_OUT):
        self.log_file, self.peak, self.training, self.held_out = log_file, Peak(), training, held_out
        self.loss: list[list[float]] = []
        self.evaluations: list[list[float]] = []
        self.parts: dict[str, list[list[float]]] = {}
        self.seconds = self.seconds_to_first_step = self.waited = self.stepping = self.evaluating = 0.0
        self.positions = self.tokens = self.trained = 0
        self.steps = self.max_steps = self.skipped = self._steps_here = 0
        self._warned, self._ended, self._before = False, False, 0.0
        self._phase: Any = None
        self._last: dict[str, float] = {}
        self.costs: Any = ()
        self.pauses: set[int] | None = None
        self.evaluates = True
        self.tracker: Any = None  # a Tracker
        self.held_out_rows: Any = None  # a HeldOut
        self._began = self._stepped = 0.0  # when a step began, and when the last one ended
        self.on_begin: Callable[[], None] = lambda: None  # called when the steps begin
        self.watch, self._left_out = TrainingWatch(), False
        self._lines: int | None = 0  # of log_file; None: not known
        self._part = (0.0, 0)  # seconds and trained tokens before this part
        self._over: Any = None  # the accelerator of several processes
        self.peaks: list[int] = []  # bytes, of each process, at the end
        self._kept, self._keeping = 0.0, 0.0  # when the progress was written last, and how long that took

    def state(self) -> dict[str, Any]:
        """The metrics so far, for a checkpoint's JSON. Its lists grow with the run."""
        return {name: getattr(self, name) for name in ("loss", "evaluations", "parts", "_lines", *SUMS)}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint. What was logged after it is logged again, and leaves log_file."""
        self.loss, self.parts = state["loss"], state["parts"]
        self.evaluations = state["evaluations"] or self.evaluations
        for name in SUMS:
            setattr(self, name, state.get(name, 0))
        self._before, self._part = self.seconds, (self.seconds, self.trained)
        self._lines = state.get("_lines")  # an earlier version did not count them

    def begin(self, step: int, max_steps: int) -> None:
        """Training starts or resumes after `step` steps."""
        self.on_begin()
        self.steps, self.max_steps, self._begun = step, max_steps, time.monotonic()
        if step and is_main_process():
            self._lines = _cut(self.log_file, self._lines, step)
        self._began = self._stepped = time.monotonic()
        pauses = every(0.2, max_steps) if self.pauses is None else self.pauses
        self._left = TimeLeft(step, max_steps, pauses, self.costs)
        self._left.pause = progress.spent("held-out rows") if self.evaluates else 0.0
        self._left.after = sum(map(progress.spent, BEFORE))
        self._phase = progress.start("training", max_steps, "steps", self._details, self._seconds_left, done=step)

    def _seconds_left(self) -> float | None:
        return self._left.seconds(time.monotonic() - self._stepped)

    def _details(self) -> list[str]:
        """What is told of the training at any moment, beside steps and time."""
        words = []
        ended = self.steps == self.max_steps
        if not ended and self._left.after > progress.LONG and (left := self._seconds_left()) is not None:
            words.append(f"{progress.clock(left + self._left.after)} with what follows")
        if "loss" in self._last:
            words.append(f"loss {self._last['loss']:.3f}")
        if "learning_rate" in self._last:
            words.append(f"learning rate {self._last['learning_rate']:.1e}")
        speed, wait = self.trained / max(self.seconds, 1e-9), self.waited / max(self.seconds, self.waited, 1e-9)
        if self.seconds:
            words.append(f"{speed:.{0 if speed >= 9.95 else 1}f} trained tokens/s")
        if self.seconds and wait > 0.01:
            words.append(f"waiting for data {100 * wait:.0f} %")
        words.append(byte_size(self.peak.bytes))
        coming = [step for step in self._left.pauses if step > self.steps]
        if coming:
            words.append(f"{'evaluation' if self.evaluates else 'checkpoint'} at step {coming[0]}")
        return words

    def batches(self, batches: list[dict[str, Any]], waited: float, over: Any = None) -> None:
        """A step's batches were there after `waited` seconds; `over`: an accelerator, to count in all processes."""
        self._began = time.monotonic() - waited
        if self._stepped and self._phase is not None:
            self._left.paused(self.steps, self._began - self._stepped)
        self.waited += waited
        counts = [0, 0, 0]
        for batch in batches:
            counts[0] += batch["input_ids"].numel()
            counts[1] += int(without_padding(batch).sum())
            counts[2] += int((batch["labels"] != IGNORE_INDEX).sum())
        if over is not None and over.num_processes > 1:
            import torch

            self._over = over

            counts = over.reduce(torch.tensor(counts, device=over.device), "sum").tolist()
        self.positions, self.tokens, self.trained = (
            sum(pair) for pair in zip((self.positions, self.tokens, self.trained), counts, strict=True)
        )

    def step(self, step: int, skipped: bool = False) -> None:
        """The optimizer has made a step, or skipped it for a gradient that float16 could not hold."""
        self.steps, self._steps_here = step, self._steps_here + 1
        self.skipped += skipped
        self._left_out = skipped
        self._stepped = time.monotonic()
        self.seconds = self._before + self._stepped - self._begun
        self.stepping += self._stepped - self._began
        self._left.stepped(step, self._stepped - self._began)
        if not self.seconds_to_first_step:
            self.seconds_to_first_step = age()
        share = self.waited / max(self.seconds, 1e-9)
        if self._steps_here == WARM and share > WAITING and not self._warned:
            self._warned = True
            _say(
                f"warning: {100 * share:.0f} % of the time is spent waiting for batches; "
                "more loader processes may help: --set dataloader_num_workers=4"
            )
        self._phase.advance()
        if time.monotonic() - self._kept > self._keeping / SHARE:
            self._keep_progress()

    def _keep_progress(self) -> None:
        """Write how far this part has come, for the account of a run whose process ends without a word."""
        if not is_main_process():
            return
        start = time.monotonic()
        seconds, trained = self._part
        account = {
            "ended": run_record.now(),
            "to_step": self.steps,
            "seconds": self.seconds - seconds,
            "trained_tokens": self.trained - trained,
            "peak_bytes": max([self.peak.bytes, *self.peaks]),
        }
        files.write_json(self.log_file.with_name(output_dir.PROGRESS), account)
        self._kept = time.monotonic()
        self._keeping = self._kept - start

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep a line of values, beside a `loss` with speed and memory so far; show it and the `learning_rate`."""
        if "loss" in values:
            speed = self.trained / max(self.seconds, 1e-9)
            values = {**values, "trained_tokens_per_second": speed, "peak_bytes": self.peak.bytes}
        if is_main_process():
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if self._lines is not None:
            self._lines += 1
        self._track(step, values)
        for name in PARTS & values.keys():
            self.parts.setdefault(name, []).append([step, values[name]])
        for warning in self.watch.look(step, values, self._left_out, self.max_steps):
            _say(warning)
        if "loss" not in values:
            return
        self._last = values
        self.loss.append([step, values["loss"]])
        self._keep_progress()

    def _track(self, step: int, values: dict[str, float]) -> None:
        """Tell the tracker. Of the evaluation at the end it hears with the scores: its curve has one point a step."""
        if self.tracker is None:
            return
        if not (self._ended and any(name.startswith("eval_") for name in values)):
            self.tracker.log(step, values)

    def evaluated(self, step: int, loss: float, seconds: float | None = None) -> None:
        """The held-out loss was taken; `seconds`: how long that took, by default as its phase did."""
        self.evaluating += progress.spent("held-out rows") if seconds is None else seconds
        if step and not self._ended:
            list(self.watch.look(step, {"eval_loss": loss}))  # before it is saved
        self.evaluations.append([step, loss])
        if seconds is None:  # of a plain loop, which logs no evaluation
            self._track(step, {"eval_loss": loss})
        place = "after training" if self._ended else f"step {step}/{self.max_steps}" if step else "before training"
        _say(f"{place}  {self.held_out} {loss:.4f}")

    def end(self) -> None:
        self.peaks = [self.peak.stop()]
        if self._over is not None:
            import torch

            self.peaks = self._over.gather(torch.tensor(self.peaks, device=self._over.device)).tolist()
        self._phase.close()
        self._keep_progress()
        if self.skipped:
            _say(f"{self.skipped} of {self._steps_here} steps changed no weight: a gradient overflowed float16")
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
        """The `measured` fields of report.json: of all parts of a run that was interrupted, each step counted once, but
        for the peak memory, which is that of this part. Tokens are those of all processes, the memory that of the one
        that takes most. The seconds include evaluations."""
        seconds = max(self.seconds, 1e-9)
        return {
            "peak_bytes": max([self.peak.bytes, *self.peaks]),
            "peak_bytes_of_all_processes": sum(self.peaks) or self.peak.bytes,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / seconds,
            "trained_tokens_per_second": self.trained / seconds,
            "trained_tokens": self.trained,
            "data_wait_share": self.waited / seconds,
            "seconds_to_first_step": self.seconds_to_first_step,
            "evaluation_seconds": self.evaluating,
            "evaluation_share": self.evaluating / max(self.evaluating + self.stepping, 1e-9),
        } | ({"skipped_steps": self.skipped} if self.skipped else {})


def _cut(log_file: Path, lines: int | None, step: int) -> int:
    """Keep the first `lines` of a log; where that is not known, those up to `step`. Returns how many there are."""
    try:
        found = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return 0
    kept = [line for line in found if _step(line) <= step] if lines is None else found[:lines]
    files.write_atomic(log_file, "".join(f"{line}\n" for line in kept))
    return len(kept)


def _say(text: str) -> None:
    print(text, flush=True)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off when the process was killed
