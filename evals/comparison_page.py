"""A comparison as Markdown and as one HTML file that opens offline; plots are SVG in the page's own colours."""

import io
from pathlib import Path
from typing import Any

import jinja2

from evals import scales

INK = "#123456"  # stands for the page's text colour in what matplotlib draws
COLOURS = {"better": "#2a9d5c", "worse": "#d6493f"}
OTHER = "#8a8f98"
HEADS = ["task", "metric", "items", "before", "after", "difference", "95 % interval", "won", "lost", "p", "p (Holm)",
         "verdict"]  # fmt: skip


def number(value: float | None, share: bool) -> str:
    """0.873 -> 87.3 % where it is a share; else four digits; a dash for nothing."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def change(value: float | None, share: bool) -> str:
    """With its sign; of shares in points."""
    return "–" if value is None else f"{100 * value:+.1f}" if share else f"{value:+.3g}"


def interval(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "–"
    return f"{change(row['low'], row['share'])} to {change(row['high'], row['share'])}"


def chance(value: float | None) -> str:
    """A p value in two digits; a dash where there is none."""
    return "–" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.2g}"


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
        chance(row["p"]), chance(row["p_holm"]), row["verdict"],
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row for the terminal: what was measured, the difference with its interval, and the verdict."""
    share, unit = row["share"], " points" if row["share"] else ""
    start = f"{row['task']} {metric(row)}, {row['items']:,} items: "
    start += f"{number(row['before'], share)} → {number(row['after'], share)}"
    if row["low"] is None:
        return f"{start}: {row['verdict']}"
    found = f"{change(row['difference'], share)}{unit} ({interval(row)}), {row['won']:,} won, {row['lost']:,} lost"
    after_holm = "" if row["p_holm"] == row["p"] else f", {chance(row['p_holm'])} after Holm"
    return f"{start}, {found}, p {chance(row['p'])}{after_holm}: {row['verdict']}"


def markdown(report: dict[str, Any]) -> str:
    """The tested rows for a README, with what the numbers are."""
    rows = [cells(row) for row in report["rows"] if row["headline"]]
    lines = [HEADS, ["---"] * len(HEADS), *rows]
    notes = [f"- {note}" for note in [*report["notes"], *explained(report)]]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes]) + "\n"


def explained(report: dict[str, Any]) -> list[str]:
    """What the columns mean, as far as this comparison has them."""
    tests = {row["test"] for row in report["rows"] if row["headline"]}
    found = ["Differences of shares are in points; the interval is of after minus before on the same items."]
    if "exact McNemar" in tests:
        found.append("Right or wrong: p by the exact McNemar test, interval by Tango's score method.")
    if "paired bootstrap" in tests:
        found.append("Other values: p and interval by a symmetric paired bootstrap of 10,000 samples.")
    if None in tests:
        found.append("Not tested: lm-eval's number does not follow from its items in a way that is known here.")
    found.append(f"A verdict needs p below {report['alpha']} after Holm's correction over the tasks of this table.")
    return found


def page(report: dict[str, Any]) -> str:
    """One HTML file."""
    tested = [row for row in report["rows"] if row["headline"] and row["test"]]
    shares, others = [row for row in tested if row["share"]], [row for row in tested if not row["share"]]
    plots = []
    if shares:
        plots.append(("Shares before (hollow) and after", _before_after(shares)))
        plots.append(("Difference in points, with its interval", _forest(shares, 100)))
    if others := [row for row in others if row["before"]]:
        plots.append(("Change in % of before", _forest(others, None)))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(cells=cells)
    return environment.get_template("comparison.html.jinja").render(
        **{key: value for key, value in report.items() if key not in ("rows", "items")},
        heads=HEADS,
        rows=[row for row in report["rows"] if row["headline"]],
        more=[row for row in report["rows"] if not row["headline"]],
        examples=report["items"],
        plots=plots,
        explained=explained(report),
    )


def _forest(rows: list[dict[str, Any]], scale: float | None) -> str:
    """Differences with their intervals, a line each; `scale` None: in percent of what was before."""
    figure, axes = _figure(rows)
    axes.axvline(0, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        factor = scale or 100 / abs(row["before"])
        colour = COLOURS.get(row["verdict"], OTHER)
        axes.plot([factor * row["low"], factor * row["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(factor * row["difference"], place, "o", color=colour)
    axes.set_xlabel("points" if scale else "% of before")
    return _svg(figure)


def _before_after(rows: list[dict[str, Any]]) -> str:
    figure, axes = _figure(rows)
    for place, row in enumerate(rows):
        colour = COLOURS.get(row["verdict"], OTHER)
        axes.plot([100 * row["before"], 100 * row["after"]], [place, place], color=colour, linewidth=2)
        axes.plot(100 * row["before"], place, "o", color=colour, fillstyle="none")
        axes.plot(100 * row["after"], place, "o", color=colour)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("%")
    return _svg(figure)


def _figure(rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 0.9 + 0.34 * len(rows)), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.set_yticks(range(len(rows)), [row["task"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
    return figure, axes


def _svg(figure: Any) -> str:
    """SVG in the page's text colour; text is drawn, so that it looks the same without any font."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
