"""What `tunebook new` prints: what the rows are, what is proposed and why, and the next commands."""

import shlex
from pathlib import Path
from typing import Any

from tunebook.common.format import percent
from tunebook.common.process.terminal import printer
from tunebook.common.report.dataset import places

KINDS = {
    "instruction": "instructions with outputs",
    "pair": "questions and answers",
    "chat": "conversations",
    "preference": "preference pairs",
}
PROBLEMS = 5  # that are shown; inspect shows all
TITLES = {
    "model": "model", "max_length": "max_length", "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulation", "learning_rate": "learning rate", "num_train_epochs": "epochs",
    "load_in_4bit": "4 bits", "set": "also",
}  # fmt: skip


def show_found(found: Any) -> None:
    """Print what the dataset is."""
    console, lengths = printer(), found.lengths
    what = KINDS[found.kind]
    rows = [("rows", f"{found.rows:,}, {what}")]
    rows += [("columns", _columns(line)) for line in found.columns]
    if lengths:
        middle, high = lengths[len(lengths) // 2], lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))]
        share = percent(found.trained_tokens / max(1, found.tokens))
        rows.append(
            (
                "tokens",
                f"median {middle:,}, 95 % up to {high:,}, longest {lengths[-1]:,} with the tokenizer of {found.model}; "
                f"{share} of them train",
            )
        )
    if found.languages:
        said = ", ".join(f"{code} {percent(share)}" for code, share in found.languages.items())
        rows.append(("languages", f"{said} (by py3langid, of the first rows)"))
    rows += _problems(found)
    rows += [("lost", line) for line in found.lost]
    rows += [("tokenizer", line) for line in found.warnings]
    _table(console, rows, " ".join(found.data))


def _columns(line: str) -> str:
    """`file: columns prompt, completion=answer`, without what stands before it."""
    return (line.partition(": ")[2] or line).removeprefix("columns ")


def _problems(found: Any) -> list[tuple[str, str]]:
    statistics = found.statistics
    problems = statistics["problems"]
    listed = list(problems.items())[:PROBLEMS]
    lines = [("problems" if not at else "", f"{name.replace('_', ' ')}: {problem['rows']:,} ({problem['why']}); "
              f"row {places(problem, statistics['sources'])}")
             for at, (name, problem) in enumerate(listed)]  # fmt: skip
    more = len(problems) - PROBLEMS
    return [*lines, *([("", f"and {more} more kinds: tunebook inspect shows them")] if more > 0 else [])] or [
        ("problems", "none were found")
    ]


def _table(console: Any, rows: list[tuple[str, ...]], title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*[""] * len(rows[0]), box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(Text(title, style="bold"))
    console.print(table)


def show_chosen(found: Any, chosen: Any, target: Path) -> None:
    """Print the proposal with its reasons, and what to do next."""
    console = printer()
    rows = [("recipe", chosen.recipe, f"{chosen.method} for {KINDS[found.kind]}, on {chosen.device}")]
    rows.append(("template", chosen.template.value, chosen.template.because))
    for name, title in TITLES.items():
        if one := chosen.choices.get(name):
            value = " ".join(one.value) if isinstance(one.value, list) else one.value
            rows.append((title, f"{value:.0e}" if name == "learning_rate" else str(value), one.because))
    rows.append(("held out", "", chosen.held_out))
    console.print()
    _table(console, rows, "proposed")
    for note in chosen.notes:
        console.print(f"note: {note}", markup=False, style="yellow", highlight=False)
    console.print(f"\n{target}: written. Next:", markup=False, highlight=False)
    for command in next_commands(found, chosen, target):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def next_commands(found: Any, chosen: Any, target: Path) -> list[str]:
    """Look, train, talk."""
    file, folder = shlex.quote(str(target)), chosen.choices["output_dir"].value
    dropped = " --bad_rows drop" if found.bad_rows == "drop" else ""
    look = f"tunebook inspect {shlex.join(found.data)} --tokenizer {shlex.quote(found.model)} --recipe {file}{dropped}"
    if found.kind == "preference":
        look = f"python {file} --dry_run"
    return [look, f"python {file}", f"tunebook chat --adapter {shlex.quote(folder)}"]
