"""A comparison as Markdown and as one HTML file that opens offline."""

from pathlib import Path
from typing import Any

from tunebook.common import format, pages
from tunebook.common.flags import redaction
from tunebook.common.format import p_value
from tunebook.common.pages import Cell
from tunebook.common.report import labels, summary
from tunebook.evals.stats import scales

HEADS = ["task", "metric", "items", "before", "after", "difference", "95 % interval", "won", "lost", "p", "p (Holm)",
         "verdict"]  # fmt: skip
PAGE_HEADS = ["Task", "Verdict", "Before", "After", "Change, 95 % interval", "", "Items", "p (Holm)"]
TILES = 8


def number(value: float | None, share: bool) -> str:
    """0.873 -> 87.3 % where it is a share; else four digits."""
    return format.percent(value) if share else format.DASH if value is None else f"{value:.4g}"


def change(value: float | None, share: bool) -> str:
    """With its sign; of shares in points."""
    return format.points(value) if share or value is None else f"{value:+.3g}"


def interval(row: dict[str, Any]) -> str:
    form, scale = ("+.1f", 100) if row["share"] else ("+.3g", 1)
    return format.interval(row["low"], row["high"], form, scale)


def metric(row: dict[str, Any]) -> str:
    """Its name, with its scale where it is not shown in percent, and its direction where less is better."""
    scale = "" if row["share"] else scales.of(row["metric"])
    words = ", ".join(filter(None, [scale, "" if row["higher_is_better"] else "lower is better"]))
    return f"{row['metric']} ({words})" if words else row["metric"]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, in the order of HEADS."""
    share = row["share"]
    return [
        row["task"], metric(row), f"{row['items']:,}",
        number(row["before"], share), number(row["after"], share), change(row["difference"], share), interval(row),
        *("–" if row[key] is None else f"{row[key]:,}" for key in ("won", "lost")),
        p_value(row["p"]), p_value(row["p_holm"]), row["verdict"],
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row for the terminal: what was measured, the difference with its interval, and the verdict."""
    share, unit = row["share"], " points" if row["share"] else ""
    start = f"{row['task']} {metric(row)}, {row['items']:,} items: "
    start += f"{number(row['before'], share)} → {number(row['after'], share)}"
    if row["low"] is None:
        return f"{start}: {row['verdict']}"
    difference = f"{change(row['difference'], share)}{unit} ({interval(row)})"
    items = f"{row['won']:,} won, {row['lost']:,} lost"
    after_holm = "" if row["p_holm"] == row["p"] else f", {p_value(row['p_holm'])} after Holm"
    return f"{start}, {difference}, {items}, p {p_value(row['p'])}{after_holm}: {row['verdict']}"


def markdown(report: dict[str, Any]) -> str:
    """The headline rows and what the numbers mean."""
    rows = [cells(row) for row in report["rows"] if row["headline"]]
    return format.markdown_table(HEADS, rows, [*report["notes"], *explained(report)])


def explained(report: dict[str, Any]) -> list[str]:
    """What the columns mean, as far as this comparison has them."""
    tests = {row["test"] for row in report["rows"] if row["headline"]}
    lines = ["Changes of shares are in points; the interval is of after minus before on the same items."]
    if "exact McNemar" in tests:
        lines.append("Right or wrong: p by the exact McNemar test, interval by Tango's score method.")
    if "paired bootstrap" in tests:
        lines.append("Other values: p and interval by a symmetric paired bootstrap of 10,000 samples.")
    if None in tests:
        lines.append("Not tested: lm-eval's number does not follow from its items in a way that is known here.")
    lines.append(f"A verdict needs p below {report['alpha']} after Holm's correction over the tasks of this table.")
    return lines


def page(report: dict[str, Any]) -> str:
    """One HTML file."""
    rows = [row for row in report["rows"] if row["headline"]]
    tone, sentences = verdict(rows)
    percents = ["Changes of a loss, of bits and of a perplexity are in percent of the value before."]
    percents *= any(map(summary.relative, report["rows"]))
    return pages.render(
        Path(__file__).with_name("comparison.html.jinja"),
        facts=[(name.capitalize(), side(report[name])) for name in ("before", "after")],
        tone=tone,
        sentences=sentences,
        tiles=[
            (_tile_name(row),
             number(row["after"], row["share"]), f"was {number(row['before'], row['share'])}", row["verdict"])
            for row in rows[:TILES]
        ],
        heads=PAGE_HEADS,
        rows=_cells(rows),
        more_heads=[*PAGE_HEADS[:1], *PAGE_HEADS[2:7]],
        more=[[first, *rest[:5]] for first, _, *rest in _cells([row for row in report["rows"] if not row["headline"]])],
        notes=[*report["notes"], *explained(report), *percents],
        examples={labels.task(task): found for task, found in report["items"].items()},
        said=_said,
    )  # fmt: skip


def _said(value: Any) -> str:
    """An item's value in three digits, or as lm-eval wrote it where it is no number."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, int | float) else str(value)


def _tile_name(row: dict[str, Any]) -> str:
    name, metric = labels.task(row["task"]), labels.metric(row["metric"])
    return name if row["share"] or metric.lower() in name.lower() else f"{name}, {metric}"


def side(found: dict[str, Any]) -> str:
    """Where scores come from and how the model was asked, without folders of this machine."""
    asked = f"{'with' if found['chat_template'] else 'without'} chat template"
    dtype = (found.get("dtype") or "").removeprefix("torch.")
    words = [found["folder"], found.get("model"), dtype, asked, f"lm-eval {found['lm_eval']}"]
    return redaction.without_paths(" · ".join(str(word) for word in words if word))


def verdict(rows: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The tone of a comparison, and its verdict in a sentence or two."""
    by = {kind: [labels.task(row["task"]) for row in rows if row["verdict"] == kind]
          for kind in ("better", "worse", "no difference shown", "not tested")}  # fmt: skip
    parts = [f"{kind} on {len(names)} of {len(rows)} ({', '.join(names)})" for kind, names in by.items() if names]
    tone = "mixed" if by["better"] and by["worse"] else "better" if by["better"] else "worse" if by["worse"] else ""
    start = "; ".join(parts) or "nothing was compared"
    return tone, [f"{start[0].upper()}{start[1:]}.", "After against before, on the same items."]


def _cells(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows in the order of PAGE_HEADS."""
    drawn = summary.drawings(rows, [pages.tone(row["verdict"]) for row in rows])
    found: list[list[Any]] = []
    for row, span in zip(rows, drawn, strict=True):
        share, decided = row["share"], row["won"] is not None
        measure = metric({**row, "metric": labels.metric(row["metric"])})
        found.append([
            Cell(labels.task(row["task"]), f"{measure} · {row['task']}"),
            Cell(verdict=row["verdict"]), number(row["before"], share), number(row["after"], share),
            Cell(summary.change(row), summary.ends(row), sort=row["difference"]), Cell(span=span),
            Cell(f"{row['items']:,}", f"{row['won']:,} won, {row['lost']:,} lost" if decided else ""),
            Cell(p_value(row["p_holm"]), sort=row["p_holm"]),
        ])  # fmt: skip
    return found
