"""A run of one process without a Trainer in which a whole model trains: its folder, checkpoints and account."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from tunebook.common import files
from tunebook.common.format import byte_size
from tunebook.common.process import progress, stopping
from tunebook.common.resources import Peak
from tunebook.common.run_folder import checkpoint_files, output_dir, run_record
from tunebook.common.training.watch import TrainingWatch

WEIGHTS = "state.pt"  # of the model and its optimizers
KEPT = 2  # checkpoints
SAVES = 6  # of a run


class PlainRun:
    """A run in its folder `dir`, from its newest checkpoint where it was interrupted.

    Attributes:
        step: steps that have been made. curve: [[step, loss], ...].
        seconds, cpu_seconds: of all parts of the run, each step counted once.

    Args:
        recipe: the recipe's own file.
        tokens: of a step.
        marker: the file that a finished run has.
        result: what it makes, which it writes over only if it is its own.

    Raises:
        UserError: the folder cannot be written, has a finished or another run, or another process trains in it.
    """

    def __init__(self, recipe: str, args: Any, tokens: int, marker: str, result: str):
        old = run_record.RunRecord(Path(args.output_dir)).old or {}
        own = old.get("recipe", {}).get("name") == Path(recipe).stem
        self.dir, killed = output_dir.prepare_run(args.output_dir, args.overwrite, marker if own else result)
        self.record = run_record.RunRecord(self.dir, killed)
        self.checkpoint = self.record.resume_from(Path(recipe), args)
        if args.overwrite:
            output_dir.clear(self.dir)
        self.record.begin(self.checkpoint, args.overwrite)
        self.tokens, self.step, self.curve = tokens, 0, []
        self._watch = TrainingWatch()
        self._peak, self._before, self._first = Peak(), (0.0, 0.0), 0
        self._phase: Any = None
        progress.to_stdout()
        self._begun = (time.monotonic(), time.process_time())

    @property
    def seconds(self) -> float:
        return self._before[0] + time.monotonic() - self._begun[0]

    @property
    def cpu_seconds(self) -> float:
        return self._before[1] + time.process_time() - self._begun[1]

    def load(self, model: Any, optimizers: list[Any]) -> None:
        """Model, optimizers, curve and account as they were at the checkpoint, if there is one. The clock starts."""
        if self.checkpoint is not None:
            print(f"resuming from {self.checkpoint}")
            place = Path(self.checkpoint)
            saved = torch.load(place / WEIGHTS, map_location="cpu", weights_only=True)
            model.load_state_dict(saved["model"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            state = json.loads((place / checkpoint_files.STATE).read_text(encoding="utf-8"))
            self.step, self.curve, self._before = state["global_step"], state["curve"], tuple(state["spent"])
        self._first = self.step
        self.record.commit()
        stopping.wait()
        self._begun = (time.monotonic(), time.process_time())

    def log(self, step: int, loss: float) -> None:
        """Keep a loss."""
        self.step = step + 1
        self.curve.append([step, loss])
        for warning in self._watch.look(step + 1, {"loss": loss}):
            print(warning)
        self._keep_progress()

    def _details(self) -> list[str]:
        loss = [f"loss {self.curve[-1][1]:.3f}"] if self.curve else []
        return [*loss, f"{self._phase.done * self.tokens / self.seconds:.0f} tokens/s", byte_size(self._peak.bytes)]

    def _keep_progress(self) -> None:
        """Write how far this part has come, for the account of a run whose process ends without a word."""
        steps = self.step - self._first
        account = {
            "ended": run_record.now(),
            "to_step": self.step,
            "seconds": self.seconds - self._before[0],
            "trained_tokens": steps * self.tokens,
            "peak_bytes": self._peak.bytes,
        }
        files.write_json(self.dir / output_dir.PROGRESS, account)

    def save_where_due(self, step: int, steps: int, model: Any, optimizers: list[Any]) -> None:
        """After `step` of `steps` steps: a checkpoint after each sixth of them, and where a signal ends the run."""
        if self._phase is None:
            self._phase = progress.start("training", steps, "steps", self._details, done=step - 1)
        self._phase.advance()
        if step == steps:
            self._phase.close()
        if step % max(1, steps // SAVES) == 0 or stopping.asked():
            self.save(step, model, optimizers)
        if stopping.asked() or step == steps:
            stopping.end()

    def save(self, step: int, model: Any, optimizers: list[Any]) -> None:
        """Write checkpoint-STEP, and remove old ones."""
        place = self.dir / f"checkpoint-{step}"
        checkpoint_files.begin(place)
        place.mkdir(exist_ok=True)
        states = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
        torch.save(states, place / WEIGHTS)
        state = {"global_step": step, "curve": self.curve, "spent": [self.seconds, self.cpu_seconds]}
        files.write_json(place / checkpoint_files.STATE, state)
        checkpoint_files.seal(place, step, self.record.id)
        self.step = step
        self._keep_progress()
        for _, old in output_dir.checkpoints(self.dir)[:-KEPT]:
            output_dir.remove(old)

    def finish(self) -> dict[str, Any]:
        """The account of the run: seconds and cpu_seconds, and its parts (RunRecord.summary)."""
        seconds, cpu = round(self.seconds, 1), round(self.cpu_seconds, 1)
        self._peak.stop()
        self.record.finish()
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "run": self.record.summary(self.step, self.seconds, self.step * self.tokens),
        }
