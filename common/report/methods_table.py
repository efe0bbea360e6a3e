"""The methods beside each other: what each run's report.json says, as one table in text, Markdown, CSV and a page."""

import json
from pathlib import Path
from typing import Any

from tunebook.common import format, pages
from tunebook.common.flags import redaction
from tunebook.common.pages import Cell
from tunebook.common.report import figures, labels

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
    "rank": "rank",
    "rate": "learning rate",
    "trainable": "trainable parameters",
    "share": "share of all, %",
    "peak": "peak memory, GiB",
    "seconds": "training, s",
    "speed": "trained tokens a second",
    "trained_tokens": "trained tokens seen",
    "loss": "held-out loss",
}
ASIDE = ("quoted_share", "quoted_quality", "recipe", "model", "date", "link")  # in the CSV and on the page alone
LEAST, MOST = ("peak", "seconds", "loss", "trainable"), ("speed",)  # columns whose best value is marked


def row(name: str, recipe: str, report: dict[str, Any], link: str = "") -> dict[str, Any]:
    """One method's figures from its report.json, with a column for every score after training, in percent.

    Args:
        link: to its own report, from where the table is.
    """
    train, measured, args = report["train"], report["measured"], report.get("args", {})
    parts = report.get("run", {}).get("parts") or [{}]
    found = {
        "method": name,
        "rank": args.get("lora_r"),
        "rate": args.get("learning_rate"),
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
    quoted = dict(zip(ASIDE, QUOTED.get(recipe, ("", "")), strict=False))
    date = (parts[-1].get("ended") or "")[:10]
    return found | quoted | {"recipe": recipe, "model": args.get("model", ""), "date": date, "link": link}


def frame(rows: list[dict[str, Any]]) -> Any:
    """The rows as a pandas.DataFrame: figures, scores, and what is in the CSV alone."""
    import pandas

    found = pandas.DataFrame(rows)
    return found[sorted(found, key=lambda name: name in ASIDE)]


def cell(key: str, value: Any) -> str:
    """A value in few digits; scores in percent have one decimal."""
    if value is None or value == "" or value != value:
        return format.DASH
    if key == "rate":
        return f"{value:g}"
    if key == "rank":
        return f"{value:.0f}"
    if not isinstance(value, float):
        return value if isinstance(value, str) else f"{value:,}"
    if key not in COLUMNS:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}" if abs(value) < 10 else f"{value:.1f}"


def head(key: str) -> str:
    """What stands above a column."""
    return COLUMNS.get(key, f"{key}, %")


def words(rows: list[dict[str, Any]]) -> Any:
    """The table as people read it: a pandas.DataFrame of texts; what no method has is left out."""
    found = frame(rows).drop(columns=[name for name in ASIDE if name in rows[0]]).dropna(axis="columns", how="all")
    return found.apply(lambda column: column.map(lambda value: cell(str(column.name), value))).rename(columns=head)


def page(
    rows: list[dict[str, Any]], curves: dict[str, list], notes: list[str], about: dict[str, str],
    against: dict[str, dict[str, Any]] | None = None,
) -> str:  # fmt: skip
    """One HTML file with the table, quality against memory, speed and parameters, and the loss curves.

    Args:
        curves: method -> held-out [[step, loss], ...] while training.
        about: what the runs had in common, in words.
        against: as evals' best.against_best gives it; None: the scores of the reports, without intervals.
    """
    tasks = against or _untested(rows)
    quality, unit, values = _quality(rows, tasks)
    drawn: list[Any] = []
    for key, log in (("peak", False), ("speed", False), ("trainable", True)):
        places = {one["method"]: (one[key], values[one["method"]]) for one in rows if one["method"] in values}
        if places:
            title = f"{quality} against {head(key)}"
            drawn.append(figures.scatter(f"against-{key}", title, places, head(key), unit, log))
    losses = figures.curves("curves", "Held-out loss while training", curves, y="nats a token")
    models = {one["model"] for one in rows if one.get("model")}
    return pages.render(
        Path(__file__).with_name("methods_table.html.jinja"),
        facts=redaction.without_paths(
            [("Model", ", ".join(sorted(models))), *((name.capitalize(), value) for name, value in about.items())]
        ),
        sentences=_sentences(tasks),
        heads=["Method", *(labels.task(task) for task in tasks), "Held-out loss"],
        rows=[[*_name(one), *(_score(found, found["models"].get(one["method"])) for found in tasks.values()),
               _costs(one, rows)["loss"]] for one in rows],
        cost_heads=["Method", "Parameters that train", "Peak memory", "Training", "Trained tokens", "Date"],
        costs=[[*_name(one), *list(_costs(one, rows).values())[1:], one.get("date") or format.DASH] for one in rows],
        tested=bool(against),
        tasks=[(labels.task(task), labels.metric(found["metric"]), found["higher"], found["items"])
               for task, found in tasks.items()],
        quoted=_quoted(rows, values),
        quality=quality,
        losses=losses,
        plots=drawn,
        notes=notes,
        library=figures.library(),
    )  # fmt: skip


def _untested(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores of the reports, shaped as against_best shapes them."""
    found: dict[str, dict[str, Any]] = {}
    for one in rows:
        for key, value in one.items():
            if key in COLUMNS or key in ASIDE:
                continue
            task, _, metric = key.rpartition(" ")
            entry = {"metric": metric, "share": True, "higher": True, "items": None, "models": {}}
            scored = {"value": value / 100, "low": None, "high": None, "p_holm": None, "verdict": ""}
            found.setdefault(task, entry)["models"].setdefault(one["method"], scored)
    return found


def _quality(rows: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> tuple[str, str, dict[str, float]]:
    """What the methods are held against their cost by: the first task, or else the held-out loss."""
    for task, found in tasks.items():
        if found["share"]:
            values = {name: 100 * one["value"] for name, one in found["models"].items()}
            return labels.task(task), f"{labels.metric(found['metric'])}, %", values
    losses = {one["method"]: one["loss"] for one in rows if one["loss"] is not None}
    return "Held-out loss", "nats a token", losses


def _sentences(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Who is best at each task, and who cannot be told from it."""
    found = []
    for task, entry in tasks.items():
        by = {kind: [name for name, one in entry["models"].items() if one["verdict"] == kind]
              for kind in ("best", "not distinguishable")}  # fmt: skip
        if by["best"]:
            same = by["not distinguishable"]
            rest = f"; not distinguishable from it: {', '.join(same)}" if same else ""
            found.append(f"{labels.task(task)}: best is {by['best'][0]}{rest}.")
    return found


def _name(one: dict[str, Any]) -> list[Cell]:
    """The method with its settings, and the way to its report."""
    settings = [f"rank {one['rank']}" if one.get("rank") else "", f"rate {one['rate']:g}" if one.get("rate") else ""]
    return [Cell(one["method"], ", ".join(filter(None, settings)), link=one.get("link", ""))]


def _costs(one: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Cell]:
    """The held-out loss and what a method has cost; the best of a column is marked."""
    shown = {
        "loss": Cell(cell("loss", one["loss"]), sort=one["loss"]),
        "trainable": Cell(cell("trainable", one["trainable"]), f"{one['share']:.3g} % of all", sort=one["trainable"]),
        "peak": Cell(f"{one['peak']:.2f} GiB", sort=one["peak"]),
        "seconds": Cell(format.duration(one["seconds"]), f"{one['speed']:,.0f} trained tokens/s", sort=one["seconds"]),
        "trained_tokens": Cell(cell("trained_tokens", one["trained_tokens"]), sort=one["trained_tokens"]),
    }
    for key in (*LEAST, *MOST):
        known = [other[key] for other in rows if other[key] is not None]
        if key in shown and len(known) > 1 and one[key] == (max if key in MOST else min)(known):
            shown[key] = Cell(shown[key].text, shown[key].below, shown[key].sort, classes="best")
    return shown


def _score(found: dict[str, Any], one: dict[str, Any] | None) -> Any:
    """A score with its distance from the best one."""
    if one is None:
        return format.DASH
    scale, form = (100, "+.1f") if found["share"] else (1, "+.2g")
    text = format.percent(one["value"]) if found["share"] else f"{one['value']:.4g}"
    below = format.interval(one["low"], one["high"], form, scale) if one["low"] is not None else ""
    best = "best" if one["verdict"] == "best" else ""
    return Cell(text, below, sort=one["value"], verdict=one["verdict"], classes=best)


def _quoted(rows: list[dict[str, Any]], values: dict[str, float]) -> list[list[str]]:
    """Quoted beside measured, of the methods that are quoted; empty where none is."""
    full = next((values.get(one["method"]) for one in rows if one["recipe"] == "sft_alpaca"), None)
    found = []
    for one in rows:
        if one["quoted_share"] and one["recipe"] == one["method"]:
            mine = values.get(one["method"])
            quality = f"{100 * mine / full:.0f}" if full and mine is not None else format.DASH
            found.append([one["method"], one["quoted_share"], f"{one['share']:.3g}", one["quoted_quality"], quality])
    return found


def read(folder: Path) -> dict[str, Any] | None:
    """The report of a finished run in `folder`, or None."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
