"""The account of a run: report.json for programs, report.html (one file, no network) for people."""

import importlib.metadata
import json
import math
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import saved
from common.distributed import is_main_process
from common.encoding_stats import EncodingStats
from common.errors import CheckFailed
from common.meter import HELD_OUT, Meter
from common.models import device, parameters
from common.parameter_table import in_units

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth", "lm_eval")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that make the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the collection, with + where the tree differs from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        options = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
        name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return name + ("+" if changed else "")


def write(
    recipe: str,
    folder: Path,
    args: dict[str, Any],
    model: Any,
    counts: EncodingStats,
    mask_view: list[list],
    expected: dict[str, Any],
    meter: Meter,
    samples: list[dict],
    scores: dict[str, Any],
) -> dict[str, Any]:
    """Write report.json, which is returned, and report.html into the run's folder; print where it is and what changed.

    Args:
        recipe: the recipe's own file.
        args: its arguments.
        mask_view: [[text, trains], ...] of one training row.
        expected: the forecast: peak_bytes and seconds at least; its `parameters` and `saved` become part of `train`.
        scores: before, after and comparison ({task: {metric: {before, after, items}}}), by_skill (a table of `columns`
            and `rows`), forgetting (the verdict, empty where no general task was scored) and command (the lm_eval
            command line that gives the scores after), as harness.Scores has them; distillation, as teaching.join has.

    Raises:
        CheckFailed: what was saved in adapter/ or model/ is not what was to be; the report is there.
    """
    scores = dict(scores)
    taught = scores.pop("distillation", None)
    extra = {name: scores.pop(name) for name in ("by_skill", "command")} | {"loss_before": meter.losses[0]}
    report = {
        "recipe": Path(recipe).stem,
        "args": args,
        "device": device(),
        "samples": samples,
        "versions": versions(),
        "commit": commit(),
        "data": {**counts.as_dict(), "padding_share": meter.padding_share},
        "forecast": {name: value for name, value in expected.items() if name not in ("parameters", "saved")},
        "measured": meter.measured(),
        "train": _train(meter, taught) | _weights(folder, model, expected),
        "eval": _eval(meter),
        "scores": scores,
    } | ({"distillation": taught} if taught else {})
    _replace(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _replace(folder / "report.html", _page(report, mask_view, extra))
    _say(folder, report, extra, meter)
    return report


def _train(meter: Meter, taught: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "steps": meter.steps,
        "loss": meter.loss,
        "loss_name": taught["loss"] if taught else meter.training,
        "parts": meter.parts,
        "evaluations": meter.evaluations,
    }


def _eval(meter: Meter) -> dict[str, Any]:
    """The held-out loss at the end, by its name; its perplexity where it is cross-entropy."""
    loss, nats = meter.losses[1], meter.held_out == HELD_OUT
    return {
        "loss": loss,
        "loss_name": "cross-entropy, nats a token" if nats else meter.held_out.removeprefix("held-out "),
        "perplexity": math.exp(min(loss, 700)) if nats and loss is not None else None,
    }


def _weights(folder: Path, model: Any, expected: dict[str, Any]) -> dict[str, Any]:
    """What trained, and whether what was saved is what was to be."""
    trainable, every = parameters(model)
    found = {"trainable_parameters": trainable, "all_parameters": every}
    size, result = expected.get("saved"), folder / ("adapter" if (folder / "adapter").exists() else "model")
    if size:
        size = {**size, "difference": saved.difference(model, result, size["bytes"]) if is_main_process() else ""}
    return {**found, "parameters": expected.get("parameters", []), "saved": size}


def _page(report: dict[str, Any], mask_view: list[list], extra: dict[str, Any]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(curve=curve, bytes=in_bytes, number=number, duration=duration, units=in_units)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template("report.html.jinja")
    return page.render(**report, mask_view=mask_view, extra=extra, written=written, charts=charts(report))


def charts(report: dict[str, Any]) -> list[dict[str, list[list[float]]]]:
    """The series of each chart of losses, by name: what stands in one chart is the same measure."""
    train, held_out, taught = report["train"], report["eval"]["loss_name"], report.get("distillation")
    evaluations = {f"held-out {held_out}": train["evaluations"]}
    if taught:
        parts = train["parts"]
        divergence = f"{taught['divergence']} at T = {taught['temperature']:g}, training"
        return [
            {divergence: parts.get("divergence", [])},
            {"training cross-entropy": parts.get("cross_entropy", []), **evaluations},
        ]
    if held_out.partition(",")[0] == train["loss_name"]:
        return [{f"training {train['loss_name']}": train["loss"], **evaluations}]
    return [{f"training {train['loss_name']}": train["loss"]}, evaluations]


def _say(folder: Path, report: dict[str, Any], extra: dict[str, Any], meter: Meter) -> None:
    for task, metrics in report["scores"]["comparison"].items():
        for metric, row in metrics.items():
            print(f"{task} {metric}: before {100 * row['before']:.1f} % → after {100 * row['after']:.1f} %")
    if report["scores"]["forgetting"]:
        print(f"forgetting: {report['scores']['forgetting']['words']}")
    if extra["loss_before"] is not None:
        print(f"{meter.held_out}: before {extra['loss_before']:.4f} → after {report['eval']['loss']:.4f}")
    if extra["command"]:
        print(f"the same scores by lm-eval alone: {extra['command']}")
    print(f"report: {folder / 'report.html'}")
    if problem := (report["train"]["saved"] or {}).get("difference"):
        raise CheckFailed(problem)


def _replace(path: Path, text: str) -> None:
    """Write all or nothing; of several processes, the first writes."""
    if not is_main_process():
        return
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def number(value: float | int | None, digits: int = 3) -> str:
    """12345 -> 12,345; 0.0421 -> 0.0421; None -> a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def in_bytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GiB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def curve(series: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Coordinates of a line chart in a box of 640 x 220 for the page's SVG: lines and labelled ticks.

    Args:
        series: name -> [[x, y], ...]; empty series are left out.
    """
    series = {name: points for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    if not xs:
        return {"lines": [], "x": [], "y": []}
    left, right, top, bottom = 52, 628, 12, 192
    low, high, last = min(0, *ys), max(ys) or 1, max(xs) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / last, bottom - (bottom - top) * (y - low) / (high - low or 1)

    lines = [
        {"name": name, "points": " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(x, y) for x, y in points))}
        for name, points in series.items()
    ]
    steps = [last * part / 4 for part in range(5)]
    values = [low + (high - low) * part / 4 for part in range(5)]
    return {
        "lines": lines,
        "x": [(place(x, low)[0], f"{x:.0f}") for x in steps],
        "y": [(place(0, y)[1], f"{y:.2f}") for y in values],
    }
