"""Several methods side by side on your model and data: the recipes run one after the other, each in its own process.

    tunebook table
    tunebook table --recipes sft_alpaca lora_alpaca lora_alpaca:use_dora=True,lora_r=8 my_recipe.py --dataset rows.jsonl

Any flag of the recipes may follow and is given to all of them; `RECIPE:NAME=VALUE,NAME=VALUE` gives one recipe flags of
its own. All runs see the same rows as often, and the same evaluation. What was finished is not run again.
"""

import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from tunebook.common import catalog, files, format, pages
from tunebook.common.errors import CheckFailed, UserError, nearest
from tunebook.common.report import methods_table

METHODS = ["sft_alpaca", "lora_alpaca", "lora_alpaca:use_dora=True", "qlora_alpaca", "bottleneck_adapters_alpaca",
           "prompt_tuning_alpaca", "prefix_alpaca"]  # fmt: skip
OWN = ("output_dir", "overwrite", "dry_run")  # flags of a recipe that the table sets itself


@dataclass
class Args:
    recipes: list[str] = field(default_factory=lambda: list(METHODS))  # names of `tunebook ls`, or files
    output_dir: str = "runs/table"  # gets table.html, table.md, table.csv, and a folder for each run
    overwrite: bool = False  # run again what is finished
    rest: tyro.conf.Suppress[list[str]] = field(default_factory=list)  # flags that go to every recipe


@dataclass
class Method:
    """One line of the table: a recipe file, and its flags."""

    name: str
    file: Path
    flags: list[str]


def main(args: Args) -> None:
    methods = [method(word) for word in args.recipes]
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for word in args.rest:
        name = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if word.startswith("--") and name in OWN:
            raise UserError(f"--{name} cannot be given to the recipes of a table; it gives each a folder of its own")
    failed = []
    for place, one in enumerate(methods, 1):
        print(f"[{place}/{len(methods)}] {one.name}", flush=True)
        if not finished(one, folder, args):
            failed.append(one.name)
    rows, curves = collect(methods, folder)
    if rows:
        from tunebook.evals.compare import best

        places = {one.name: place_of(one, folder) for one in methods if one.name in curves}
        write(folder, rows, curves, args.rest, best.against_best(places))
    if failed:
        raise CheckFailed(f"these did not end well and are not in the table: {', '.join(failed)}; see their .log files")


def method(word: str) -> Method:
    """What a word of --recipes means.

    Raises:
        UserError: there is no such recipe, or it has no such flag.
    """
    start, _, edits = word.partition(":")
    file = catalog.find(start, "--recipes")
    fields = {field.name: field.type for field in dataclasses.fields(catalog.load(file).Args)}
    flags = []
    for edit in filter(None, edits.split(",")):
        name, equals, value = edit.partition("=")
        if not equals:
            raise UserError(f"--recipes {word}: expected NAME=VALUE, found {edit!r}")
        if name not in fields:
            raise UserError(f"--recipes {word}: {name} is no flag of {file.name}{nearest(name, fields)}")
        if fields[name] not in (bool, "bool"):
            flags += [f"--{name}", value]
        elif value.lower() in ("true", "false"):
            flags.append(f"--{name}" if value.lower() == "true" else f"--no-{name}")
        else:
            raise UserError(f"--recipes {word}: {name} is true or false")
    return Method(" ".join([file.stem, *edits.replace(",", " ").split()]), file, flags)


def place_of(one: Method, folder: Path) -> Path:
    return folder / re.sub(r"[^\w.=-]+", "_", one.name)


def finished(one: Method, folder: Path, args: Args) -> bool:
    """Run a method unless it is finished; its output goes to a log file and, in short, to the terminal."""
    place = place_of(one, folder)
    if methods_table.read(place) is not None and not args.overwrite:
        print("  finished before", flush=True)
        return True
    command = [sys.executable, str(one.file), "--output_dir", str(place), *one.flags, *args.rest]
    command += ["--overwrite"] if args.overwrite else []
    with (folder / f"{place.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            log.write(line)
            log.flush()
            last = line.strip() or last
            if line.startswith(("forecast:", "step ", "training: ", "check failed:", "error:")) or "→" in line:
                print(f"  {line.rstrip()}", flush=True)
    if process.wait():
        print(f"  exit code {process.returncode}: {last}", flush=True)
    return process.returncode == 0


def collect(methods: list[Method], folder: Path) -> tuple[list[dict], dict[str, list]]:
    """Rows of the table and held-out curves of the methods that are finished."""
    rows, curves = [], {}
    for one in methods:
        report = methods_table.read(place_of(one, folder))
        if report is not None:
            link = pages.link(f"{place_of(one, folder).name}/report.html")
            rows.append(methods_table.row(one.name, one.file.stem, report, link))
            curves[one.name] = report["train"]["evaluations"]
    return rows, curves


def show(words: Any) -> None:
    """Print a frame of texts, whose first column names the rows; where the terminal is too narrow, as sentences."""
    from rich.table import Table

    from tunebook.common.process.terminal import printer

    columns = {name: [str(name), *map(str, words[name])] for name in words}
    widest = {name: max(len(word) for cell in cells for word in cell.split()) for name, cells in columns.items()}
    console, last = printer(), len(columns) - 1
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", min_width=widest[name])
    for row in words.values:
        table.add_row(*map(str, row))
    if sum(widest.values()) + 2 * last <= console.width:
        console.print(table)
        return
    _, *values = words
    for first, *rest in words.values:
        said = "; ".join(f"{value} {cell}" for value, cell in zip(values, rest, strict=True) if str(cell))
        console.print(f"{first}: {said}", markup=False, highlight=False)


def write(
    folder: Path, rows: list[dict], curves: dict[str, list], rest: list[str], against: dict[str, Any] | None = None
) -> None:
    """table.md, table.csv, table.html, and the table on the terminal."""
    seen = [found["trained_tokens"] for found in rows]
    notes = []
    if max(seen) > 1.01 * min(seen):
        notes.append(f"The runs did not see the same number of trained tokens: {min(seen):,} to {max(seen):,}.")
    words = methods_table.words(rows)
    show(words)
    for note in notes:
        print(note)
    about = {"flags": " ".join(rest) or "the recipes' own defaults"}
    files.write_atomic(folder / "table.md", format.markdown_table([*words], words.values))
    files.write_atomic(folder / "table.csv", methods_table.frame(rows).to_csv(index=False))
    files.write_atomic(folder / "table.html", methods_table.page(rows, curves, notes, about, against))
    print(f"table: {folder / 'table.html'}, table.md, table.csv")
