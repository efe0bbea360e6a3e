"""Plots as SVG for a page: in the page's text color, so light or dark, and with nothing to fetch."""

import html
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

INK = "#123456"  # stands for the page's text color in what matplotlib draws
COLORS = {"better": "#2a9d5c", "worse": "#d6493f"}
OTHER = "#8a8f98"
MARKERS = "osD^v*PXd<>p"


def curves(series: dict[str, list[list[float]]], y: str = "") -> str:
    """Lines by step: name -> [[step, value], ...]; series without points are left out, and "" where none has any."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    figure, axes = _figure(6.4, 2.6 if len(series) < 3 else 4.2)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=2 if len(points) > 20 else 4, label=name)
    lowest = min(value for points in series.values() for _, value in points)
    axes.set(xlabel="step", ylabel=y, ylim=(min(0, lowest), None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, "By step: " + "; ".join(series))


def scatter(places: dict[str, tuple[float, float]], x: str, y: str, log: bool = False) -> str:
    """A point for each name."""
    figure, axes = _figure(5.6, 4.2)
    for (name, (across, up)), marker in zip(places.items(), itertools.cycle(MARKERS), strict=False):
        axes.plot(across, up, marker, label=name)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    return _svg(figure, f"{y} against {x}")


def bars(histogram: dict[str, Any], x: str) -> str:
    """A histogram as statistics.histogram gives it; what lies beyond its last bar is counted in it, and says so."""
    step, counts = histogram["step"], histogram["counts"]
    figure, axes = _figure(5.2, 2.4)
    axes.bar([place * step for place in range(len(counts))], counts, 0.9 * step, align="edge")
    over = f" (last bar: {(len(counts) - 1) * step:,} and more)" if histogram["beyond"] else ""
    axes.set(xlabel=x + over, ylabel="rows", xlim=(0, None))
    return _svg(figure, f"Histogram: {x}")


def ranges(rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]], x: str, title: str) -> str:
    """A line for each (name, verdict, values): over its values, each marked "full", "none" (hollow) or "" (not)."""
    figure, axes = _figure(5.2, 0.9 + 0.34 * len(rows))
    axes.axvline(0, color=INK, linewidth=1)
    for place, (_, verdict, values) in enumerate(rows):
        color = COLORS.get(verdict, OTHER)
        axes.plot([value for value, _ in values], [place] * len(values), color=color, linewidth=2)
        for value, fill in values:
            axes.plot(value, place, "o" if fill else "", color=color, fillstyle=fill or None)
    axes.set(xlabel=x, ylim=(len(rows) - 0.5, -0.5))
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    return _svg(figure, title)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[:].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=INK, alpha=0.12)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure with its legend; its text stays text, in the page's font and color."""
    import matplotlib

    if names := figure.axes[0].get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=min(3, len(names)), fontsize=8, labelcolor=INK, frameon=False)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, size, drawn = re.split(r"<svg[^>]*(viewBox=\"[^\"]*\")[^>]*>", out.getvalue())
    drawn = re.sub(r' clip-path="[^"]*"', "", drawn).replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui")
    return f'<svg role="img" aria-label="{html.escape(title)}" {size}>{drawn}'
