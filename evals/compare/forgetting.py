"""Forgetting: a suite's general tasks and texts before and after tuning, and a verdict."""

from typing import Any

from tunebook.common.format import interval
from tunebook.evals.compare import comparison, page

TARGET_TASKS = {"pocket_seen", "pocket_unseen", "pocket_chat"}  # what tuning is for; every other task is general
TEXTS = {"pocket_text"}  # plain text, in bits per byte: no share, so not among a report's scores in percent
# What may be lost and still count as retained. Of a share, 2 points: what chance alone does to 500 items at 95 %
# (1.96·√(0.95·0.05/500) = 0.019).
MARGIN = 0.02
# Of bits per byte, relative, 5 %: what a model of half the parameters has more (loss ~ parameters^-0.076, and 2^0.076 =
# 1.054: Kaplan et al., Scaling laws for neural language models, 2020).
TEXT_MARGIN = 0.05
VERDICTS = ("regressed", "degraded", "inconclusive", "retained")
MEANING = (
    f"The margin is {100 * MARGIN:.0f} points of a general task (what chance alone does to 500 items at 95 %) and "
    f"{100 * TEXT_MARGIN:.0f} % more bits per byte of general text (what a model of half the parameters has more). "
    f"Where there is a loss as tunebook compare tells one (p below {comparison.ALPHA} after Holm's correction over all "
    "tasks of the suite), a task regressed if the whole 95 % interval lies beyond the margin, and degraded otherwise. "
    "Where there is none, it is retained if the interval rules out a loss beyond the margin, and inconclusive if not: "
    "too few items were scored."
)


def tested(before: dict[str, Any], after: dict[str, Any]) -> list[comparison.Row]:
    """The metric that speaks for each task of two scorings as harness.score gives them, tested as tunebook compare does
    on the same scores."""
    rows = [_row(task, before, after) for task in before["metrics"]]
    comparison.judge(rows)
    return rows


def verdict(
    before: dict[str, Any], after: dict[str, Any], all_rows: list[comparison.Row] | None = None
) -> dict[str, Any]:
    """The general tasks among `all_rows` (default: tested(before, after)); empty where there is none.

    Returns:
        verdict (the worst of any task), tasks {task: metric, items, before, after, low, high (of the
        difference), p, p_holm, loss_low, loss_high (what is lost at the ends of the interval, as the margin is meant),
        margin, verdict}, words (one line), meaning (of the verdicts).
    """
    rows = [row for row in all_rows or tested(before, after) if row.task not in TARGET_TASKS]
    if not rows:
        return {}
    tasks = {row.task: _judged(row) for row in rows}
    verdicts = {task["verdict"] for task in tasks.values()}
    worst = next(word for word in VERDICTS if word in verdicts)
    words = f"{worst}: " + ", ".join(_summary(row, tasks[row.task]) for row in rows)
    return {"verdict": worst, "tasks": tasks, "words": words, "meaning": MEANING}


def _row(task: str, before: dict[str, Any], after: dict[str, Any]) -> comparison.Row:
    """The metric that speaks for a task, paired by item."""
    rows = {}
    for metric, value in before["metrics"][task].items():
        first, second = ([scores["items"][task][item][metric] for item in before["items"][task]]
                         for scores in (before, after))  # fmt: skip
        higher = before["higher"][task][metric.partition(",")[0]] is not False
        scores = value, after["metrics"][task][metric]
        rows[metric] = comparison.measure(task, metric, higher, first, second, scores)
    row = rows[comparison.headline(list(rows), rows, None)]
    row.headline = True
    return row


def _judged(row: comparison.Row) -> dict[str, Any]:
    margin = MARGIN if row.share else TEXT_MARGIN
    result = {key: getattr(row, key) for key in ("metric", "items", "before", "after", "low", "high", "p", "p_holm")}
    if row.low is None or row.high is None or row.p_holm is None:
        return result | {"loss_low": None, "loss_high": None, "margin": margin, "verdict": "inconclusive"}
    scale = 1.0 if row.share else abs(row.before)
    ends = sorted((-row.low, -row.high) if row.higher_is_better else (row.low, row.high))
    low, high = (end / scale for end in ends)
    if row.verdict == "worse":
        word = "regressed" if low > margin else "degraded"
    else:
        word = "retained" if high <= margin else "inconclusive"
    return result | {"loss_low": low, "loss_high": high, "margin": margin, "verdict": word}


def _summary(row: comparison.Row, result: dict[str, Any]) -> str:
    """pocket_facts 99.0 % → 96.0 % (-5.7 to -1.0 points, degraded)"""
    before, after = (page.number(value, row.share) for value in (row.before, row.after))
    start = f"{row.task} {before} → {after}"
    if result["loss_low"] is None:
        return f"{start} (not tested)"
    if row.share:
        return f"{start} ({interval(result['low'], result['high'], '+.1f')} points, {result['verdict']})"
    ends = interval(result["low"], result["high"], "+.0f", 100 / abs(row.before))
    return f"{start} {row.metric} ({ends} %, {result['verdict']})"
