"""The methods beside each other: what each run's report.json says, as one table in text, Markdown, CSV and a page."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import jinja2

# What a lecture says of the methods, to be read beside what was measured: trainable share in %, quality in % of full.
QUOTED = {
    "sft_alpaca": ("100", "100"),
    "lora_alpaca": ("0.1", "95-98"),
    "qlora_alpaca": ("0.1", "93-96"),
    "bottleneck_adapters_alpaca": ("1-5", "92-95"),
    "prompt_tuning_alpaca": ("0.01", "85-90"),
}
MARKERS = "osD^v*PXd<>p"
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


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """The keys of the rows in the order of the table: figures, scores, quoted."""
    keys = list(dict.fromkeys(key for found in rows for key in found))
    quoted = [key for key in keys if key.startswith("quoted")]
    return [key for key in keys if key not in quoted] + quoted


def cell(value: Any) -> str:
    """A value in few digits; a dash for what is not there."""
    if value is None or value == "":
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def cells(found: dict[str, Any], keys: list[str]) -> list[str]:
    """A row in words; scores in percent have one decimal."""
    values = {key: found.get(key) for key in keys}
    return [
        f"{value:.1f}" if isinstance(value, float) and key not in COLUMNS else cell(value)
        for key, value in values.items()
    ]


def head(key: str) -> str:
    """What stands above a column."""
    return COLUMNS.get(key, f"{key}, %")


def blocks(rows: list[dict[str, Any]], width: int) -> list[list[str]]:
    """The keys in groups that fit into so many characters side by side; each begins with the method."""
    first, *rest = columns(rows)
    sizes = {
        key: 3 + max(max(map(len, head(key).split())), *(len(cells(found, [key])[0]) for found in rows))
        for key in (first, *rest)
    }
    sizes[first] = 3 + max(len(found[first]) for found in rows)
    groups: list[list[str]] = [[first]]
    for key in rest:
        if len(groups[-1]) > 1 and sum(sizes[one] for one in groups[-1]) + sizes[key] > width:
            groups.append([first])
        groups[-1].append(key)
    return groups


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for a README."""
    keys = columns(rows)
    lines = [[head(key) for key in keys], ["---"] * len(keys)]
    lines += [cells(found, keys) for found in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """The table with all digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def page(rows: list[dict[str, Any]], curves: dict[str, list], notes: list[str], about: dict[str, str]) -> str:
    """One HTML file with the table, quality against memory, speed and parameters, and the loss curves.

    Args:
        curves: method -> held-out [[step, loss], ...] while training.
        about: what the runs had in common, in words.
    """
    keys = columns(rows)
    quality = next((key for key in keys if key not in COLUMNS), "loss")
    plots = [_scatter(rows, key, quality) for key in ("peak", "speed", "trainable")] + [_lines(curves)]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    lines = [cells(found, keys) for found in rows]
    return environment.get_template("table.html.jinja").render(
        heads=map(head, keys), lines=lines, plots=plots, notes=notes, about=about
    )


def _scatter(rows: list[dict[str, Any]], x: str, y: str) -> str:
    figure, axes = _figure()
    for place, found in enumerate(rows):
        if found.get(y) is not None:
            axes.plot(found[x], found[y], MARKERS[place % len(MARKERS)], label=found["method"])
    if x == "trainable":
        axes.set_xscale("log")
    axes.set_xlabel(head(x))
    axes.set_ylabel(head(y))
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return _svg(figure)


def _lines(curves: dict[str, list]) -> str:
    figure, axes = _figure()
    for name, points in curves.items():
        axes.plot([step for step, _ in points], [value for _, value in points], "o-", markersize=3, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss")
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def read(folder: Path) -> dict[str, Any] | None:
    """The report of a finished run in `folder`, or None."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
