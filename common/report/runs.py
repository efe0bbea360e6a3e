"""All runs of a folder: what each one's files say, without loading anything of it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common.report import history, summary
from tunebook.common.run_folder import lock, output_dir

DEPTH = 4  # folders below the one that was named
INSIDE = {"tokens", "eval", "adapter", "model", "base", "best", "node_modules"}  # of a run, or never with runs in it
# Arguments that choose nothing of what is trained, or stand in the first table.
NOT_CHOSEN = {*summary.ONCE, "output_dir", "debug_batches", "report_to", "model", "dataset"}
BINARY = ("exact_match", "acc", "acc_norm", "em", "pass@1")  # metrics whose items are right or wrong


@dataclass
class RunSummary:
    """One run, as far as its files say; None where they do not.

    Attributes:
        scores: task -> {value, share, metric, low, high, verdict}, after training, with the score's own interval where
            items are right or wrong, and the verdict against before.
        curves: "training" and "held-out" loss: [[step, value], ...].
    """

    name: str
    folder: Path
    state: str
    recipe: str
    args: dict[str, Any]
    date: str = ""
    steps: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    loss_name: str = ""
    seconds: float | None = None
    peak_bytes: int | None = None
    trained_tokens: int | None = None
    forgetting: str = ""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def page(self) -> Path | None:
        """Its report.html, where there is one."""
        path = self.folder / "report.html"
        return path if path.exists() else None


def collect(folder: Path) -> tuple[list[RunSummary], list[str]]:
    """The runs below a folder, the newest first, and a line on each folder whose run cannot be read."""
    found, left_out = [], []
    for place in _places(folder, DEPTH):
        name = str(place.relative_to(folder)) if place != folder else place.resolve().name
        try:
            found.append(_checked(_summary(place, name)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            left_out.append(f"{name}: {_why(error)}")
    return sorted(found, key=lambda run: run.date, reverse=True), left_out


def differences(runs: list[RunSummary]) -> dict[str, list[str]]:
    """argument -> its value in every run, "" where a run has none; those alone that differ where runs have it."""
    names = dict.fromkeys(name for run in runs for name in run.args if name not in NOT_CHOSEN)
    table = {name: [_text(run.args.get(name)) for run in runs] for name in names}
    return {name: values for name, values in table.items() if len(set(values) - {""}) > 1}


def _places(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that hold a run; nothing is looked for inside of one."""
    if any((folder / name).is_file() for name in (output_dir.REPORT, output_dir.RUN_FILE, lock.FILE)):
        yield folder
        return
    if not depth:
        return
    with os.scandir(folder) as entries:
        inner = sorted(
            entry.name for entry in entries
            if entry.is_dir(follow_symlinks=False) and entry.name not in INSIDE and not entry.name.startswith(".")
        )  # fmt: skip
    for name in inner:
        try:
            yield from _places(folder / name, depth - 1)
        except PermissionError:
            continue


def _why(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error) if str(error).startswith("its ") else "its files are damaged"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    return "its files are not those of a run of tunebook"


def _read(path: Path) -> dict[str, Any] | None:
    """A file of JSON; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, ValueError):
        raise ValueError(f"its {path.name} is damaged") from None
    if not isinstance(found, dict):
        raise ValueError(f"its {path.name} is not that of a run")
    return found


def _summary(folder: Path, name: str) -> RunSummary:
    report, record = _read(folder / output_dir.REPORT), _read(folder / output_dir.RUN_FILE) or {}
    parts = record.get("parts") or [{}]
    held = lock.holder(folder)
    if report is not None and held in (None, "killed"):
        return _finished(folder, name, report, parts)
    if not record and held is None:
        raise ValueError("its run.json is missing")
    progress = _read(folder / output_dir.PROGRESS) or parts[-1]
    lines = history.read(folder / output_dir.LOG)
    held_out = history.series(lines, "eval_loss")
    recipe = record.get("recipe") or {}
    state = held or ("not begun" if not record.get("parts") else "stopped")
    return RunSummary(
        name, folder, state, recipe.get("name") or "", dict(record.get("args") or {}),
        date=str(progress.get("ended") or parts[-1].get("begun") or "")[:16].replace("T", " "),
        steps=progress.get("to_step"),
        loss_before=held_out[0][1] if held_out and held_out[0][0] == 0 else None,
        loss_after=held_out[-1][1] if held_out else None,
        seconds=sum(part.get("seconds") or 0.0 for part in parts[:-1]) + (progress.get("seconds") or 0.0),
        peak_bytes=progress.get("peak_bytes"),
        trained_tokens=sum(part.get("trained_tokens") or 0 for part in (*parts[:-1], progress)),
        curves={"training": history.series(lines, "loss"), "held-out": held_out},
    )  # fmt: skip


def _checked(run: RunSummary) -> RunSummary:
    """The summary, whose values are numbers where tables and plots need them.

    Raises:
        TypeError: they are not.
    """
    numbers = [run.steps, run.loss_before, run.loss_after, run.seconds, run.peak_bytes, run.trained_tokens]
    points = [part for curve in run.curves.values() for step, value in curve for part in (step, value)]
    for value in (*numbers, *points, *(score["value"] for score in run.scores.values())):
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(value)
    return run


def _finished(folder: Path, name: str, report: dict[str, Any], parts: list[dict[str, Any]]) -> RunSummary:
    train, measured, scores = report["train"], report["measured"], report["scores"]
    ended = (report.get("run") or {}).get("parts") or parts
    evaluations = train["evaluations"]
    return RunSummary(
        name, folder, "finished", report["recipe"], dict(report["args"]),
        date=str(ended[-1].get("ended") or "")[:16].replace("T", " "),
        steps=train["steps"],
        loss_before=next((value for step, value in evaluations if step == 0), None),
        loss_after=report["eval"]["loss"],
        loss_name=report["eval"].get("loss_name", ""),
        seconds=measured["seconds"],
        peak_bytes=measured["peak_bytes"],
        trained_tokens=measured.get("trained_tokens"),
        forgetting=(scores.get("forgetting") or {}).get("verdict", ""),
        scores=_scores(scores),
        curves={"training": train["loss"], "held-out": evaluations},
    )  # fmt: skip


def _scores(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The score of each task after training; where its items are right or wrong, with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for row in summary.tests(scores):
        entry = {"value": row["after"], "share": row["share"], "metric": row["metric"], "low": None, "high": None,
                 "verdict": summary.word(row, scores.get("forgetting") or {})}  # fmt: skip
        if row["share"] and row["metric"].partition(",")[0] in BINARY and row["items"]:
            entry["low"], entry["high"] = summary.wilson(row["after"], row["items"])
        found.setdefault(row["task"], entry)
    return found


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
