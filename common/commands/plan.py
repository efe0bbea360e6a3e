"""What a recipe will take of memory and time, and what would fit. Of the model, only config and tokenizer are read.

    tunebook plan qlora_alpaca --model path/to/model --dataset rows.jsonl
    tunebook plan my_recipe.py --model path/to/model --max_length 2048 --gpu "24 GB"

The recipe's own file runs up to its forecast, with a model that has no weights, so that a copy of yours is planned as
it is. Any flag of the recipe may follow. Nothing is written into its output_dir. Ends with 1 where it does not fit.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tunebook.common import catalog
from tunebook.common.errors import CheckFailed, UserError

OURS = ("output_dir", "dry_run", "overwrite", "resume")  # flags of a recipe that a plan sets itself


@dataclass
class Args:
    # One of `tunebook ls`, or a file.
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE", help_behavior_hint="")] = ""
    gpu: str = ""  # plan for a GPU of this memory, like "16 GB" ("16 GB fp16": a T4); without it, for this device
    time: bool = True  # also measure the time, where it fits this device: some steps of copies with few layers
    json: str = ""  # also write the plan to this file
    rest: tyro.conf.Suppress[list[str]] = field(default_factory=list)  # flags of the recipe


def main(args: Args) -> None:
    from tunebook.common import files
    from tunebook.common.estimate import gpus, planning

    if args.recipe in ("", "[]") or args.recipe.startswith("-"):  # "[]": what tyro makes of none before unknown flags
        first = next(iter(catalog.recipes()))
        raise UserError(f"name a recipe first: tunebook plan {first} --model ... (tunebook ls shows them)")
    file = catalog.find(args.recipe, "tunebook plan")
    card = gpus.named(args.gpu) if args.gpu else None
    for word in args.rest:
        name = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if word.startswith("--") and name in OURS:
            raise UserError(f"tunebook plan: --{name} is not for a plan, which writes nothing")
    with tempfile.TemporaryDirectory() as folder:
        plan = planning.plan(file, args.rest, Path(folder), card)
        show(plan)
        unknown = {"unknown": "it was not asked for"}
        plan["time"] = planning.time(file, args.rest, Path(folder), plan) if args.time else unknown
        print(took(plan))
    if args.json:
        files.write_json(args.json, plan)
    if not plan["fits"]:
        raise CheckFailed(f"it does not fit into {plan['device']}; the table says what would")


def show(plan: dict[str, Any]) -> None:
    """Print the parts, the peak, and the table of what would fit."""
    from rich.table import Table

    from tunebook.common.estimate.arithmetic import MOST_ROWS
    from tunebook.common.format import byte_size
    from tunebook.common.process.terminal import printer

    console, longest = printer(), plan["longest"]
    share = 100 * plan["trainable"] / plan["parameters"]
    console.print(
        f"{plan['recipe']} on {plan['model']}: {plan['parameters']:,} parameters, of which {plan['trainable']:,} "
        f"train ({share:.2g} %); longest batch {longest['rows']} x {longest['width']} ({longest['name']}); "
        f"{plan['steps']:,} steps",
        markup=False,
    )
    parts = Table("part", "", box=None, pad_edge=False)
    for name, size in plan["parts"].items():
        if name != "process" or not plan["gpu"]:
            parts.add_row(name, byte_size(size))
    verdict = "fits" if plan["fits"] else "does not fit"
    room = f", {byte_size(plan['limit_bytes'])} of which can be had" if plan["here"] else ""
    parts.add_row("peak", f"{byte_size(plan['peak_bytes'])}: {verdict} {plan['device']}{room}")
    console.print(parts)
    rows, width = longest["rows"] * plan["joined"], longest["width"] // plan["joined"]
    table = Table("method", "activations", "peak", "fits", f"rows of {width}",
                  f"length of {rows} rows", box=None, pad_edge=False)  # fmt: skip
    for row in plan["table"]:
        name = f"{row['method']} (as it is)" if row["own"] else row["method"]
        kept = "recomputed" if row["checkpointing"] else "kept"
        room = [f"{row[key]:,}" if row[key] else "none" for key in ("rows", "width")]
        room[0] += " or more" if row["rows"] == MOST_ROWS else ""
        table.add_row(name, kept, byte_size(row["peak_bytes"]), "yes" if row["fits"] else "no", *room)
    console.print("", table, *notes(plan), sep="\n", markup=False)


def notes(plan: dict[str, Any]) -> list[str]:
    """What the figures leave out."""
    found = []
    if plan["gpu"]:
        found.append(
            "Arithmetic of plain torch. It is without the CUDA context and fragmentation, which take more, and without "
            "Unsloth's kernels, which take less."
        )
        if plan["dtype"] == "float16":
            found.append("This GPU has no bfloat16: it computes in float16, and weights that all train are in float32.")
    else:
        found.append("Arithmetic of tensors; glibc may keep up to as much again of what activations take.")
    if not plan["known_optimizer"]:
        found.append(f"The states of {plan['optimizer']} are not known; they are taken as those of AdamW.")
    return found


def took(plan: dict[str, Any]) -> str:
    """The time in words."""
    from tunebook.common.format import byte_size, duration

    time = plan["time"]
    if "unknown" in time:
        return f"time: not known; {time['unknown']}"
    what = f"about {duration(time['seconds'])} for {plan['steps']:,} steps"
    return f"time: {what}; peak with what the allocator keeps {byte_size(time['peak_bytes'])}; {time['how']}"
