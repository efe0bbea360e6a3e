"""What `tunebook inspect` prints: the figures of common/inspection.py in plain lines, and tokens with their marks."""

from typing import Any

from common.commands.printing import printer
from common.inspection import percent, places, visible
from common.statistics import short_names


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
    for title, lines in (
        ("", _rows(report)),
        ("Beside what is quoted for Alpaca", _quoted(report["statistics"]["alpaca"])),
        ("Lengths", _lengths(report)),
        ("What a length costs", _cuts(report["tokens"])),
        ("What is asked", _categories(report)),
        ("Problems", _problems(report["statistics"], report["overlaps"])),
    ):
        if lines:
            say(f"\n[bold]{title}[/]" if title else "")
            say("\n".join(lines), markup=False)
    say("\n[bold]Every token[/] (id:text; [bold green]\\[these][/] train)")
    for sentence in report["absent"]:
        say(sentence, markup=False, style="yellow")
    for row in report["rows"] if asked else report["rows"][:1]:
        _tokens(console, row)
    if not asked and len(report["rows"]) > 1:
        say("\n--rows 7 12 shows others", style="dim")
    if packed := report["packed"]:
        say(
            f"\n[bold]Packed[/]: {packed['rows']:,} rows make {packed['packs']:,} packs of {packed['max_length']:,} "
            f"tokens, {percent(packed['fill_share'])} full; this one holds {len(packed['shown'])} rows:"
        )
        for row in packed["shown"]:
            _tokens(console, row)
    say(f"\n{_plain(report['line'])} · {report['seconds']} s")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _rows(report: dict[str, Any]) -> list[str]:
    found, counts = report["statistics"], report["counts"]
    asked = "unique first questions" if "chat" in found["kinds"] else "unique instructions"
    lines = [("rows", found["rows"]), (asked, found["unique_instructions"])]
    if len(found["sources"]) > 1:
        lines[1:1] = [
            (f"  from {name}", rows)
            for name, rows in zip(short_names(found["sources"]).values(), found["sources"].values(), strict=True)
        ]
    if "instruction" in found["kinds"]:
        lines.append(("with input", found["with_input"]))
    lines += [("empty outputs", found["empty_outputs"]), ("exact duplicates", found["exact_duplicates"])]
    lines += [(f"dropped as {reason}", rows) for reason, rows in counts["dropped"].items()]
    lines += [("truncated", counts["truncated"])] if counts["truncated"] else []
    lines += [("kept for training", counts["kept"])]
    if counts["special_text"]:
        lines.append(("with special-token text, kept as text", counts["special_text"]))
    return [f"{name:32}{number:>12,}" for name, number in lines]


def _quoted(rows: list[list[str]]) -> list[str]:
    width = max((len(quoted) for _, quoted, _ in rows), default=0)
    return [f"{name:36}{quoted:{width}}  here {here}" for name, quoted, here in rows]


def _lengths(report: dict[str, Any]) -> list[str]:
    found, tokens = report["statistics"], report["tokens"]
    more = report["tokens_with_begin"]
    spreads = {"tokens": tokens["spread"], "tokens that train": tokens["trained_spread"]}
    spreads |= {"tokens with a beginning token": more["spread"]} if more else {}
    spreads |= {f"characters of {name}": values for name, values in found["characters"].items()}
    spreads |= {"turns": found["turns"]} if found["turns"] else {}
    lines = [f"{'':32}{'mean':>10}{'median':>10}{'95 % up to':>12}{'longest':>10}"]
    for name, of in spreads.items():
        lines.append(f"{name:32}{of['mean']:>10,.1f}{of['median']:>10,.0f}{of['p95']:>12,.0f}{of['longest']:>10,}")
    lines.append(f"{percent(tokens['trained_share'])} of {tokens['tokens']:,} tokens train (rows of every length)")
    if more:
        lines.append(
            f"{percent(more['trained_share'])} with a beginning token, which this tokenizer names and does not add"
        )
    return lines


def _cuts(tokens: dict[str, Any]) -> list[str]:
    lines = [f"{'max_length':>10}{'rows over it':>14}{'of rows':>10}{'tokens lost if dropped':>25}{'if truncated':>14}"]
    for cut in tokens["cuts"]:
        shares = f"{percent(cut['rows_share']):>10}{percent(cut['dropped_share']):>25}{percent(cut['cut_share']):>14}"
        lines.append(f"{cut['max_length']:>10,}{cut['rows_over']:>14,}{shares}")
    return lines


def _categories(report: dict[str, Any]) -> list[str]:
    found = report["statistics"]
    lines = [f"{name:16}{rows:>8,}{percent(rows / found['rows']):>10}" for name, rows in found["categories"].items()]
    return [*lines, f"(told by {found['category_method']})"]


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
        # Brackets as well as colour, so that the marks survive a log file.
        piece = f"{number}:{visible(text)}" + (f" x{weight:g}" if weight not in (0, 1) else "")
        line.append(f"[{piece}]" if trains else piece, style="bold green" if trains else "dim")
        line.append("\n" if "\n" in text else " ")
    console.print(line)
