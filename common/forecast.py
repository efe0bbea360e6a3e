"""The forecast of a run: peak memory and time, before it trains; whether it fits, and what would."""

from dataclasses import dataclass, field
from typing import Any

from common import fits, memory, parameter_table, saved, trainers
from common.attempts import OutOfMemory, guarded
from common.distributed import is_main_process
from common.errors import CheckFailed
from common.lengths import IGNORE_INDEX
from common.rehearsal import Actor, processes, worst
from common.rehearsal import rehearse as steps
from common.workload import Workload, of_loader, of_trainer

ROOM = 0.15  # of the limit, which a batch size that was looked for leaves: a run's fragments grow beyond a rehearsal's


@dataclass
class Forecast:
    """What a run will take. Bytes; `parts` are the arithmetic of the moment at which most is held.

    `process` is what the process holds beside the model: libraries and data. A rehearsal adds `allocator`, what was
    taken beyond the arithmetic: glibc keeps and scatters freed blocks, so that a CPU run takes up to twice what its
    tensors do (before glibc 2.38, and how much differs from run to run). Without a rehearsal `seconds` is None.
    `parameters`: what trains (parameter_table.Table). `saved`: what will be saved (saved.size).
    """

    parts: dict[str, int]
    limit_bytes: int
    longest: dict[str, Any]  # rows, width and the name of the longest row
    batch_size: int
    accumulation: int
    steps: int
    rehearsed_bytes: int | None = None
    seconds: float | None = None
    timing: dict[str, float] = field(default_factory=dict)
    parameters: list[parameter_table.Group] = field(default_factory=list)
    saved: dict[str, int] | None = None

    @property
    def arithmetic_bytes(self) -> int:
        return sum(size for name, size in self.parts.items() if name != "allocator")

    @property
    def peak_bytes(self) -> int:
        return self.arithmetic_bytes if self.rehearsed_bytes is None else self.rehearsed_bytes

    def as_dict(self) -> dict[str, Any]:
        own = {"peak_bytes": self.peak_bytes, "arithmetic_bytes": self.arithmetic_bytes}
        own |= {name: value for name, value in vars(self).items() if name != "rehearsed_bytes"}
        return own | {"parameters": [group.as_dict() for group in self.parameters]}

    def line(self) -> str:
        """The forecast in one line."""
        names = {"optimizer": "optimiser"}
        parts = ", ".join(f"{names.get(name, name)} {gib(size)}" for name, size in self.parts.items())
        rows, width = self.longest["rows"], self.longest["width"]
        time = f", {duration(self.seconds)}" if self.seconds is not None else ""
        return (
            f"forecast: {gib(self.peak_bytes)} of {gib(self.limit_bytes)} ({parts}){time}; "
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


def gib(size: float) -> str:
    """2.1 GiB, 85 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.95 * 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """14 min, 35 s, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def rehearse(trainer: Any, find_batch_size: bool = False) -> Forecast:
    """Forecast a run by arithmetic and a few real steps that leave weights, random state and trainer as they were.

    The longest real batch is among the first, so that a run that cannot fit says so now. Prints the forecast.
    Evaluations while training are in the seconds; saving and sampling are not.

    Args:
        find_batch_size: where it does not fit, take the next smaller batch size that divides the rows of a step,
            with as much more accumulation, until it does; the trainer is changed to it.

    Raises:
        CheckFailed: the longest batch does not fit; names it, and what would.
    """
    args = trainer.args
    asked, expected, problem = args.per_device_train_batch_size, None, ""
    for size in trainers.candidates(trainer, find_batch_size):
        if size != args.per_device_train_batch_size:
            say(f"{problem.partition('. ')[0]}; trying {size} rows a batch")
            trainers.set_batch_size(trainer, size)
        with trainers.kept(trainer):
            workload = of_trainer(trainer)
            evaluated = trainers.evaluated(trainer, workload)
            expected, problem = attempt(trainers.actor(trainer), workload, args.optim, evaluated, find_batch_size)
        if not problem:
            break
    if expected is None or problem:
        raise CheckFailed(problem)
    if expected.batch_size != asked:
        was = f"{expected.batch_size} x {expected.accumulation}, where {asked} x "
        say(f"batch size found: {was}{expected.batch_size * expected.accumulation // asked} was asked for")
    expected.show()
    return expected


def rehearse_loop(actor: Actor, loader: Any, optimizer: Any, max_steps: int, evaluated: int = 0) -> Forecast:
    """The same for a plain loop, whose parts are given.

    Args:
        loader: its prepared DataLoader, of rows with `input_ids`.
        optimizer: its optimiser; another of the same kind is used.
        max_steps: of the optimiser.
        evaluated: positions of all evaluations of this process.

    Raises:
        CheckFailed: as `rehearse`.
    """
    workload = of_loader(loader, loader.dataset, actor.accumulation, 0, max_steps)
    expected, problem = attempt(actor, workload, name(optimizer), evaluated)
    if problem:
        raise CheckFailed(problem)
    expected.show()
    return expected


def name(optimizer: Any) -> str:
    """An optimiser as TrainingArguments.optim names its kind."""
    kind = type(optimizer).__name__.lower()
    if kind not in ("adam", "adamw"):
        return kind
    return "adamw_torch_fused" if optimizer.defaults["fused"] else "adamw_torch"


def attempt(
    actor: Actor, workload: Workload, optimizer: str, evaluated: int, agreed: bool = False
) -> tuple[Forecast, str]:
    """The forecast of a workload as it is, and why it cannot be; empty where it fits.

    Args:
        optimizer: named as in TrainingArguments.optim.
        evaluated: positions of all evaluations.
        agreed: a size is being looked for: it must leave room, and where it does not fit in one of several processes,
            it does not in any. Otherwise that one gives up without waiting for the others, who may wait for it in the
            middle of a step.

    Raises:
        CheckFailed: something that is to train would not (parameter_table.Table).
    """
    rows, width = workload.shape
    sizes, measured, problem, limit = None, None, "", memory.limit()
    model = trainers.unwrapped(actor.model)
    table = parameter_table.Table(model)
    try:
        sizes = measure(actor, workload, optimizer)
        if sizes.peak(rows, width) > limit:
            raise OutOfMemory(f"by arithmetic it needs {gib(sizes.peak(rows, width))}")
        measured = steps(actor, workload, table.see)
        measured.peak_bytes += buckets(actor)
        if agreed and measured.peak_bytes > (1 - ROOM) * limit:  # what has just gone well need not a second time
            raise OutOfMemory(f"its steps took {gib(measured.peak_bytes)}, which leaves too little room")
    except OutOfMemory as error:
        problem = str(error)
    if agreed and worst(bool(problem)) and not problem:
        problem = "another process has no memory for its own"
    expected = Forecast(
        parts=sizes.parts(rows, width) if sizes else {},
        limit_bytes=limit,
        longest={"rows": rows, "width": width, "name": workload.name()},
        batch_size=workload.batch_size,
        accumulation=actor.accumulation,
        steps=workload.steps,
    )
    if problem or measured is None or sizes is None:
        return expected, refusal(actor, expected, sizes, workload, problem)
    table.check()
    expected.parameters, expected.saved = [*table.groups.values()], saved.size(model)
    measured = measured.worst()
    expected.rehearsed_bytes = measured.peak_bytes
    expected.parts["optimizer"] += measured.state_bytes - sizes.optimizer
    expected.parts["allocator"] = expected.peak_bytes - expected.arithmetic_bytes
    expected.seconds = measured.seconds(workload, evaluated)
    expected.timing = {name: vars(measured)[name] for name in ("base", "rate", "update", "evaluation_rate")}
    return expected, ""


def measure(actor: Actor, workload: Workload, optimizer: str) -> fits.Sizes:
    """The arithmetic of a run. Small steps are run, which leave nothing.

    Raises:
        OutOfMemory: not even they fit.
    """
    import torch

    from common import footprint

    gpu = torch.cuda.is_available()
    model, batch = trainers.unwrapped(actor.model), actor.collate(workload.longest)
    weights, states = footprint.weights(model), footprint.optimizer_states(model, optimizer)
    if states is None:
        say(f"forecast: the states of {optimizer} are not known; they are taken as those of AdamW until measured")
        states = 2 * footprint.gradients(model)
    try:
        moments = guarded(model, footprint.moments_of, model, actor.step, batch)
    except footprint.Unknown as error:
        moments = None
        say(f"forecast: activations are not known before they are measured: {error}")
    memory.release()
    return fits.Sizes(
        weights=weights,
        gradients=footprint.gradients(model),
        optimizer=states,
        process=memory.held() - weights,  # after steps: weights that are read from a file come to memory when used
        vocabulary=model.get_output_embeddings().weight.shape[0],
        accumulates=actor.accumulation > 1,
        labels=float((batch["labels"] != IGNORE_INDEX).float().mean()),
        moments=moments,
        hidden=model.config.get_text_config().hidden_size if gpu else None,
        update=footprint.update(model, optimizer, gpu),
        buckets=buckets(actor),
    )


def buckets(actor: Actor) -> int:
    """Bytes of the buckets that DistributedDataParallel will make for a model that it does not wrap yet: those of all
    gradients once more (its own gradient_as_bucket_view is off)."""
    from common import footprint

    wrapped = trainers.unwrapped(actor.model) is not actor.model  # then they are in what the process holds
    return 0 if wrapped or processes() == 1 else footprint.gradients(actor.model)


def refusal(actor: Actor, expected: Forecast, sizes: fits.Sizes | None, workload: Workload, problem: str) -> str:
    """Why a run cannot go on, and what would fit."""
    from common import remedies

    rows, width = workload.shape
    what = f"the longest batch, {rows} x {width} ({expected.longest['name']}),"
    text = f"{what} does not fit into {gib(expected.limit_bytes)}: {problem}"
    if sizes is None:
        return f"{text}. The model itself leaves no room to train: take a smaller one, or its base in 4 bits"
    step, needed = expected.batch_size * expected.accumulation, sizes.peak(rows, width)
    # Where arithmetic did fit, the allocator took more; then a quarter less of what a batch takes is looked for.
    fixed = sizes.weights + sizes.optimizer + sizes.process
    limit = min(expected.limit_bytes, fixed + (needed - fixed) * 3 // 4)
    ways = remedies.find(actor, sizes, workload, expected.limit_bytes if needed > expected.limit_bytes else limit, step)
    return f"{text}. What would fit: {'; '.join(ways) if ways else 'nothing with this model and method'}"
