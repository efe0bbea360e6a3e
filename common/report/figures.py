"""Plots of a page: live ones by BokehJS, which is part of the page, and a still one of each for paper and for readers
without scripts."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.common.report import plots

POINTS = 20_000  # of all lines of a plot together; more are thinned out
DENSE = 25  # points from which a line has no dots, and can be smoothed
TOGETHER = 6  # lines up to which the pointer shows the values of all of them
Series = dict[str, list[list[float]]]  # name -> [[x, y], ...]


@dataclass(frozen=True)
class Plot:
    """A plot as macros.html.jinja shows it; `item`: JSON for BokehJS."""

    name: str
    title: str
    note: str
    svg: str
    item: str
    legend: list[tuple[str, str]]
    smooth: bool = False
    log: bool = False


def library() -> str:
    """BokehJS, to be written into a page."""
    import bokeh

    path = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def curves(name: str, title: str, series: Series, x: str = "step", y: str = "", note: str = "") -> Plot | None:
    """Lines, of which those with many points can be smoothed; None where there are no points."""
    series = {label: _thin(points, POINTS // len(series)) for label, points in series.items() if points}
    if not series:
        return None
    figure, hover = _figure(x, y), []
    together = len(series) <= TOGETHER
    for place, ((label, points), (color, dash)) in enumerate(zip(series.items(), _styles(), strict=False)):
        xs, ys = map(list, zip(*points, strict=True))
        source = {"x": xs, "raw": ys, "y": ys}
        style = dict(color=color, line_dash=dash, name=label)
        dense = len(points) > DENSE
        if dense and together:
            raw = figure.line("x", "raw", source=source, alpha=0.25, visible=False, **style)
            raw.tags = [place, "raw"]
        line = figure.line("x", "y", source=source, line_width=2, **style)
        line.tags = [place, "smooth"] if dense else [place]
        if not dense and (together or len(points) == 1):
            dots = figure.scatter("x", "y", source=line.data_source, size=6, color=color, name=label)
            dots.tags = [place]
        hover.append(line)
    _hover(figure, hover, [("", "$name"), (x, "@x{0,0.[00]}"), (y or "value", "@raw{0.[00000]}")],
           "vline" if together else "mouse")  # fmt: skip
    values = [value for points in series.values() for _, value in points]
    still = plots.curves({label: _thin(points, 400) for label, points in series.items()}, x, y)
    legend = [(label, color) for label, (color, _) in zip(series, _styles(), strict=False)]
    smooth = any(len(points) > DENSE for points in series.values())
    return Plot(name, title, note, still, _item(figure), legend, smooth, min(values) > 0)


def scatter(name: str, title: str, places: dict[str, tuple[float, float]], x: str, y: str, log: bool = False) -> Plot:
    """A point for each name."""
    figure, hover = _figure(x, y, log), []
    for place, ((label, (across, up)), (color, _), marker) in enumerate(
        zip(places.items(), _styles(), itertools.cycle(plots.BOKEH_MARKERS), strict=False)
    ):
        dot = figure.scatter([across], [up], size=11, color=color, marker=marker, name=label)
        dot.tags = [place]
        hover.append(dot)
    _hover(figure, hover, [("", "$name"), (x, "@x{0,0.[000]}"), (y, "@y{0.[000]}")], "mouse")
    legend = [(label, color) for label, (color, _) in zip(places, _styles(), strict=False)]
    return Plot(name, title, "", plots.scatter(places, x, y, log), _item(figure), legend)


def bars(name: str, title: str, histogram: dict[str, Any], note: str = "") -> Plot:
    """A histogram as statistics.histogram gives it; what lies beyond its last bar is counted in it, and says so."""
    step, counts = histogram["step"], histogram["counts"]
    left = [place * step for place in range(len(counts))]
    figure = _figure("tokens", "rows")
    last = len(counts) - 1 if histogram["beyond"] else -1
    over = [f"{place * step:,} and more" if place == last else f"{place * step:,} to {(place + 1) * step - 1:,}"
            for place in range(len(counts))]  # fmt: skip
    source = {"left": left, "right": [one + 0.92 * step for one in left], "top": counts, "over": over}
    quads = figure.quad("left", "right", "top", 0, source=source, color=plots.PALETTE[0], line_color=None)
    figure.y_range.start = 0
    _hover(figure, [quads], [("tokens", "@over"), ("rows", "@top{0,0}")], "mouse")
    return Plot(name, title, note, plots.bars(histogram, title), _item(figure), [])


def _figure(x: str, y: str, log: bool = False) -> Any:
    """Both kinds of y axis stand ready; the page's script shows one. Colors come from the page's style sheet."""
    from bokeh.models import LogAxis
    from bokeh.plotting import figure

    made = figure(sizing_mode="stretch_both", tools="xbox_zoom,reset", toolbar_location=None, min_border=4,
                  x_axis_label=x, y_axis_label=y, x_axis_type="log" if log else "linear")  # fmt: skip
    made.add_layout(LogAxis(axis_label=y, visible=False), "left")
    for axis in made.axis:
        axis.update(minor_tick_line_color=None, axis_label_text_font_style="normal", axis_label_text_font="system-ui",
                    axis_label_text_font_size="12px", major_label_text_font="system-ui", major_tick_in=0)  # fmt: skip
    made.xgrid.visible = False
    return made


def _hover(figure: Any, renderers: Sequence[Any], tooltips: list[tuple[str, str]], mode: Any) -> None:
    from bokeh.models import HoverTool

    point = "follow_mouse" if mode == "mouse" else "snap_to_data"
    figure.add_tools(
        HoverTool(renderers=list(renderers), tooltips=tooltips, mode=mode, point_policy=point, line_policy="nearest")
    )


def _item(figure: Any) -> str:
    from bokeh.embed import json_item

    text = json.dumps(json_item(figure), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _styles() -> Any:
    """(color, dash), the colors again and again with another dash."""
    return itertools.cycle((color, dash) for dash in ("solid", "dashed", "dotted") for color in plots.PALETTE)


def _thin(points: list[list[float]], most: int) -> list[list[float]]:
    """At most `most` points, the last among them, rounded to what can be seen; what is no number is left out."""
    known = [(step, float(f"{value:.6g}")) for step, value in points if value is not None and math.isfinite(value)]
    every = max(1, math.ceil(len(known) / max(most, 2)))
    return [list(point) for point in known[::-every][::-1]]
