"""The forecast of a run: peak memory and time before it trains, whether it fits, and what would."""

from dataclasses import dataclass, field
from typing import Any

import torch

from tunebook.common import resources
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import CheckFailed
from tunebook.common.estimate import activations, arithmetic, saved_files, schedule, suggestions, trainer_steps
from tunebook.common.estimate.meta_model import PlanReady
from tunebook.common.estimate.probe import (
    OutOfMemory,
    StepFunctions,
    catch_oom,
    max_over_processes,
    num_processes,
    profile_steps,
)
from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.format import byte_size, duration
from tunebook.common.models import device, model_bytes, parameter_table
from tunebook.common.process import progress

# Share of the limit that --find_batch_size leaves free: a run's fragments grow beyond those of its first steps.
HEADROOM = 0.15


@dataclass
class Forecast:
    """What a run will take, in bytes; `parts` are those of the moment at which most is held.

    `process`: libraries and data. `allocator`: what was measured beyond the arithmetic; glibc keeps and scatters freed
    blocks, so that a CPU run takes up to twice what its tensors do (before glibc 2.38, and how much differs from run to
    run). `saved`: as saved_files.size.
    """

    parts: dict[str, int]
    limit_bytes: int
    longest: dict[str, Any]  # rows, width and the name of the longest row
    batch_size: int
    accumulation: int
    steps: int
    measured_bytes: int | None = None
    seconds: float | None = None
    timing: dict[str, float] = field(default_factory=dict)
    parameters: list[parameter_table.Group] = field(default_factory=list)
    saved: dict[str, int] | None = None
    costs: list[float] = field(default_factory=list)  # seconds of each step

    @property
    def arithmetic_bytes(self) -> int:
        return sum(size for name, size in self.parts.items() if name != "allocator")

    @property
    def peak_bytes(self) -> int:
        return self.arithmetic_bytes if self.measured_bytes is None else self.measured_bytes

    def as_dict(self) -> dict[str, Any]:
        values = {"peak_bytes": self.peak_bytes, "arithmetic_bytes": self.arithmetic_bytes}
        values |= {name: value for name, value in vars(self).items() if name not in ("measured_bytes", "costs")}
        return values | {"parameters": [group.as_dict() for group in self.parameters]}

    def summary(self) -> str:
        parts = ", ".join(f"{name} {byte_size(size)}" for name, size in self.parts.items())
        rows, width = self.longest["rows"], self.longest["width"]
        time = f", {duration(self.seconds)}" if self.seconds is not None else ""
        return (
            f"forecast: {byte_size(self.peak_bytes)} of {byte_size(self.limit_bytes)} ({parts}){time}; "
            f"longest batch {rows} x {width} ({self.longest['name']})"
        )

    def show(self) -> None:
        """Print what trains, and the forecast."""
        print_once(parameter_table.text(self.parameters))
        if self.saved is not None:
            print_once(f"to be saved: {self.saved['file']:,} bytes")
        print_once(self.summary())


def print_once(text: str) -> None:
    """Print in the main process."""
    if is_main_process():
        print(text, flush=True)


def forecast(trainer: Any, find_batch_size: bool = False) -> Forecast:
    """Forecast a run by arithmetic and a few real steps, after which all state is restored. Prints the forecast.

    The longest batch is among the steps, so that a run that cannot fit says so now. Evaluations are in the seconds;
    saving and sampling are not.

    Args:
        find_batch_size: change the trainer to the largest batch size that fits and divides the rows of a step, with as
            much more accumulation.

    Raises:
        CheckFailed: the longest batch does not fit; names it, and what would.
        PlanReady: in a plan, instead.
    """
    args = trainer.args
    if device.planned():
        checkpointing = args.gradient_checkpointing or trainer.model.is_gradient_checkpointing
        raise PlanReady(trainer_steps.step_functions(trainer), schedule.of_trainer(trainer), checkpointing)
    asked, result, problem = args.per_device_train_batch_size, None, ""
    for size in trainer_steps.batch_sizes(trainer) if find_batch_size else [asked]:
        if size != asked:
            print_once(f"{problem.partition('. ')[0]}; trying {size} rows a batch")
            trainer_steps.set_batch_size(trainer, size)
        with trainer_steps.preserve_trainer(trainer):
            batches = schedule.of_trainer(trainer)
            eval_positions = schedule.evaluation_positions(trainer, batches)
            run = trainer_steps.step_functions(trainer)
            result, problem = attempt(run, batches, args.optim, eval_positions, find_batch_size)
        if not problem:
            break
    if result is None or problem:
        raise CheckFailed(problem)
    if result.batch_size != asked:
        was = f"{result.batch_size} x {result.accumulation}, where {asked} x "
        print_once(f"batch size found: {was}{result.batch_size * result.accumulation // asked} was asked for")
    result.show()
    return result


def forecast_loop(run: StepFunctions, loader: Any, optimizer: str, max_steps: int) -> Forecast:
    """The same for a plain loop; its evaluations are not in the seconds.

    Args:
        loader: its prepared DataLoader, of rows with `input_ids`.
        optimizer: named as in TrainingArguments.optim.
    """
    batches = schedule.of_loader(loader, loader.dataset, run.accumulation, 0, max_steps)
    if device.planned():
        raise PlanReady(run, batches, run.model.is_gradient_checkpointing, optimizer)
    result, problem = attempt(run, batches, optimizer)
    if problem:
        raise CheckFailed(problem)
    result.show()
    return result


def attempt(
    run: StepFunctions, batches: BatchSchedule, optimizer: str, eval_positions: int = 0, searching: bool = False
) -> tuple[Forecast, str]:
    """The forecast, and why the run does not fit; empty where it does.

    Args:
        searching: for a batch size: it must leave HEADROOM, and has to fit in all processes. Otherwise a process where
            it does not fit gives up without waiting for the others, who may wait for it in the middle of a step.

    Raises:
        CheckFailed: something that is to train would not (parameter_table.Table).
    """
    rows, width = batches.shape
    resources.release()  # of an attempt before
    memory, profile, problem, limit = None, None, "", resources.limit()
    table = parameter_table.Table(run.unwrapped)
    try:
        with progress.start("small steps for the forecast"):
            memory = estimate_memory(run, batches, optimizer)
        if memory.peak(rows, width) > limit:
            raise OutOfMemory(f"by arithmetic it needs {byte_size(memory.peak(rows, width))}")
        with progress.start("steps on a middle and the longest batch"):
            profile = profile_steps(run, batches, table.see)
        profile.peak_bytes += ddp_buckets(run)
        if searching and profile.peak_bytes > (1 - HEADROOM) * limit:
            raise OutOfMemory(f"its steps took {byte_size(profile.peak_bytes)}, which leaves too little room")
    except OutOfMemory as error:
        problem = str(error)
    if searching and max_over_processes(bool(problem)) and not problem:
        problem = "another process has no memory for its own"
    result = Forecast(
        parts=memory.parts(rows, width) if memory else {},
        limit_bytes=limit,
        longest={"rows": rows, "width": width, "name": batches.name()},
        batch_size=batches.batch_size,
        accumulation=run.accumulation,
        steps=batches.steps,
    )
    if problem or profile is None or memory is None:
        return result, refusal(run, result, memory, batches, problem)
    table.check()
    result.parameters, result.saved = [*table.groups.values()], saved_files.size(run.unwrapped)
    profile = profile.max_over_processes()
    result.measured_bytes = profile.peak_bytes
    result.parts["optimizer"] += profile.state_bytes - memory.optimizer
    result.parts["allocator"] = result.peak_bytes - result.arithmetic_bytes
    result.seconds = profile.seconds(batches, eval_positions)
    result.costs = profile.step_seconds(batches, run.accumulation)
    result.timing = {name: vars(profile)[name] for name in ("base", "rate", "update", "evaluation_rate")}
    return result, ""


def estimate_memory(run: StepFunctions, batches: BatchSchedule, optimizer: str) -> arithmetic.MemoryModel:
    """The arithmetic of a run, with activations from small steps.

    Raises:
        OutOfMemory: not even they fit.
    """
    model, batch = run.unwrapped, run.collate(batches.longest)
    weights = model_bytes.weights(model)
    if arithmetic.optimizer_states(model, optimizer) is None:
        print_once(f"forecast: the states of {optimizer} are not known; they count as AdamW's until measured")
    try:
        profile = catch_oom(model, activations.profile_batch, model, run.step, batch)
    except activations.Unpredictable as error:
        profile = None
        print_once(f"forecast: activations are not known before they are measured: {error}")
    resources.release()
    process = resources.held() - weights  # after steps: weights that are read from a file come to memory when used
    gpu = torch.cuda.is_available()
    memory = arithmetic.memory_model(model, optimizer, batch, run.accumulation, gpu, process, profile)
    memory.buckets = ddp_buckets(run)
    return memory


def ddp_buckets(run: StepFunctions) -> int:
    """Bytes of the buckets that DistributedDataParallel will make for a model that it does not wrap yet: those of all
    gradients once more (its own gradient_as_bucket_view is off)."""
    wrapped = run.unwrapped is not run.model  # then they are in what the process holds
    return 0 if wrapped or num_processes() == 1 else model_bytes.gradients(run.model)


def refusal(
    run: StepFunctions,
    result: Forecast,
    memory: arithmetic.MemoryModel | None,
    batches: BatchSchedule,
    problem: str,
) -> str:
    """Why a run does not fit, and what would."""
    rows, width = batches.shape
    limit = result.limit_bytes
    batch = f"the longest batch, {rows} x {width} ({result.longest['name']}),"
    text = f"{batch} does not fit into {byte_size(limit)}: {problem}"
    if memory is None:
        return f"{text}. The model itself leaves no room to train: take a smaller one, or its base in 4 bits"
    needed = memory.peak(rows, width)
    if needed <= limit:  # the allocator took more: look for a quarter less of what a batch takes
        fixed = memory.weights + memory.optimizer + memory.process
        limit = min(limit, fixed + (needed - fixed) * 3 // 4)
    ways = suggestions.suggestions(run, memory, batches, limit)
    return f"{text}. What would fit: {'; '.join(ways) if ways else 'nothing with this model and method'}"
