"""The report of a run: report.json, and report.html (one file, no network)."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common import files, pages, provenance
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import CheckFailed
from tunebook.common.estimate import saved_files
from tunebook.common.flags import redaction
from tunebook.common.format import duration, percent
from tunebook.common.models import device, parameters
from tunebook.common.report import answers, history, summary, tables
from tunebook.common.report.figures import curves, library
from tunebook.common.run_folder import output_dir
from tunebook.common.tokens.encoding_stats import EncodingStats
from tunebook.common.training.metrics import HELD_OUT, TrainingMetrics


def write(
    recipe: str,
    folder: Path,
    args: dict[str, Any],
    model: Any,
    stats: EncodingStats,
    preview: list[list],
    forecast: dict[str, Any],
    metrics: TrainingMetrics,
    samples: list[dict],
    scores: dict[str, Any],
    account: dict[str, Any],
) -> dict[str, Any]:
    """Write report.json, which is returned, and report.html into the run's folder; print where it is and what changed.

    Args:
        recipe: the recipe's own file.
        preview: [[text, trains], ...] of one training row.
        forecast: Forecast.as_dict; its `parameters` and `saved` become part of `train`.
        scores: before, after comparison ({task: {metric: {before, after, items}}}), tests (comparison.Row.as_dict of
            the metric that speaks for each task), by_skill (a table of `columns`
            and `rows`), forgetting (the verdict, empty where no general task was scored), command (the lm_eval
            command line that gives the scores after), and distillation (teacher_cache_writer.add_to_scores).
        account: RunRecord.summary.

    Raises:
        CheckFailed: the saved weights are not the predicted ones; the report is written all the same.
    """
    scores = dict(scores)
    distillation = scores.pop("distillation", None)
    extra = {name: scores.pop(name) for name in ("by_skill", "command")} | {"loss_before": metrics.losses[0]}
    extra["train_command"] = summary.training_command(args, Path(recipe))
    report = {
        "recipe": Path(recipe).stem,
        "args": args,
        "device": device.describe(),
        "samples": samples,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "data": {**stats.as_dict(), "padding_share": metrics.padding_share},
        "forecast": {name: value for name, value in forecast.items() if name not in ("parameters", "saved")},
        "run": account,
        "measured": _measured(metrics, account),
        "train": {
            "steps": metrics.steps,
            "loss": metrics.loss,
            "loss_name": distillation["loss"] if distillation else metrics.training,
            "parts": metrics.parts,
            "evaluations": metrics.evaluations,
            **_weights(folder, model, forecast),
        },
        "eval": _eval(metrics),
        "scores": scores,
    } | ({"distillation": distillation} if distillation else {})
    report |= _shareable({name: value for name, value in report.items() if name != "samples"}, folder)
    if is_main_process():
        files.write_json(folder / "report.json", report, allow_nan=False)
        files.write_atomic(folder / "report.html", _page(report, preview, _shareable(extra, folder), folder))
    _print(folder, report, extra, metrics)
    return report


def _shareable(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Without secrets, and with names in place of this machine's paths."""
    return redaction.without_paths(redaction.without_secrets(values), folder)


def _measured(metrics: TrainingMetrics, account: dict[str, Any]) -> dict[str, Any]:
    """Of all parts of the run; the peak memory is the highest of them."""
    measured = metrics.measured()
    return measured | {"peak_bytes": max(measured["peak_bytes"], *(part["peak_bytes"] for part in account["parts"]))}


def _eval(metrics: TrainingMetrics) -> dict[str, Any]:
    """The held-out loss at the end, by its name; its perplexity where it is cross-entropy."""
    loss, nats = metrics.losses[1], metrics.held_out == HELD_OUT
    return {
        "loss": loss,
        "loss_name": "cross-entropy, nats a token" if nats else metrics.held_out.removeprefix("held-out "),
        **({"curve_rows": rows.rows, "held_out_rows": rows.of} if (rows := metrics.held_out_rows) else {}),
        "perplexity": math.exp(min(loss, 700)) if nats and loss is not None else None,
    }


def _weights(folder: Path, model: Any, forecast: dict[str, Any]) -> dict[str, Any]:
    """What trained, and whether the saved weights are the predicted ones."""
    trainable, total = parameters(model)
    size, saved = forecast.get("saved"), folder / ("adapter" if (folder / "adapter").exists() else "model")
    if size:
        size = {**size, "difference": saved_files.difference(model, saved, size["bytes"]) if is_main_process() else ""}
    return {
        "trainable_parameters": trainable,
        "all_parameters": total,
        "parameters": forecast.get("parameters", []),
        "saved": size,
    }


def _page(report: dict[str, Any], preview: list[list], extra: dict[str, Any], folder: Path) -> str:
    scores, before = report["scores"], extra["loss_before"]
    tone, sentences = summary.verdict(report, before)
    drawn = [curves(f"loss-{place}", title, series, y=unit)
             for place, (title, unit, series) in enumerate(_titled(charts(report)))]  # fmt: skip
    adapter = (folder / "adapter").exists()
    return pages.render(
        Path(__file__).with_name("run.html.jinja"),
        **report,
        preview=preview,
        extra=extra,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tone=tone,
        sentences=sentences,
        name=Path(report["args"].get("output_dir") or folder.name).name,
        method=summary.method(report),
        quality=summary.quality_tiles(report, before),
        costs=summary.cost_tiles(report),
        score_heads=summary.SCORE_HEADS,
        score_rows=summary.score_rows(scores),
        **tables.of(report, extra),
        answers=answers.shown(report["samples"]),
        losses=[one for one in drawn if one],
        history=history.plots(history.read(folder / output_dir.LOG)),
        steps=summary.next_steps(report, report["args"].get("output_dir") or folder.name, adapter),
        library=library(),
    )


def _titled(found: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """(title, unit, series) of charts of losses."""
    titles = {"training": "Loss", "held-out": "Held-out loss"}
    named = []
    for series in found:
        first = next(iter(series))
        title = titles.get(first.partition(" ")[0], "Divergence from the teacher")
        unit = "nats a token" if any("cross-entropy" in name or "KL" in name for name in series) else "loss"
        named.append((title, unit, series))
    return named


def charts(report: dict[str, Any]) -> list[dict[str, list[list[float]]]]:
    """The series of each chart of losses, by name: what stands in one chart is the same measure."""
    train, held_out, distillation = report["train"], report["eval"]["loss_name"], report.get("distillation")
    evaluations = {f"held-out {held_out}": train["evaluations"]}
    if distillation:
        parts = train["parts"]
        divergence = f"{distillation['divergence']} at T = {distillation['temperature']:g}, training"
        return [
            {divergence: parts.get("divergence", [])},
            {"training cross-entropy": parts.get("cross_entropy", []), **evaluations},
        ]
    if held_out.partition(",")[0] == train["loss_name"]:
        return [{f"training {train['loss_name']}": train["loss"], **evaluations}]
    return [{f"training {train['loss_name']}": train["loss"]}, evaluations]


def _print(folder: Path, report: dict[str, Any], extra: dict[str, Any], metrics: TrainingMetrics) -> None:
    for task, scores in report["scores"]["comparison"].items():
        for metric, row in scores.items():
            print(f"{task} {metric}: before {percent(row['before'])} → after {percent(row['after'])}")
    if report["scores"]["forgetting"]:
        print(f"forgetting: {report['scores']['forgetting']['words']}")
    if extra["loss_before"] is not None:
        print(f"{metrics.held_out}: before {extra['loss_before']:.4f} → after {report['eval']['loss']:.4f}")
    if metrics.held_out_rows:
        rows, took = report["eval"], report["measured"]
        print(
            f"evaluations of {rows['curve_rows']} of {rows['held_out_rows']} held-out rows took "
            f"{duration(took['evaluation_seconds'])}, {percent(took['evaluation_share'])} of the time of steps and "
            "evaluations"
        )
    if extra["command"]:
        print(f"reproduce with lm-eval: {extra['command']}")
    print(f"report: {folder / 'report.html'}")
    if problem := (report["train"]["saved"] or {}).get("difference"):
        raise CheckFailed(problem)
