"""The methods beside each other: what each run's report.json says, as one table in text, Markdown, CSV and a page."""

import json
from pathlib import Path
from typing import Any

from tunebook.common import format, pages
from tunebook.common.report import plots

# What a lecture says of the methods, to be read beside what was measured: trainable share in %, quality in % of full.
QUOTED = {
    "sft_alpaca": ("100", "100"),
    "lora_alpaca": ("0.1", "95-98"),
    "qlora_alpaca": ("0.1", "93-96"),
    "bottleneck_adapters_alpaca": ("1-5", "92-95"),
    "prompt_tuning_alpaca": ("0.01", "85-90"),
}
COLUMNS = {
    "method": "method",
    "trainable": "trainable parameters",
    "share": "share of all, %",
    "peak": "peak memory, GiB",
    "seconds": "training, s",
    "speed": "trained tokens a second",
    "trained_tokens": "trained tokens seen",
    "loss": "held-out loss",
    "quoted_share": "quoted share, %",
    "quoted_quality": "quoted quality, % of full",
}


def row(name: str, recipe: str, report: dict[str, Any]) -> dict[str, Any]:
    """One method's figures from its report.json, with a column for every score after training, in percent."""
    train, measured = report["train"], report["measured"]
    found = {
        "method": name,
        "trainable": train["trainable_parameters"],
        "share": 100 * train["trainable_parameters"] / train["all_parameters"],
        "peak": measured["peak_bytes"] / 2**30,
        "seconds": measured["seconds"],
        "speed": measured["trained_tokens_per_second"],
        "trained_tokens": measured["trained_tokens"],
        "loss": report["eval"]["loss"],
    }
    for task, metrics in report["scores"]["after"].items():
        for metric, value in metrics.items():
            found[f"{task} {metric}"] = 100 * value
    found["quoted_share"], found["quoted_quality"] = QUOTED.get(recipe, ("", ""))
    return found


def frame(rows: list[dict[str, Any]]) -> Any:
    """The rows as a pandas.DataFrame: figures, scores, quoted."""
    import pandas

    found = pandas.DataFrame(rows)
    return found[sorted(found, key=lambda name: name.startswith("quoted"))]


def cell(key: str, value: Any) -> str:
    """A value in few digits; scores in percent have one decimal."""
    if value is None or value == "" or value != value:
        return format.DASH
    if not isinstance(value, float):
        return value if isinstance(value, str) else f"{value:,}"
    if key not in COLUMNS:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}" if abs(value) < 10 else f"{value:.1f}"


def head(key: str) -> str:
    """What stands above a column."""
    return COLUMNS.get(key, f"{key}, %")


def words(rows: list[dict[str, Any]]) -> Any:
    """The table as people read it: a pandas.DataFrame of texts."""
    found = frame(rows)
    return found.apply(lambda column: column.map(lambda value: cell(str(column.name), value))).rename(columns=head)


def page(rows: list[dict[str, Any]], curves: dict[str, list], notes: list[str], about: dict[str, str]) -> str:
    """One HTML file with the table, quality against memory, speed and parameters, and the loss curves.

    Args:
        curves: method -> held-out [[step, loss], ...] while training.
        about: what the runs had in common, in words.
    """
    table = words(rows)
    quality = next((key for key in frame(rows) if key not in COLUMNS), "loss")
    scored = [found for found in rows if found.get(quality) is not None]
    drawn = [
        plots.scatter({one["method"]: (one[key], one[quality]) for one in scored}, head(key), head(quality), log)
        for key, log in (("peak", False), ("speed", False), ("trainable", True))
    ]
    drawn.append(plots.curves(curves, "held-out loss"))
    template = Path(__file__).with_name("methods_table.html.jinja")
    return pages.render(template, heads=[*table], rows=table.values, plots=drawn, notes=notes, about=about)


def read(folder: Path) -> dict[str, Any] | None:
    """The report of a finished run in `folder`, or None."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
