"""The forecast of a run: peak memory and time, before it trains; whether it fits, and what would."""

from dataclasses import dataclass, field
from typing import Any

from common import fits, memory, trainers
from common.cli import Refused, UserError
from common.masking import IGNORE
from common.rehearsal import Actor, OutOfMemory, guarded
from common.rehearsal import rehearse as steps
from common.sampling import lengths_of
from common.workload import Workload, of_trainer


@dataclass
class Forecast:
    """What a run will take. Bytes; `parts` are the arithmetic of the moment at which most is held.

    `process` is what the process holds beside the model: libraries, data, and what an allocator keeps. Without a
    rehearsal `seconds` is None.
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

    @property
    def arithmetic_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def peak_bytes(self) -> int:
        return self.arithmetic_bytes if self.rehearsed_bytes is None else self.rehearsed_bytes

    def as_dict(self) -> dict[str, Any]:
        own = {"peak_bytes": self.peak_bytes, "arithmetic_bytes": self.arithmetic_bytes}
        return own | {name: value for name, value in vars(self).items() if name != "rehearsed_bytes"}

    def line(self) -> str:
        """The forecast in one line."""
        names = {"optimizer": "optimiser"}
        parts = ", ".join(f"{names.get(name, name)} {gib(self.parts[name])}" for name in fits.PARTS)
        rows, width = self.longest["rows"], self.longest["width"]
        time = f", {duration(self.seconds)}" if self.seconds is not None else ""
        return (
            f"forecast: {gib(self.peak_bytes)} GiB of {gib(self.limit_bytes)} ({parts}){time}; "
            f"longest batch {rows} x {width} ({self.longest['name']})"
        )


def gib(size: float) -> str:
    """2.1 for 2.1 GiB; two digits more where it is small."""
    return f"{size / 2**30:.1f}" if size >= 0.95 * 2**30 else f"{size / 2**30:.2g}"


def duration(seconds: float) -> str:
    """14 min, 35 s, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def rehearse(trainer: Any, find_batch_size: bool = False) -> Forecast:
    """Forecast a run by arithmetic and a few real steps that leave weights, random state and trainer as they were.

    The longest real batch is run first, so that a run that cannot fit says so now. Prints the forecast. Evaluations
    while training are in the seconds; saving and sampling are not.

    Args:
        find_batch_size: where it does not fit, take the next smaller batch size that divides the rows of a step,
            with as much more accumulation, until it does; the trainer is changed to it.

    Raises:
        Refused: the longest batch does not fit; names it, and what would.
        UserError: find_batch_size with DeepSpeed, which keeps sizes of its own.
    """
    if find_batch_size and trainer.is_deepspeed_enabled:
        raise UserError("--find_batch_size: DeepSpeed keeps its own batch sizes; set per_device_train_batch_size")
    asked = trainer.args.per_device_train_batch_size
    for size in trainers.candidates(trainer, find_batch_size):
        if size != trainer.args.per_device_train_batch_size:
            print(f"batch size {trainer.args.per_device_train_batch_size} does not fit; trying {size}", flush=True)
            trainers.set_batch_size(trainer, size)
        expected, problem = attempt(trainer)
        if problem is None:
            break
    else:
        raise Refused(problem)
    if expected.batch_size != asked:
        print(f"found: {expected.batch_size} rows a device and {expected.accumulation} batches a step, as many rows")
    print(expected.line(), flush=True)
    return expected


def attempt(trainer: Any) -> tuple[Forecast, str | None]:
    """The forecast at the trainer's batch size, and what is wrong with it, or None where it fits."""
    with trainers.kept(trainer):
        workload, run = of_trainer(trainer), trainers.actor(trainer)
        sizes, problem, measured = None, None, None
        limit = memory.limit()
        try:
            sizes = measure(run, workload, trainer.args.optim)
            needed = sizes.peak(*workload.shape)
            if needed > limit:
                raise OutOfMemory(f"by arithmetic it needs {gib(needed)} GiB")
            measured = steps(run, workload)
        except OutOfMemory as error:
            problem = str(error)
        expected = Forecast(
            parts=sizes.parts(*workload.shape) if sizes else {},
            limit_bytes=limit,
            longest={"rows": workload.shape[0], "width": workload.shape[1], "name": workload.name()},
            batch_size=trainer.args.per_device_train_batch_size,
            accumulation=run.accumulation,
            steps=workload.steps,
        )
        if measured is None:
            return expected, refusal(expected, sizes, workload, problem)
        expected.rehearsed_bytes = measured.peak_bytes
        expected.parts["optimizer"] = measured.state_bytes
        expected.seconds = measured.seconds(workload, trainers.evaluated(trainer, workload.steps))
        expected.timing = {name: vars(measured)[name] for name in ("base", "rate", "update", "evaluation_rate")}
    return expected, None


def measure(run: Actor, workload: Workload, optimizer: str) -> fits.Sizes:
    """The arithmetic of a run. Small steps are run, which leave nothing.

    Raises:
        OutOfMemory: not even they fit.
    """
    from common import footprint

    model, batch = run.model, run.collate(workload.longest)
    weights, states = footprint.weights(model), footprint.optimizer_states(model, optimizer)
    if states is None:
        print(f"forecast: the states of {optimizer} are not known; they are taken as those of AdamW until measured")
        states = 2 * footprint.gradients(model)
    process = memory.held() - weights
    moments = guarded(model, footprint.moments, model, run.step, batch)
    return fits.Sizes(
        weights=weights,
        gradients=footprint.gradients(model),
        optimizer=states,
        process=process,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        device=model.device.type,
        accumulates=run.accumulation > 1,
        labels=float((batch["labels"] != IGNORE).float().mean()),
        moments=moments,
    )


def refusal(expected: Forecast, sizes: fits.Sizes | None, workload: Workload, problem: str | None) -> str:
    """Why a run cannot go on, and what would fit."""
    rows, width = workload.shape
    limit = expected.limit_bytes
    what = f"the longest batch, {rows} x {width} ({expected.longest['name']}),"
    text = f"{what} does not fit into {gib(limit)} GiB: {problem}"
    if sizes is None:
        return f"{text}. The model itself leaves no room to train: take a smaller one, or a base in 4 bits (QLoRA)"
    ways, step = [], expected.batch_size * expected.accumulation
    most = fits.most_rows(sizes, width, limit)
    if most and most < rows:
        size = fits.divisor(step, most)
        ways.append(f"--per_device_train_batch_size {size} --gradient_accumulation_steps {step // size}")
    length = fits.longest_width(sizes, rows, limit, width)
    if length and length < width:
        lost = int((lengths_of(workload.dataset) > length).sum())
        ways.append(f"--max_length {length} (it drops {lost} rows)")
    return f"{text}. What would fit: {'; '.join(ways) or 'nothing of this model'}. Or add --find_batch_size"
