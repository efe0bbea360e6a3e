"""A few real steps before training, which leave no trace: the memory and time that they take."""

import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from tunebook.common import resources
from tunebook.common.errors import CheckFailed
from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.models import parameter_table

TIMING_SECONDS = 3.0  # after which no further step is timed
TIMED_BATCHES = 3  # with several processes, which may wait for each other in a batch: as many in each
QUANTILES = (0.5, 0.25, 0.75, 0.5, 0.25, 0.75)  # of the batches by size: those that are timed after the longest
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|out of memory|could not create a memory", re.I
)
NO_GRAPH = "does not require grad"  # what torch says of a loss that depends on nothing that trains


class OutOfMemory(Exception):
    """A step took more than there is."""


@dataclass
class StepFunctions:
    """Single steps of a trainer or a plain loop.

    Args:
        collate: row indices of the dataset -> a batch.
        step: forward and backward on a batch; gradients are added.
        optimizer: makes a new optimizer for the model, with any learning rate.
        evaluate: forward on a batch, as in an evaluation.
        accumulation: batches per optimizer step.
    """

    model: Any
    collate: Callable[[list[int]], dict[str, Any]]
    step: Callable[[dict[str, Any]], Any]
    optimizer: Callable[[], Any]
    evaluate: Callable[[dict[str, Any]], Any]
    accumulation: int

    @property
    def unwrapped(self) -> Any:
        """The model without DistributedDataParallel."""
        wrapped = isinstance(self.model, torch.nn.parallel.DistributedDataParallel)
        return self.model.module if wrapped else self.model


@dataclass
class StepProfile:
    """Bytes and seconds of steps. A batch takes base + rate·positions seconds, the optimizer's step `update`."""

    peak_bytes: int
    state_bytes: int
    base: float
    rate: float
    update: float
    evaluation_rate: float  # seconds per position

    def max_over_processes(self) -> "StepProfile":
        peak_bytes, state_bytes, *times = map(max_over_processes, vars(self).values())
        return StepProfile(int(peak_bytes), int(state_bytes), *times)

    def seconds(self, schedule: BatchSchedule, eval_positions: int) -> float:
        """All batches and steps of a schedule, and its evaluations."""
        batches = self.base * len(schedule.rows) + self.rate * float(schedule.positions.sum())
        return batches + self.update * schedule.steps + self.evaluation_rate * eval_positions

    def step_seconds(self, schedule: BatchSchedule, accumulation: int) -> list[float]:
        """Of each step of a schedule; the last step of an epoch may have fewer batches."""
        each = self.base + self.rate * schedule.positions
        per_epoch = len(schedule.starts) - 1 if schedule.epochs > 1 else len(each)
        epochs = [each[start : start + per_epoch] for start in range(0, len(each), per_epoch)]
        sums = [numpy.add.reduceat(epoch, range(0, len(epoch), accumulation)) for epoch in epochs]
        return (numpy.concatenate(sums) + self.update).tolist()


def profile_steps(run: StepFunctions, schedule: BatchSchedule, after_backward: Callable[[], None]) -> StepProfile:
    """Steps with learning rate 0 on a median batch, the longest, and more until TIMING_SECONDS are over.

    The first creates the optimizer's states, so that the longest batch meets them, as in training; with accumulation
    it also meets the gradients of a batch before it. State is restored as by `catch_oom`.

    Args:
        after_backward: called after each backward pass, before its gradients are cleared.

    Raises:
        OutOfMemory: with the allocator's message.
    """
    resources.release()
    peak = resources.Peak()
    try:
        return catch_oom(run.model, _profile, run, schedule, peak, after_backward)
    finally:
        peak.stop()


def _profile(
    run: StepFunctions, schedule: BatchSchedule, peak: resources.Peak, after_backward: Callable[[], None]
) -> StepProfile:
    timings: list[tuple[int, float]] = []
    optimizer = run.optimizer()
    if "is_paged" in vars(optimizer):  # bitsandbytes never frees paged states, and torch does not count them
        optimizer.is_paged = False
    try:
        median = run.collate(schedule.at(0.5))
        _seconds(run.step, median)
        after_backward()
        _update(optimizer)
        longest, seconds = run.collate(schedule.longest), 0.0
        for _ in range(2 if torch.cuda.is_available() else 1):  # the first step of a size compiles its kernels
            if run.accumulation == 1:
                run.model.zero_grad(set_to_none=True)
            seconds = _seconds(run.step, longest)
        timings.append((longest["input_ids"].numel(), seconds))
        after_backward()
        update = _update(optimizer)
        run.model.zero_grad(set_to_none=True)
        start, distributed = time.monotonic(), torch.distributed.is_initialized()
        for quantile in QUANTILES:
            batch = run.collate(schedule.at(quantile))
            timings.append((batch["input_ids"].numel(), _seconds(run.step, batch)))
            after_backward()
            run.model.zero_grad(set_to_none=True)
            if len(timings) == TIMED_BATCHES if distributed else time.monotonic() - start > TIMING_SECONDS:
                break
        evaluation_rate = _seconds(run.evaluate, median) / median["input_ids"].numel()
        states = [value for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes")]
        base, rate = fit_line(timings)
        return StepProfile(peak.bytes, sum(value.nbytes for value in states), base, rate, update, evaluation_rate)
    finally:
        optimizer.state.clear()


def fit_line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Base and rate, neither negative, of the line through (positions, seconds) with the least relative error."""
    x, y = (numpy.array(column, dtype=float) for column in zip(*points, strict=True))
    if len(set(x)) > 1:
        base, rate = numpy.linalg.lstsq(numpy.stack([1 / y, x / y], 1), numpy.ones(len(y)), rcond=None)[0]
        if base >= 0 and rate >= 0:
            return float(base), float(rate)
        if rate < 0:
            return float(numpy.median(y)), 0.0
    return 0.0, float(numpy.median(y / x))


def _seconds(call: Callable, *args: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.monotonic()
    call(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - start


def _update(optimizer: Any) -> float:
    """Seconds of an optimizer step that changes no weight: learning rate and decay are 0. Gradients that are not finite
    are set to 0, because 0 times infinity is NaN."""
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
        for parameter in group["params"]:
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                parameter.grad.zero_()
    return _seconds(optimizer.step)


def num_processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def max_over_processes(value: float) -> float:
    if num_processes() == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(float(value), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest.item()


def catch_oom(model: Any, run: Callable, *args: Any) -> Any:
    """run(*args) with all state restored; running out of memory becomes OutOfMemory, whoever reports it.

    Raises:
        CheckFailed: the loss depends on nothing that trains.
        OutOfMemory: with the allocator's message; the frames that held the failed step's tensors are gone by then.
    """
    try:
        with restore_state(model), _allocation_fails():
            return run(*args)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if NO_GRAPH in str(error):
            raise CheckFailed(parameter_table.nothing_reached(model)) from error
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    resources.release()
    raise OutOfMemory(failure)


@contextmanager
def restore_state(model: Any) -> Iterator[None]:
    """Clears gradients and compiled graphs afterwards, and restores training mode and all random states."""
    training = model.training
    python, np, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        _reset_compiled(model)
        random.setstate(python)
        numpy.random.set_state(np)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


def _reset_compiled(model: Any) -> None:
    """Drop what torch.compile has made of the steps: training on graphs from before `train` gave gradients of NaN
    (unslothai/unsloth pull request 6511). A step that ran out of memory also leaves Unsloth's counts of checkpoints and
    their buffers half way. `train` would reset both, with a warning, where Unsloth has seen such steps."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    checkpoints = sys.modules.get("unsloth_zoo.gradient_checkpointing")
    if checkpoints is not None and "GPU_BUFFERS" in vars(checkpoints):  # made with the first of its checkpoints
        checkpoints.reset_unsloth_gradient_checkpointing_buffers()
    for module in model.modules():
        seen = vars(module).get("_unsloth_pretrain_marker")
        if seen is not None:
            seen["seen"] = False


@contextmanager
def _allocation_fails() -> Iterator[None]:
    """Without a GPU: allocations past the memory limit raise an error, where the kernel would kill the process."""
    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    import resource

    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    total = psutil.Process().memory_info().vms + resources.limit() - resources.held()
    bounds = [value for value in (soft, hard, total) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
