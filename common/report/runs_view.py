"""The runs of a folder as tables for a terminal, and as one page."""

import os
from pathlib import Path
from typing import Any

from tunebook.common import format, pages
from tunebook.common.flags import redaction
from tunebook.common.format import DASH, byte_size, duration, number, percent
from tunebook.common.pages import Cell
from tunebook.common.report import labels
from tunebook.common.report.runs import RunSummary, differences

OPTIONAL = ("data", "memory", "model", "recipe", "ended", "time")  # columns, in the order in which they are left out
NUMBERS = ("steps", "held-out loss", "time", "memory")
CURVES = 25  # runs whose curves are drawn together; of more the newest


def terminal(runs: list[RunSummary], left_out: list[str], width: int) -> str:
    """Three tables: what ran and what it has cost, its scores, and the arguments that differ.

    Args:
        width: of the terminal; columns of OPTIONAL are left out until the first table fits.
    """
    columns = {
        "run": [run.name for run in runs],
        "state": [run.state for run in runs],
        "recipe": [run.recipe for run in runs],
        "model": [_model(run) for run in runs],
        "data": [_data(run) for run in runs],
        "ended": [run.date for run in runs],
        "steps": [number(run.steps) for run in runs],
        "held-out loss": [_loss(run) for run in runs],
        "time": [duration(run.seconds) for run in runs],
        "memory": [byte_size(run.peak_bytes or None) for run in runs],
    }
    text = _table(columns)
    for name in OPTIONAL:
        if max(map(len, text.splitlines())) > width:
            del columns[name]
            text = _table(columns)
    parts = [text]
    if tasks := tasks_of(runs):
        scored = [run for run in runs if run.scores]
        columns = {"run": [run.name for run in scored]}
        columns |= {task: [_score(run.scores.get(task)) for run in scored] for task in tasks}
        columns["forgetting"] = [run.forgetting or DASH for run in scored]
        parts.append(f"Scores after training, with 95 % intervals where items are right or wrong\n{_table(columns)}")
    if differ := differences(runs):
        columns = {"run": [run.name for run in runs]}
        columns |= {name: [value or DASH for value in values] for name, values in differ.items()}
        parts.append(f"Arguments that differ\n{_table(columns)}")
    return "\n\n".join([*parts, *(["Left out: " + "; ".join(left_out)] if left_out else [])])


def _table(columns: dict[str, list[str]]) -> str:
    left = [place for place, name in enumerate(columns) if name not in NUMBERS]
    return format.table(list(columns), list(zip(*columns.values(), strict=True)), left)


def tasks_of(runs: list[RunSummary]) -> list[str]:
    """Every task that one of the runs was scored on."""
    return list(dict.fromkeys(task for run in runs for task in run.scores))


def page(folder: Path, runs: list[RunSummary], left_out: list[str], beside: Path) -> str:
    """One sortable page.

    Args:
        beside: the folder that the page will be in, from which it leads to the runs' reports.
    """
    from tunebook.common.report import figures

    tasks, differ = tasks_of(runs), differences(runs)
    states = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(run.state for run in runs)}
    drawn = [
        figures.curves(f"{kind}-loss", f"{kind.capitalize()} loss",
                       {run.name: run.curves[kind] for run in runs[:CURVES] if run.curves.get(kind)}, y="loss")
        for kind in ("held-out", "training")
    ]  # fmt: skip
    more = f"The curves of the newest {CURVES} runs of {len(runs)}." if len(runs) > CURVES else ""
    return pages.render(
        Path(__file__).with_name("runs.html.jinja"),
        title=folder.resolve().name,
        facts=[("Folder", redaction.without_paths(str(folder))), ("Runs", f"{len(runs):,}"),
               *((state.capitalize(), f"{count:,}") for state, count in states.items())],
        heads=["Run", "State", "Model and data", "Ended, UTC", "Steps", "Held-out loss", "Time", "Peak memory"],
        rows=[_cells(run, beside) for run in runs],
        score_heads=["Run", *map(labels.task, tasks), "Forgetting"],
        scores=[[_name(run, beside), *(_cell(run.scores.get(task)) for task in tasks),
                 Cell(verdict=run.forgetting, sort=run.forgetting) if run.forgetting else DASH]
                for run in runs if run.scores],
        argument_heads=["Run", *differ],
        arguments=[[_name(run, beside), *(values[place] or DASH for values in differ.values())]
                   for place, run in enumerate(runs)] if differ else [],
        plots=[one for one in drawn if one],
        more=more,
        left_out=left_out,
        library=figures.library(),
    )  # fmt: skip


def _name(run: RunSummary, beside: Path) -> Cell:
    link = os.path.relpath(run.page.resolve(), beside.resolve()).replace(os.sep, "/") if run.page else ""
    return Cell(run.name, run.recipe, link=pages.link(link), sort=run.name)


def _cells(run: RunSummary, beside: Path) -> list[Any]:
    speed = f"{run.trained_tokens / run.seconds:,.0f} trained tokens/s" if run.trained_tokens and run.seconds else ""
    before = f"was {number(run.loss_before)}" if run.loss_before is not None else ""
    return [
        _name(run, beside), Cell(verdict=run.state, sort=run.state), Cell(_model(run), _data(run), sort=_model(run)),
        run.date or DASH, number(run.steps), Cell(number(run.loss_after), before, sort=run.loss_after),
        Cell(duration(run.seconds), speed, sort=run.seconds),
        Cell(byte_size(run.peak_bytes or None), sort=run.peak_bytes),
    ]  # fmt: skip


def _model(run: RunSummary) -> str:
    return redaction.without_paths(str(run.args.get("model") or run.args.get("student") or DASH))


def _data(run: RunSummary) -> str:
    data = run.args.get("dataset") or []
    return redaction.without_paths(" ".join(map(str, data)) if isinstance(data, list) else str(data)) or DASH


def _loss(run: RunSummary) -> str:
    if run.loss_after is None:
        return DASH
    before = f"{number(run.loss_before)} → " if run.loss_before is not None else ""
    return before + number(run.loss_after)


def _value(one: dict[str, Any]) -> str:
    return percent(one["value"]) if one["share"] else f"{one['value']:.4g}"


def _score(one: dict[str, Any] | None) -> str:
    if one is None:
        return DASH
    ends = format.interval(one["low"], one["high"])
    return f"{_value(one)} ({ends})" if one["low"] is not None else _value(one)


def _cell(one: dict[str, Any] | None) -> Any:
    if one is None:
        return DASH
    ends = f"{format.interval(one['low'], one['high'])} %" if one["low"] is not None else ""
    return Cell(_value(one), ends, sort=one["value"], verdict=one["verdict"])
