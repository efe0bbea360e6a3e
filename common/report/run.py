"""The account of a run: report.json for programs, report.html (one file, no network) for people."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common import files, provenance
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import CheckFailed
from tunebook.common.estimate import saved_files
from tunebook.common.format import percent
from tunebook.common.models import device, parameters
from tunebook.common.report import plots
from tunebook.common.tokens.encoding_stats import EncodingStats
from tunebook.common.training.metrics import HELD_OUT, TrainingMetrics


def write(
    recipe: str,
    folder: Path,
    args: dict[str, Any],
    model: Any,
    counts: EncodingStats,
    mask_view: list[list],
    expected: dict[str, Any],
    meter: TrainingMetrics,
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
        "device": device.describe(),
        "samples": samples,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "data": {**counts.as_dict(), "padding_share": meter.padding_share},
        "forecast": {name: value for name, value in expected.items() if name not in ("parameters", "saved")},
        "measured": meter.measured(),
        "train": _train(meter, taught) | _weights(folder, model, expected),
        "eval": _eval(meter),
        "scores": scores,
    } | ({"distillation": taught} if taught else {})
    if is_main_process():
        files.write_json(folder / "report.json", report, allow_nan=False)
        files.write_atomic(folder / "report.html", _page(report, mask_view, extra))
    _say(folder, report, extra, meter)
    return report


def _train(meter: TrainingMetrics, taught: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "steps": meter.steps,
        "loss": meter.loss,
        "loss_name": taught["loss"] if taught else meter.training,
        "parts": meter.parts,
        "evaluations": meter.evaluations,
    }


def _eval(meter: TrainingMetrics) -> dict[str, Any]:
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
        size = {**size, "difference": saved_files.difference(model, result, size["bytes"]) if is_main_process() else ""}
    return {**found, "parameters": expected.get("parameters", []), "saved": size}


def _page(report: dict[str, Any], mask_view: list[list], extra: dict[str, Any]) -> str:
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    drawn = [plots.curves(series) for series in charts(report)]
    template = Path(__file__).with_name("run.html.jinja")
    return files.page(template, **report, mask_view=mask_view, extra=extra, written=written, plots=drawn)


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


def _say(folder: Path, report: dict[str, Any], extra: dict[str, Any], meter: TrainingMetrics) -> None:
    for task, metrics in report["scores"]["comparison"].items():
        for metric, row in metrics.items():
            print(f"{task} {metric}: before {percent(row['before'])} → after {percent(row['after'])}")
    if report["scores"]["forgetting"]:
        print(f"forgetting: {report['scores']['forgetting']['words']}")
    if extra["loss_before"] is not None:
        print(f"{meter.held_out}: before {extra['loss_before']:.4f} → after {report['eval']['loss']:.4f}")
    if extra["command"]:
        print(f"the same scores by lm-eval alone: {extra['command']}")
    print(f"report: {folder / 'report.html'}")
    if problem := (report["train"]["saved"] or {}).get("difference"):
        raise CheckFailed(problem)
