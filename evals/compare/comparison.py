"""Two models on the same items: the difference on each task, its interval and p, and the items won and lost."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunebook.common.errors import UserError
from tunebook.evals.compare import aggregates, examples, logs, matching
from tunebook.evals.compare.logs import ModelScores
from tunebook.evals.stats import paired

ALPHA = 0.05
EXAMPLES = 4  # items won, and items lost, that are shown of each task


@dataclass
class Row:
    """One metric of one task (or group) before and after; p values only of headline rows, which are tested."""

    task: str
    metric: str
    higher_is_better: bool
    items: int
    before: float
    after: float
    share: bool = False  # between 0 and 1: shown in percent
    test: str | None = None  # None: not testable, as lm-eval's number does not follow from the items
    low: float | None = None  # of the 95 % interval of after - before
    high: float | None = None
    won: int | None = None
    lost: int | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: str = ""  # better, worse, no difference shown, not tested; empty: no headline
    headline: bool = False
    part_of: str | None = None  # the group that it is counted in
    changes: list[tuple[float, int]] = field(default_factory=list)  # (gain, place of the item), of items that changed

    @property
    def difference(self) -> float:
        return self.after - self.before

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"difference": self.difference}
        del values["changes"]
        return values


def measure(
    task: str, metric: str, higher: bool, before: list[Any], after: list[Any], scores: tuple[float, float]
) -> Row:
    """One metric on paired items: difference, interval, p, and which items were won and lost.

    Args:
        before, after: what lm-eval wrote for each item, in the same order.
        scores: lm-eval's own numbers; the items must give them.
    """
    row = Row(task, metric, higher, len(before), *scores)
    match = aggregates.find([(before, scores[0]), (after, scores[1])])
    if match is None or not np.isfinite(scores).all():  # a perplexity may overflow
        row.verdict = "not tested"
        return row
    aggregate, (rows_before, rows_after) = match
    with np.errstate(all="ignore"):
        gains = np.nan_to_num(aggregate.of(rows_after) - aggregate.of(rows_before)) * (1 if higher else -1)
    row.won, row.lost = int((gains > 0).sum()), int((gains < 0).sum())
    row.changes = [(float(gains[place]), int(place)) for place in np.flatnonzero(gains)]
    both = np.concatenate([rows_before, rows_after])
    if aggregate is aggregates.MEAN:
        row.share = bool(((both >= 0) & (both <= 1)).all())
    row.share |= aggregate.name == "share of all results"
    if aggregate is aggregates.MEAN and np.isin(both, (0, 1)).all():
        up, down = (row.won, row.lost) if higher else (row.lost, row.won)
        row.test, row.p = "exact McNemar", paired.mcnemar(down, up)
        row.low, row.high = paired.score_interval(down, up, row.items)
    else:
        row.test = "paired bootstrap"
        row.low, row.high, row.p = paired.bootstrap(rows_before, rows_after, aggregate.of)
        if not np.isfinite([row.low, row.high]).all():  # so few items that a sample of them may have no value
            row.test = row.low = row.high = row.p = None
            row.verdict = "not tested"
    return row


def judge(rows: list[Row]) -> None:
    """Holm over the headline rows, and their verdicts; the others keep their intervals and lose their p."""
    tested = [row for row in rows if row.headline and row.test]
    for row, p in zip(tested, paired.holm([row.p or 0.0 for row in tested]), strict=True):
        row.p_holm, row.verdict = p, "no difference shown"
        if p < ALPHA:
            row.verdict = "better" if (row.difference > 0) == row.higher_is_better else "worse"
    for row in rows:
        if not row.headline:
            row.p, row.verdict = None, ""


def headline(metrics: list[str], rows: dict[str, Row], wanted: str | None) -> str:
    """The metric that speaks for a task: as asked, else acc_norm, else the first of lm-eval's that can be tested; a
    perplexity only where nothing else can: its interval is that of an exponential."""
    if wanted:
        return wanted
    tested = [metric for metric in metrics if rows[metric].test]
    plain = [metric for metric in tested if "perplexity" not in metric]
    return "acc_norm" if "acc_norm" in tested else (plain or tested or metrics)[0]


def compare(
    base: Path, tuned: Path, only: list[str] | None = None, metrics: dict[str, str] | None = None,
    any_prompt: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Everything that `tunebook compare` says, as plain values.

    Args:
        base, tuned: folders with lm-eval's results and samples.
        only: tasks or groups to compare; default: all.
        metrics: {task: metric} that speaks for it instead of the usual one.

    Raises:
        UserError: the two were not asked the same, or a file cannot be read.
    """
    before, after = logs.read(base), logs.read(tuned)
    names, notes = matching.pair(before, after, only or [], any_prompt)
    wanted = metrics or {}
    rows = [row for name in names for row in task_rows(before, after, name, wanted.get(name), notes)]
    grouped = _groups(before, after, names, wanted, rows)
    unknown = set(wanted) - {row.task for row in [*rows, *grouped]}
    if unknown:
        raise UserError(f"--metrics {min(unknown)}=...: there is no such task among {', '.join(names)}")
    rows = [*grouped, *rows]
    judge(rows)
    return {
        "before": {"folder": str(base), **before.settings},
        "after": {"folder": str(tuned), **after.settings},
        "level": paired.LEVEL,
        "alpha": ALPHA,
        "notes": notes,
        "rows": [row.as_dict() for row in rows],
        "items": {row.task: _examples(before, after, row) for row in rows if row.headline and row.test},
    }


def task_rows(before: ModelScores, after: ModelScores, name: str, wanted: str | None, notes: list[str]) -> list[Row]:
    """All metrics of a task that lm-eval gives a number for; one is the headline."""
    one, other = before.tasks[name], after.tasks[name]
    numbered = [metric for metric in one.values if metric in one.scores and metric in other.scores]
    for metric in set(one.values) - set(numbered):
        notes.append(f"{name}: {metric} has no number in lm-eval's results")
    if wanted and wanted not in numbered:
        raise UserError(f"--metrics {name}={wanted}: it has {', '.join(numbered)}")
    rows = {}
    for metric in numbered:
        keys = list(one.values[metric])
        first, second = ([task.values[metric][key] for key in keys] for task in (one, other))
        scores = one.scores[metric], other.scores[metric]
        rows[metric] = measure(name, metric, one.higher[metric], first, second, scores)
    if numbered:
        rows[headline(numbered, rows, wanted)].headline = True
    return list(rows.values())


def _groups(
    before: ModelScores, after: ModelScores, names: list[str], wanted: dict[str, str], rows: list[Row]
) -> list[Row]:
    """A row for each outermost group whose number is that of all its items; its tasks are no headlines then."""
    inner = {part for parts in before.groups.values() for part in parts}
    found = []
    for group in before.groups:
        parts = matching.leaves(before, group)
        if group in inner or not set(parts) <= set(names):
            continue
        pooled = {}
        for metric, score in before.group_scores[group].items():
            score_after = after.group_scores.get(group, {}).get(metric)
            if score_after is None or any(metric not in before.tasks[part].values for part in parts):
                continue
            first, second = (
                [model.tasks[part].values[metric][key] for part in parts for key in before.tasks[part].values[metric]]
                for model in (before, after)
            )
            row = measure(group, metric, before.tasks[parts[0]].higher[metric], first, second, (score, score_after))
            if row.test:
                pooled[metric] = row
        if pooled:
            pooled[headline(list(pooled), pooled, wanted.get(group))].headline = True
            found += pooled.values()
            for row in rows:
                if row.task in parts:
                    row.headline, row.part_of = False, group
    return found


def _examples(before: ModelScores, after: ModelScores, row: Row) -> dict[str, list[dict[str, Any]]]:
    """The items with the greatest gains and losses, with both answers."""
    parts = matching.leaves(before, row.task) if row.task not in before.tasks else [row.task]
    keys = [(part, key) for part in parts for key in before.tasks[part].values[row.metric]]
    changes = {
        "lost": sorted((change for change in row.changes if change[0] < 0), key=lambda change: change[0]),
        "won": sorted((change for change in row.changes if change[0] > 0), key=lambda change: -change[0]),
    }
    found: dict[str, list[dict[str, Any]]] = {"lost": [], "won": []}
    for kind, items in changes.items():
        for _, place in items[:EXAMPLES]:
            task, key = keys[place]
            found[kind].append(examples.side_by_side(before.tasks[task], after.tasks[task], key, row.metric))
    return found
