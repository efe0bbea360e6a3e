"""The forecast of a run: peak memory and time, before it trains; whether it fits, and what would."""

from dataclasses import dataclass, field
from typing import Any

from tunebook.common import resources
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import CheckFailed
from tunebook.common.estimate import arithmetic, saved_files, trainer_steps
from tunebook.common.estimate.probe import StepFunctions, largest, num_processes, profile_steps
from tunebook.common.estimate.schedule import BatchSchedule, of_loader, of_trainer
from tunebook.common.estimate.trial import OutOfMemory, catch_oom
from tunebook.common.format import byte_size, duration
from tunebook.common.models import device, model_bytes, parameter_table

# Of the limit, which a batch size that was looked for leaves: a run's fragments grow beyond those of its first steps.
HEADROOM = 0.15


@dataclass
class Forecast:
    """What a run will take. Bytes; `parts` are the arithmetic of the moment at which most is held.

    `process` is what the process holds beside the model: libraries and data. Measured steps add `allocator`, what was
    taken beyond the arithmetic: glibc keeps and scatters freed blocks, so that a CPU run takes up to twice what its
    tensors do (before glibc 2.38, and how much differs from run to run). `parameters`: what trains
    (parameter_table.Table). `saved`: what will be saved (saved.size).
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

    @property
    def arithmetic_bytes(self) -> int:
        return sum(size for name, size in self.parts.items() if name != "allocator")

    @property
    def peak_bytes(self) -> int:
        return self.arithmetic_bytes if self.measured_bytes is None else self.measured_bytes

    def as_dict(self) -> dict[str, Any]:
        own = {"peak_bytes": self.peak_bytes, "arithmetic_bytes": self.arithmetic_bytes}
        own |= {name: value for name, value in vars(self).items() if name != "measured_bytes"}
        return own | {"parameters": [group.as_dict() for group in self.parameters]}

    def line(self) -> str:
        """The forecast in one line."""
        parts = ", ".join(f"{name} {byte_size(size)}" for name, size in self.parts.items())
        rows, width = self.longest["rows"], self.longest["width"]
        time = f", {duration(self.seconds)}" if self.seconds is not None else ""
        return (
            f"forecast: {byte_size(self.peak_bytes)} of {byte_size(self.limit_bytes)} ({parts}){time}; "
            f"longest batch {rows} x {width} ({self.longest['name']})"
        )

    def show(self) -> None:
        """Print what trains, and the forecast."""
        say(parameter_table.text(self.parameters))
        if self.saved is not None:
            say(f"to be saved: {self.saved['file']:,} bytes")
        say(self.line())


def say(text: str) -> None:
    """Print it, in the first process alone."""
    if is_main_process():
        print(text, flush=True)


def forecast(trainer: Any, find_batch_size: bool = False) -> Forecast:
    """Forecast a run by arithmetic and a few real steps that leave weights, random state and trainer as they were.

    The longest real batch is among the first, so that a run that cannot fit says so now. Prints the forecast.
    Evaluations while training are in the seconds; saving and sampling are not.

    Args:
        find_batch_size: where it does not fit, take the next smaller batch size that divides the rows of a step,
            with as much more accumulation, until it does; the trainer is changed to it.

    Raises:
        CheckFailed: the longest batch does not fit; names it, and what would.
        PlanReady: in a plan, instead.
    """
    args = trainer.args
    if device.planned():
        from tunebook.common.estimate.meta_model import PlanReady

        recomputes = args.gradient_checkpointing or trainer.model.is_gradient_checkpointing
        raise PlanReady(trainer_steps.step_functions(trainer), of_trainer(trainer), recomputes)
    asked, expected, problem = args.per_device_train_batch_size, None, ""
    for size in trainer_steps.batch_sizes(trainer, find_batch_size):
        if size != args.per_device_train_batch_size:
            say(f"{problem.partition('. ')[0]}; trying {size} rows a batch")
            trainer_steps.set_batch_size(trainer, size)
        with trainer_steps.preserve_trainer(trainer):
            schedule = of_trainer(trainer)
            evaluated = trainer_steps.evaluation_positions(trainer, schedule)
            run = trainer_steps.step_functions(trainer)
            expected, problem = attempt(run, schedule, args.optim, evaluated, find_batch_size)
        if not problem:
            break
    if expected is None or problem:
        raise CheckFailed(problem)
    if expected.batch_size != asked:
        was = f"{expected.batch_size} x {expected.accumulation}, where {asked} x "
        say(f"batch size found: {was}{expected.batch_size * expected.accumulation // asked} was asked for")
    expected.show()
    return expected


def forecast_loop(run: StepFunctions, loader: Any, optimizer: str, max_steps: int) -> Forecast:
    """The same for a plain loop, whose parts are given; its evaluations are not in the seconds.

    Args:
        loader: its prepared DataLoader, of rows with `input_ids`.
        optimizer: named as in TrainingArguments.optim.
        max_steps: of the optimizer.

    Raises:
        CheckFailed, PlanReady: as `forecast`.
    """
    schedule = of_loader(loader, loader.dataset, run.accumulation, 0, max_steps)
    if device.planned():
        from tunebook.common.estimate.meta_model import PlanReady

        raise PlanReady(run, schedule, run.model.is_gradient_checkpointing, optimizer)
    expected, problem = attempt(run, schedule, optimizer, 0)
    if problem:
        raise CheckFailed(problem)
    expected.show()
    return expected


def attempt(
    run: StepFunctions, schedule: BatchSchedule, optimizer: str, evaluated: int, agreed: bool = False
) -> tuple[Forecast, str]:
    """The forecast of a schedule as it is, and why it cannot be; empty where it fits.

    Args:
        optimizer: named as in TrainingArguments.optim.
        evaluated: positions of all evaluations.
        agreed: a size is being looked for: it must leave room, and where it does not fit in one of several processes,
            it does not in any. Otherwise that one gives up without waiting for the others, who may wait for it in the
            middle of a step.

    Raises:
        CheckFailed: something that is to train would not (parameter_table.Table).
    """
    rows, width = schedule.shape
    model_memory, measured, problem, limit = None, None, "", resources.limit()
    model = trainer_steps.unwrapped(run.model)
    table = parameter_table.Table(model)
    try:
        model_memory = measure(run, schedule, optimizer)
        if model_memory.peak(rows, width) > limit:
            raise OutOfMemory(f"by arithmetic it needs {byte_size(model_memory.peak(rows, width))}")
        measured = profile_steps(run, schedule, table.see)
        measured.peak_bytes += buckets(run)
        if agreed and measured.peak_bytes > (1 - HEADROOM) * limit:  # what has just gone well need not a second time
            raise OutOfMemory(f"its steps took {byte_size(measured.peak_bytes)}, which leaves too little room")
    except OutOfMemory as error:
        problem = str(error)
    if agreed and largest(bool(problem)) and not problem:
        problem = "another process has no memory for its own"
    expected = Forecast(
        parts=model_memory.parts(rows, width) if model_memory else {},
        limit_bytes=limit,
        longest={"rows": rows, "width": width, "name": schedule.name()},
        batch_size=schedule.batch_size,
        accumulation=run.accumulation,
        steps=schedule.steps,
    )
    if problem or measured is None or model_memory is None:
        return expected, refusal(run, expected, model_memory, schedule, problem)
    table.check()
    expected.parameters, expected.saved = [*table.groups.values()], saved_files.size(model)
    measured = measured.of_all_processes()
    expected.measured_bytes = measured.peak_bytes
    expected.parts["optimizer"] += measured.state_bytes - model_memory.optimizer
    expected.parts["allocator"] = expected.peak_bytes - expected.arithmetic_bytes
    expected.seconds = measured.seconds(schedule, evaluated)
    expected.timing = {name: vars(measured)[name] for name in ("base", "rate", "update", "evaluation_rate")}
    return expected, ""


def measure(run: StepFunctions, schedule: BatchSchedule, optimizer: str) -> arithmetic.MemoryModel:
    """The arithmetic of a run. Small steps are run, which leave nothing.

    Raises:
        OutOfMemory: not even they fit.
    """
    import torch

    from tunebook.common.estimate import activations

    model, batch = trainer_steps.unwrapped(run.model), run.collate(schedule.longest)
    weights = model_bytes.weights(model)
    if arithmetic.optimizer_states(model, optimizer) is None:
        say(f"forecast: the states of {optimizer} are not known; they are taken as those of AdamW until measured")
    try:
        profile = catch_oom(model, activations.profile_batch, model, run.step, batch)
    except activations.Unpredictable as error:
        profile = None
        say(f"forecast: activations are not known before they are measured: {error}")
    resources.release()
    process = resources.held() - weights  # after steps: weights that are read from a file come to memory when used
    gpu = torch.cuda.is_available()
    found = arithmetic.memory_model(model, optimizer, batch, run.accumulation, gpu, process, profile)
    found.buckets = buckets(run)
    return found


def buckets(run: StepFunctions) -> int:
    """Bytes of the buckets that DistributedDataParallel will make for a model that it does not wrap yet: those of all
    gradients once more (its own gradient_as_bucket_view is off)."""
    wrapped = trainer_steps.unwrapped(run.model) is not run.model  # then they are in what the process holds
    return 0 if wrapped or num_processes() == 1 else model_bytes.gradients(run.model)


def refusal(
    run: StepFunctions,
    expected: Forecast,
    model_memory: arithmetic.MemoryModel | None,
    schedule: BatchSchedule,
    problem: str,
) -> str:
    """Why a run cannot go on, and what would fit."""
    from tunebook.common.estimate import suggestions

    rows, width = schedule.shape
    what = f"the longest batch, {rows} x {width} ({expected.longest['name']}),"
    text = f"{what} does not fit into {byte_size(expected.limit_bytes)}: {problem}"
    if model_memory is None:
        return f"{text}. The model itself leaves no room to train: take a smaller one, or its base in 4 bits"
    limit, needed = expected.limit_bytes, model_memory.peak(rows, width)
    if needed <= limit:  # the allocator took more: then a quarter less of what a batch takes is looked for
        fixed = model_memory.weights + model_memory.optimizer + model_memory.process
        limit = min(limit, fixed + (needed - fixed) * 3 // 4)
    ways = suggestions.suggestions(run, model_memory, schedule, limit, expected.batch_size * expected.accumulation)
    return f"{text}. What would fit: {'; '.join(ways) if ways else 'nothing with this model and method'}"
