"""Still plots as SVG: in the page's text color, so light or dark, and with nothing to fetch."""

import html
import io
import itertools
import re
from typing import Any

INK = "#123456"  # stands for the page's text color in what matplotlib draws
# Of lines and points; each can be told from paper that is white or black.
PALETTE = ("#3d7edb", "#dd7a26", "#2f9e63", "#9a63d6", "#d9534a", "#1b98a6", "#cf5a9c", "#8c8a24", "#7f8893")
MARKERS = dict(
    zip(("circle", "square", "diamond", "triangle", "inverted_triangle", "star", "hex"), "osD^v*h", strict=True)
)
BOKEH_MARKERS = tuple(MARKERS)


def curves(series: dict[str, list[list[float]]], x: str = "step", y: str = "") -> str:
    """Lines: name -> [[x, y], ...]; series without points are left out, and "" where none has any."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    figure, axes = _figure(7.6, 3.0)
    for (name, points), color in zip(series.items(), itertools.cycle(PALETTE), strict=False):
        dots = 4 if len(points) <= 25 else 0
        axes.plot(*zip(*points, strict=True), "o-", markersize=dots, linewidth=1.4, color=color, label=name)
    axes.set(xlabel=x, ylabel=y)
    if x == "step":
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, f"By {x}: " + "; ".join(series))


def scatter(places: dict[str, tuple[float, float]], x: str, y: str, log: bool = False) -> str:
    """A point for each name."""
    figure, axes = _figure(5.6, 3.6)
    styles = zip(itertools.cycle(PALETTE), itertools.cycle(MARKERS.values()), strict=False)
    for (name, (across, up)), (color, marker) in zip(places.items(), styles, strict=False):
        axes.plot(across, up, marker, color=color, label=name)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    return _svg(figure, f"{y} against {x}")


def bars(histogram: dict[str, Any], x: str) -> str:
    """A histogram as statistics.histogram gives it; what lies beyond its last bar is counted in it, and says so."""
    step, counts = histogram["step"], histogram["counts"]
    figure, axes = _figure(5.2, 2.4)
    axes.bar([place * step for place in range(len(counts))], counts, 0.9 * step, align="edge", color=PALETTE[0])
    over = f" (last bar: {(len(counts) - 1) * step:,} and more)" if histogram["beyond"] else ""
    axes.set(xlabel=x + over, ylabel="rows", xlim=(0, None))
    return _svg(figure, f"Histogram: {x}")


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
    """The figure; its text stays text, in the page's font and color. The page has the legend."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, size, drawn = re.split(r"<svg[^>]*(viewBox=\"[^\"]*\")[^>]*>", out.getvalue())
    drawn = re.sub(r' clip-path="[^"]*"', "", drawn).replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui")
    return f'<svg role="img" aria-label="{html.escape(title)}" {size}>{drawn}'
