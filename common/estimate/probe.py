"""A few real steps before training that leave everything as it was: what they take of memory and time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunebook.common import resources
from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.estimate.trial import catch_oom

ENOUGH = 3.0  # seconds of steps after which no further one is timed
TOGETHER = 3  # batches that are timed where processes may wait for each other in one: as many in each
QUANTILES = (0.5, 0.25, 0.75, 0.5, 0.25, 0.75)  # of the batches by size: those that are timed after the longest


@dataclass
class StepFunctions:
    """The parts of a run's steps: a trainer's, or a plain loop's.

    Args:
        collate: places of rows in the dataset -> a batch.
        step: forward and backward on a batch; gradients are added.
        optimizer: makes a new optimizer for the model, whatever its rate.
        evaluate: forward alone on a batch, as in an evaluation.
        accumulation: batches of a step.
    """

    model: Any
    collate: Callable[[list[int]], dict[str, Any]]
    step: Callable[[dict[str, Any]], Any]
    optimizer: Callable[[], Any]
    evaluate: Callable[[dict[str, Any]], Any]
    accumulation: int


@dataclass
class StepProfile:
    """Bytes and seconds of the steps. A batch takes base + rate·positions seconds, the optimizer's step `update`."""

    peak_bytes: int
    state_bytes: int
    base: float
    rate: float
    update: float
    evaluation_rate: float  # seconds a position

    def of_all_processes(self) -> "StepProfile":
        """The largest of each figure over all processes."""
        peak_bytes, state_bytes, *times = map(largest, vars(self).values())
        return StepProfile(int(peak_bytes), int(state_bytes), *times)

    def seconds(self, schedule: BatchSchedule, evaluated: int = 0) -> float:
        """Of all batches and steps of a schedule, and of `evaluated` positions of evaluations."""
        batches = self.base * len(schedule.rows) + self.rate * float(schedule.positions.sum())
        return batches + self.update * schedule.steps + self.evaluation_rate * evaluated


def profile_steps(
    run: StepFunctions, schedule: BatchSchedule, after_backward: Callable[[], None] = lambda: None
) -> StepProfile:
    """Steps of rate 0 on a usual batch, on the longest, and on more usual ones until ENOUGH seconds are timed.

    The first creates the optimizer's states, so that the longest batch meets them, as in training; with accumulation
    it also meets the gradients of a batch before it. Nothing of it stays: see attempts.restore_state.

    Args:
        after_backward: called after each backward pass, while its gradients are there.

    Raises:
        attempts.OutOfMemory: with what the allocator said.
    """
    resources.release()
    peak = resources.Peak()
    try:
        return catch_oom(run.model, _steps, run, schedule, peak, after_backward)
    finally:
        peak.stop()


def _steps(
    run: StepFunctions, schedule: BatchSchedule, peak: resources.Peak, after_backward: Callable[[], None]
) -> StepProfile:
    import torch

    timed: list[tuple[int, float]] = []
    optimizer = _unpaged(run.optimizer())
    try:
        usual = run.collate(schedule.at(0.5))
        _timed(run.step, usual)
        after_backward()
        _update(optimizer)
        longest, took = run.collate(schedule.longest), 0.0
        for _ in range(2 if torch.cuda.is_available() else 1):  # the first step of a size compiles its kernels
            if run.accumulation == 1:
                run.model.zero_grad(set_to_none=True)
            took = _timed(run.step, longest)
        timed.append((longest["input_ids"].numel(), took))
        after_backward()
        update = _update(optimizer)
        run.model.zero_grad(set_to_none=True)
        begun, alone = time.monotonic(), not torch.distributed.is_initialized()
        for share in QUANTILES:
            batch = run.collate(schedule.at(share))
            timed.append((batch["input_ids"].numel(), _timed(run.step, batch)))
            after_backward()
            run.model.zero_grad(set_to_none=True)
            if time.monotonic() - begun > ENOUGH if alone else len(timed) == TOGETHER:
                break
        evaluated = _timed(run.evaluate, usual) / usual["input_ids"].numel()
        states = [value for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes")]
        base, rate = line(timed)
        return StepProfile(peak.bytes, sum(value.nbytes for value in states), base, rate, update, evaluated)
    finally:
        optimizer.state.clear()


def _unpaged(optimizer: Any) -> Any:
    """An optimizer whose states will lie where torch counts and frees them: bitsandbytes never frees paged ones, so
    that those of a trial would be held beside those of the run."""
    if "is_paged" in vars(optimizer):
        optimizer.is_paged = False
    return optimizer


def num_processes() -> int:
    """Of this run."""
    import torch

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def largest(value: float) -> float:
    """The largest value of all processes."""
    import torch

    if num_processes() == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor(float(value), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found.item()


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Base and rate, neither negative, of the line through (positions, seconds) that has the least relative error."""
    import numpy

    x, y = (numpy.array(column, dtype=float) for column in zip(*points, strict=True))
    if len(set(x)) > 1:
        base, rate = numpy.linalg.lstsq(numpy.stack([1 / y, x / y], 1), numpy.ones(len(y)), rcond=None)[0]
        if base >= 0 and rate >= 0:
            return float(base), float(rate)
        if rate < 0:
            return float(numpy.median(y)), 0.0
    return 0.0, float(numpy.median(y / x))


def _timed(call: Callable, *args: Any) -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.monotonic()
    call(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - begun


def _update(optimizer: Any) -> float:
    """Seconds of a step that changes no weight: rate and decay are 0. Gradients that are no numbers are set to 0,
    for 0 times infinity is no number."""
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
        for parameter in group["params"]:
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                parameter.grad.zero_()
    return _timed(optimizer.step)
