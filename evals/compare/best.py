"""Several models on the same items: each against the best of a task, by the test of `tunebook compare`."""

from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.evals.compare import comparison, forgetting, logs, matching
from tunebook.evals.compare.comparison import Row
from tunebook.evals.compare.logs import ModelScores
from tunebook.evals.stats import paired

BEST, SAME, WORSE = "best", "not distinguishable", "worse"


def against_best(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Each task that models were scored on.

    Args:
        folders: name -> a run, or a folder of scores; one without scores is passed over.

    Returns:
        {task: {metric, share, higher, items, models: {name: {value, low, high, p_holm, verdict}}}}. `low` and `high`:
        of the model's score less the best one's, None of the best itself. `verdict`: best, not distinguishable or worse
        (Holm over the models of a task), "" where the two were not asked the same.
    """
    models = {}
    for name, folder in folders.items():
        try:
            models[name] = logs.read(folder)
        except UserError:
            continue
    names = dict.fromkeys(task for model in models.values() for task in model.tasks)
    tasks = sorted(names, key=lambda task: task not in forgetting.TARGET_TASKS)  # what training was for comes first
    return {task: found for task in tasks if (found := _of_task(task, _having(models, task)))}


def _having(models: dict[str, ModelScores], task: str) -> dict[str, ModelScores]:
    return {name: model for name, model in models.items() if task in model.tasks}


def _of_task(task: str, models: dict[str, ModelScores]) -> dict[str, Any] | None:
    names = list(models)
    rows = [_headline(task, models[names[0]], models[name]) for name in names[1:]]
    metric = next((row.metric for row in rows if row), next(iter(models[names[0]].tasks[task].scores), None))
    values = {name: model.tasks[task].scores.get(metric or "") for name, model in models.items()}
    known = {name: value for name, value in values.items() if value is not None}
    if metric is None or not known:
        return None
    higher = models[names[0]].tasks[task].higher[metric]
    best = max(known, key=lambda name: known[name] if higher else -known[name])
    against = {name: _headline(task, models[best], models[name]) for name in known if name != best}
    tested = {name: row for name, row in against.items() if row and row.p is not None and row.metric == metric}
    holm = dict(zip(tested, paired.holm([row.p or 0.0 for row in tested.values()]), strict=True))
    found: dict[str, dict[str, Any]] = {}
    for name, value in known.items():
        row, p = tested.get(name), holm.get(name)
        verdict = BEST if name == best else "" if p is None else WORSE if p < comparison.ALPHA else SAME
        low, high = (row.low, row.high) if row else (None, None)
        found[name] = {"value": value, "low": low, "high": high, "p_holm": p, "verdict": verdict}
    shares = [row.share for row in tested.values()] or [0 <= known[best] <= 1 and "bits" not in metric]
    return {"metric": metric, "share": all(shares), "higher": higher, "items": len(models[best].tasks[task].items),
            "models": found}  # fmt: skip


def _headline(task: str, best: ModelScores, other: ModelScores) -> Row | None:
    """The row that speaks for a task, of `other` against `best`; None where they were not asked the same."""
    try:
        matching.pair(best, other, [task], False)
    except UserError:
        return None
    rows = comparison.task_rows(best, other, task, None, [])
    return next((row for row in rows if row.headline), None)
