"""lm-eval's result and sample files of one model: per task its items, their scores, and how it was asked."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError, first_names
from tunebook.evals.compare import runs

NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")
HOW = "lm_eval run writes them with --log_samples --output_path FOLDER, a recipe into eval/before and eval/after"


@dataclass
class Task:
    """One task; a key is (doc_id, doc_hash).

    Attributes:
        scores: metric -> lm-eval's number; `metric,filter` where there are several filters.
        items: key -> sample.
        values, filtered_responses: metric -> key -> what lm-eval wrote, and what it was computed from.
        metadata: what the task was told: template, dataset, ...
    """

    name: str
    version: Any
    shots: int | None
    scores: dict[str, float]
    higher: dict[str, bool]
    items: dict[tuple[int, str], dict] = field(default_factory=dict)
    values: dict[str, dict[tuple[int, str], Any]] = field(default_factory=dict)
    filtered_responses: dict[str, dict[tuple[int, str], Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelScores:
    """What lm-eval wrote of one model: tasks, groups {name: tasks in it} with their scores, and the settings."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    group_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(folder: Path) -> ModelScores:
    """Read the newest samples of each task under a folder, with the results that were written with them; of a run's
    folder those after training.

    Raises:
        UserError: there are none, a file is damaged, results are missing, or the folder holds several models.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name its folder" if folder.is_file() else f"there is no folder {folder}")
    model, dated = ModelScores(folder), {}
    if (folder / runs.REPORT).exists():
        folder = _of_run(folder)
        model.notes.append(f"{model.folder}: its scores after training, {folder}")
    for path in sorted(folder.rglob("samples_*.jsonl")):
        if match := NAME.fullmatch(path.name):
            dated.setdefault(match["task"], []).append((match["date"], path))
    if not dated:
        raise UserError(f"{folder} holds no samples_TASK_DATE.jsonl; {HOW}")
    newest = {task: max(found)[1] for task, found in dated.items()}
    _one_model(folder, dated)
    if older := sum(len(found) - 1 for found in dated.values()):
        model.notes.append(f"{folder}: {older} older file{'s' * (older > 1)} of samples ignored")
    for task, path in sorted(newest.items()):
        date = NAME.fullmatch(path.name)["date"]  # pyright: ignore[reportOptionalSubscript]
        results_path = path.with_name(f"results_{date}.json")
        if not results_path.exists():
            raise UserError(
                f"{results_path} is missing; lm-eval writes it beside {path.name}, and its versions are needed"
            )
        results = _json(results_path)
        model.tasks[task] = _task(task, path, results)
        model.files.append(path)
        _settings(model, results)
    return model


def _of_run(folder: Path) -> Path:
    """Where a recipe has left the scores after training."""
    after = folder / "eval" / "after"
    if not any(after.rglob("samples_*.jsonl")):
        raise UserError(
            f"{folder} is a run that scored no suite; score it on rows that it has not seen, and then compare the "
            f"folders of scores: tunebook eval --adapter {folder} --dataset MY_TEST.jsonl --output_dir "
            f"scores/{folder.resolve().name}"
        )
    return after


def _one_model(folder: Path, dated: dict[str, list[tuple[str, Path]]]) -> None:
    """One folder may hold a model's scores of several days, not two models' scores of a task."""
    places = {path.parent.parent for found in dated.values() for _, path in found}
    if len(places) > 1:
        raise UserError(f"{folder} holds several sets of scores, in {_listed(places)}; name one of them")
    models: dict[str, Path] = {}
    for path in {path.parent for found in dated.values() for _, path in found}:
        for file in path.glob("results_*.json"):
            config = _json(file).get("config", {})
            models.setdefault(json.dumps([config.get("model"), config.get("model_args")], sort_keys=True), path)
    if len(models) > 1:
        raise UserError(
            f"{folder} holds scores of {len(models)} models, in {_listed(models.values())}; name one of them"
        )


def _listed(paths: Any) -> str:
    return first_names(sorted({str(path) for path in paths}), 4)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object, found a {type(found).__name__}")
    return found


def _task(name: str, path: Path, results: dict[str, Any]) -> Task:
    """Items and values of a sample file; a task with several filters has a line for each filter and item."""
    scores = metric_values(results.get("results", {}).get(name, {}))
    if not scores:
        raise UserError(f"{path}: the results file beside it has no numbers of {name}")
    higher = results.get("higher_is_better", {}).get(name, {})
    task = Task(
        name,
        version=results.get("versions", {}).get(name),
        shots=results.get("n-shot", {}).get(name),
        scores=scores,
        higher={metric: higher.get(metric.partition(",")[0]) is not False for metric in scores},
        metadata=results.get("configs", {}).get(name, {}).get("metadata") or {},
    )
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                sample = json.loads(line)
                key = (sample["doc_id"], sample["doc_hash"])
                for metric in sample["metrics"]:
                    label = metric if metric in scores else f"{metric},{sample['filter']}"
                    values = task.values.setdefault(label, {})
                    if key in values:
                        raise UserError(f"{path}, line {number}: item {key[0]} is there a second time")
                    values[key] = sample[metric]
                    task.filtered_responses.setdefault(label, {})[key] = sample["filtered_resps"]
                task.items.setdefault(key, sample)
            except (ValueError, KeyError, TypeError) as error:
                what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{path}, line {number}: this is no sample as lm-eval writes them: {what}") from None
    if not task.items:
        raise UserError(f"{path} is empty")
    return task


def metric_values(results: dict[str, Any], stderr: bool = False) -> dict[str, float]:
    """{"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": ...} -> {"acc": 0.5}, or the standard errors by metric."""
    names = [name.split(",", 1) for name in results if "," in name]
    filters = Counter(metric for metric, _ in names)
    values = {}
    for metric, filter_name in names:
        value = results[f"{metric},{filter_name}"]
        if metric.endswith("_stderr") == stderr and isinstance(value, (int, float)):
            plain = metric.removesuffix("_stderr")
            values[plain if filters[metric] == 1 else f"{plain},{filter_name}"] = float(value)
    return values


def _settings(model: ModelScores, results: dict[str, Any]) -> None:
    """What may change scores although the items are the same; of several result files, the last counts."""
    config = results.get("config", {})
    model.settings |= {
        "model": results.get("model_name") if results.get("model_source") != "CUSTOM" else None,
        "model_args": config.get("model_args"),
        "dtype": config.get("model_dtype"),
        "lm_eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
        "chat_template": bool(results.get("chat_template")),
        "system_instruction": results.get("system_instruction"),
    }
    for group, inside in results.get("group_subtasks", {}).items():
        if inside:
            model.groups[group] = inside
            model.group_scores[group] = metric_values(
                results["results"].get(group, {}) | results.get("groups", {}).get(group, {})
            )
