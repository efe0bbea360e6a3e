"""What `tunebook inspect` prints: the figures of report/dataset.py in plain lines, and tokens with their marks."""

from typing import Any

from tunebook.common.format import table, visible
from tunebook.common.process.terminal import printer
from tunebook.common.report.dataset import packed_line, places, sections


def show(report: dict[str, Any], asked: bool) -> None:
    """Print the whole report; of the rows' tokens the first row's, or those of all rows that were asked for."""
    console = printer()
    say = console.print
    say(
        f"[bold]{_plain(report['data'])}[/] · tokenizer {_plain(report['tokenizer'])} · template {report['template']}"
        + (f" ({_plain(report['template_because'])})" if report["template_because"] else "")
    )
    for line in report["columns"]:
        say(_plain(line))
    for sentence in report["lost"]:
        say(f"WARNING: {_plain(sentence)}", style="bold yellow")
    for sentence in report["warnings"]:
        say(f"tokenizer: {_plain(sentence)}", style="yellow")
    for part in sections(report):
        say(f"\n[bold]{part.title}[/]")
        say("\n".join([table(part.heads, part.rows, range(part.words)), *part.notes]), markup=False)
    say("\n[bold]Problems[/]")
    say("\n".join(_problems(report["statistics"], report["overlaps"])), markup=False)
    say("\n[bold]Every token[/] (id:text; [bold green]\\[these][/] train)")
    for sentence in report["absent"]:
        say(sentence, markup=False, style="yellow")
    for row in report["rows"] if asked else report["rows"][:1]:
        _tokens(console, row)
    if not asked and len(report["rows"]) > 1:
        say("\n--rows 7 12 shows others", style="dim")
    if packed := report["packed"]:
        say(f"\n[bold]Packed[/]: {packed_line(packed)}")
        for row in packed["shown"]:
            _tokens(console, row)
    say(f"\n{_plain(report['line'])} · {report['seconds']} s")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _problems(found: dict[str, Any], overlaps: list[dict[str, str]]) -> list[str]:
    if not found["problems"]:
        return ["none were found"]
    lines = []
    for name, problem in found["problems"].items():
        where = ("row " if len(found["sources"]) == 1 and problem["rows"] else "") + places(problem, found["sources"])
        lines.append(f"{name.replace('_', ' '):32}{problem['rows']:>8,}  {where}")
        lines.append(f"{'':4}{problem['why']}")
    return [*lines, *(f"{'':4}row {one['row']} and {one['item']}: {one['words']}" for one in overlaps)]


def _tokens(console: Any, row: dict[str, Any]) -> None:
    from rich.text import Text

    trained = sum(trains for _, _, trains in row["tokens"])
    source = f" of {row['source']}" if row["source"] else ""
    line = Text(f"\nrow {row['row']:,}{source}: {len(row['tokens'])} tokens, {trained} train\n", style="bold")
    weights = row.get("weights") or [1] * len(row["tokens"])
    for (number, text, trains), weight in zip(row["tokens"], weights, strict=True):
        # Brackets as well as color, so that the marks survive a log file.
        piece = f"{number}:{visible(text)}" + (f" x{weight:g}" if weight not in (0, 1) else "")
        line.append(f"[{piece}]" if trains else piece, style="bold green" if trains else "dim")
        line.append("\n" if "\n" in text else " ")
    console.print(line)
