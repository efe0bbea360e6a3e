"""A comparison as Markdown and as one HTML file that opens offline."""

from pathlib import Path
from typing import Any

from tunebook.common import files, format
from tunebook.common.format import p_value
from tunebook.common.report import plots
from tunebook.evals.stats import scales

HEADS = ["task", "metric", "items", "before", "after", "difference", "95 % interval", "won", "lost", "p", "p (Holm)",
         "verdict"]  # fmt: skip
INTERVAL = {"low": "", "difference": "full", "high": ""}  # how the values of a row are marked in a plot


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
    lines = ["Differences of shares are in points; the interval is of after minus before on the same items."]
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
    tested = [row for row in report["rows"] if row["headline"] and row["test"]]
    shares, others = [row for row in tested if row["share"]], [row for row in tested if not row["share"]]
    drawn = []
    if shares:
        drawn = [
            _plot(shares, 100, {"before": "none", "after": "full"}, "%", "Shares before (hollow) and after"),
            _plot(shares, 100, INTERVAL, "points", "Difference in points, with its interval"),
        ]
    if others := [row for row in others if row["before"]]:
        drawn.append(_plot(others, None, INTERVAL, "% of before", "Change in % of before, with its interval"))
    return files.page(
        Path(__file__).with_name("comparison.html.jinja"),
        **{key: value for key, value in report.items() if key not in ("rows", "items")},
        heads=HEADS,
        rows=[row for row in report["rows"] if row["headline"]],
        more=[cells(row)[:9] for row in report["rows"] if not row["headline"]],
        cells=cells,
        examples=report["items"],
        plots=drawn,
        explained=explained(report),
    )


def _plot(rows: list[dict[str, Any]], scale: float | None, marks: dict[str, str], unit: str, title: str) -> str:
    """One line for each row, with marks at its values; `scale` None: in percent of `before`."""
    spans = []
    for row in rows:
        factor = scale or 100 / abs(row["before"])
        spans.append((row["task"], row["verdict"], [(factor * row[key], mark) for key, mark in marks.items()]))
    return plots.ranges(spans, unit, title)
