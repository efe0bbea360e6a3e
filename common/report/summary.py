"""What a run's report says in words: its verdict, its tiles, its table of scores, and what to do next."""

import math
import shlex
from pathlib import Path
from typing import Any

from tunebook.common import catalog, pages
from tunebook.common.format import byte_size, duration, interval, number, p_value, percent
from tunebook.common.pages import Cell
from tunebook.common.report import labels

ONCE = ("resume", "overwrite", "allow_changes", "dry_run")  # flags of a start, not of what was trained
SCORE_HEADS = ["Task", "Verdict", "Before", "After", "Change, 95 % interval", "", "Items", "p (Holm)"]


def wilson(share: float, items: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share of items that are right or wrong (E. Wilson, 1927)."""
    middle = (share + z * z / (2 * items)) / (1 + z * z / items)
    reach = z / (1 + z * z / items) * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def value(row: dict[str, Any], when: str) -> str:
    """A score of a row: in percent where it is a share."""
    return percent(row[when]) if row["share"] else f"{row[when]:.4g}"


def relative(row: dict[str, Any]) -> bool:
    """Whether a change is told in percent of the value before: that of a loss, of bits, of a perplexity. A BLEU near 0
    makes no scale."""
    return not row["share"] and not row["higher_is_better"] and bool(row["before"])


def change(row: dict[str, Any]) -> str:
    """+81.2 points; of what is `relative` in percent of the value before; else on the metric's own scale."""
    if row["share"]:
        return f"{100 * row['difference']:+.1f} points"
    if relative(row):
        return f"{_signed(100 * row['difference'] / abs(row['before']))} %"
    return f"{row['difference']:+.3g}"


def ends(row: dict[str, Any]) -> str:
    """The interval of the change, on the scale of `change`."""
    if row["low"] is None:
        return ""
    if row["share"]:
        return interval(row["low"], row["high"], "+.1f")
    if relative(row):
        return " to ".join(_signed(100 * row[end] / abs(row["before"])) for end in ("low", "high"))
    return interval(row["low"], row["high"], "+.3g", 1)


def _signed(percent: float) -> str:
    """+8.4; +0.023 where one digit after the point would say nothing."""
    return f"{percent:+.1f}" if abs(percent) >= 0.05 or not percent else f"{percent:+.2g}"


def word(row: dict[str, Any], forgetting: dict[str, Any]) -> str:
    """A row's verdict: of a general task that of forgetting, which has a margin; else that of the test."""
    return (forgetting.get("tasks") or {}).get(row["task"], {}).get("verdict") or row["verdict"]


def tests(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """The tested row of each task; of a report of an earlier version its scores alone."""
    if scores.get("tests"):
        return scores["tests"]
    nothing: dict[str, Any] = dict.fromkeys(("low", "high", "p", "p_holm", "won", "lost"))
    return [
        {**nothing, "task": task, "metric": metric, **row, "difference": row["after"] - row["before"], "share": True,
         "higher_is_better": True, "verdict": "not tested", "general": False, "test": None}
        for task, metrics in scores.get("comparison", {}).items() if task != "held_out_pairs"
        for metric, row in metrics.items()
    ]  # fmt: skip


def score_rows(scores: dict[str, Any]) -> list[list[Any]]:
    """The table of scores, in the order of SCORE_HEADS."""
    rows, forgetting = tests(scores), scores.get("forgetting") or {}
    tones = [pages.tone(word(row, forgetting)) for row in rows]
    found: list[list[Any]] = []
    for row, drawn in zip(rows, drawings(rows, tones), strict=True):
        direction = "" if row["higher_is_better"] else ", lower is better"
        kind = "retention · " if row["general"] else ""
        found.append([
            Cell(labels.task(row["task"]), f"{kind}{labels.metric(row['metric'])}{direction} · {row['task']}"),
            Cell(verdict=word(row, forgetting)), value(row, "before"), value(row, "after"),
            Cell(change(row), ends(row), sort=row["difference"]), Cell(span=drawn), number(row["items"]),
            p_value(row["p_holm"]),
        ])  # fmt: skip
    return found


def drawings(rows: list[dict[str, Any]], tones: list[str]) -> list[Any]:
    """Intervals of the changes: shares on one scale in points, what is `relative` on one in percent of before."""
    found: list[Any] = [None] * len(rows)
    for share, unit in ((True, "points"), (False, "%")):
        places = [place for place, row in enumerate(rows)
                  if row["low"] is not None and (row["share"] if share else relative(row))]  # fmt: skip
        scales = [100 if share else 100 / abs(rows[place]["before"]) for place in places]
        ranges = [
            (rows[place]["low"] * scale, rows[place]["difference"] * scale, rows[place]["high"] * scale)
            for place, scale in zip(places, scales, strict=True)
        ]
        for place, drawn in zip(places, pages.spans(ranges, unit, [tones[one] for one in places]), strict=True):
            found[place] = drawn
    return found


def verdict(report: dict[str, Any], before: float | None) -> tuple[str, list[str]]:
    """The tone of a run, and the sentences that say how it went.

    Args:
        before: held-out loss before training.
    """
    scores, after = report["scores"], report["eval"]["loss"]
    rows, forgetting = tests(scores), scores.get("forgetting") or {}
    targets = [row for row in rows if not row["general"] and row["low"] is not None]
    gained, lost = (sum(row["verdict"] == kind for row in targets) for kind in ("better", "worse"))
    sentences = [_gained(targets, gained, lost)] if targets else []
    if preference := scores.get("preference"):
        sentences.append(
            f"The better answer of {preference['pairs']:,} held-out pairs has the higher reward in "
            f"{percent(preference['after']['accuracy'])} (one half before training, by definition), and is likelier in "
            f"{percent(preference['after']['likelier'])} ({percent(preference['before']['likelier'])} before)."
        )
    if before is not None and after is not None:
        way = "fell" if after < before else "rose" if after > before else "stayed"
        name, _, unit = report["eval"]["loss_name"].partition(", ")
        sentences.append(f"Held-out {name} {way} from {number(before)} to {number(after)} {unit}".rstrip() + ".")
    worst = forgetting.get("verdict")
    if worst:
        sentences.append(f"Forgetting: {worst}. {_lost([row for row in rows if row['general']], forgetting)}.")
    else:
        sentences.append("Forgetting was not measured: no general task was scored.")
    better = gained or (not targets and before is not None and after is not None and after < before)
    if lost or (worst in ("regressed", "degraded") and not better):
        return "mixed" if gained else "worse", sentences
    if worst in ("regressed", "degraded", "inconclusive"):
        return "mixed", sentences
    return ("better" if better else ""), sentences


def _gained(targets: list[dict[str, Any]], gained: int, lost: int) -> str:
    """How often the tasks that training was for got better or worse, and all of them."""
    count = len(targets)
    parts = [f"{word} on {number} of {count} tasks" for word, number in (("better", gained), ("worse", lost)) if number]
    start = "Better" if gained == count else "Worse" if lost == count else ", ".join(parts) or "no difference shown"
    shown = [f"{labels.task(row['task'])} {value(row, 'before')} → {value(row, 'after')}" for row in targets]
    return f"{start[0].upper()}{start[1:]}: {', '.join(shown)}."


def _lost(rows: list[dict[str, Any]], forgetting: dict[str, Any]) -> str:
    """Every general task with the interval of its change, and its verdict."""
    if not rows:  # a report of an earlier version
        return forgetting["words"]
    parts = []
    for row in rows:
        unit = "points" if row["share"] else f"% {labels.metric(row['metric'])}"
        found = f", {ends(row)} {unit}" if row["low"] is not None else ""
        name = f"{labels.task(row['task'])} {value(row, 'before')} → {value(row, 'after')}"
        parts.append(f"{name} ({word(row, forgetting)}{found})")
    return "; ".join(parts)


def quality_tiles(report: dict[str, Any], before: float | None) -> list[tuple[str, str, str, str]]:
    """(name, value after, from what, verdict) of every score and the held-out loss."""
    forgetting = report["scores"].get("forgetting") or {}
    tiles = []
    for row in tests(report["scores"]):
        below = f"was {value(row, 'before')}" + (f"; {change(row)}" if row["low"] is not None else "")
        name = labels.task(row["task"]) + ("" if row["share"] else f", {labels.metric(row['metric'])}")
        tiles.append((name, value(row, "after"), below, word(row, forgetting)))
    teacher = (report.get("distillation") or {}).get("held_out_loss")
    below = f"was {number(before)}" + (f"; of the teacher: {number(teacher)}" if teacher is not None else "")
    if rows := report["eval"].get("held_out_rows"):
        below += f"; {number(report['eval']['curve_rows'])} of {number(rows)} rows"
    tiles.append((f"Held-out {report['eval']['loss_name']}", number(report["eval"]["loss"]), below, ""))
    return tiles


def cost_tiles(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The same of what the run has cost."""
    measured, train, forecast = report["measured"], report["train"], report["forecast"]
    share = percent(train["trainable_parameters"] / train["all_parameters"])
    of_data = f"in {number(train['steps'])} steps; the data has {number(report['data']['trained_tokens'])}"
    return [
        ("Training time", duration(measured["seconds"]), f"forecast {duration(forecast.get('seconds'))}", ""),
        ("Peak memory", byte_size(measured["peak_bytes"]), f"forecast {byte_size(forecast.get('peak_bytes'))}", ""),
        ("Tokens trained", number(measured["trained_tokens"]), of_data, ""),
        ("Trained tokens a second", number(measured["trained_tokens_per_second"], 0), "", ""),
        ("Parameters that train", number(train["trainable_parameters"]),
         f"{share} of {number(train['all_parameters'])}", ""),
    ]  # fmt: skip


def method(report: dict[str, Any]) -> str:
    """The recipe with what was chosen in it."""
    args = report["args"]
    chosen = [f"{words} {args[name]:g}" for name, words in (("lora_r", "rank"), ("learning_rate", "learning rate"))
              if isinstance(args.get(name), (int, float))]  # fmt: skip
    chosen += ["DoRA"] if args.get("use_dora") else []
    return ", ".join([report["recipe"], *chosen])


def next_steps(report: dict[str, Any], folder: str, adapter: bool) -> list[tuple[str, str]]:
    """(what for, the command) from here on.

    Args:
        folder: of the run, as commands take it. adapter: whether an adapter was saved, in place of a model.
    """
    run = shlex.quote(folder)
    model = f"--adapter {run}" if adapter else f"--model {shlex.quote(f'{folder}/model')}"
    return [
        ("Talk to it", f"tunebook chat {model}"),
        ("Score it on rows of your own", f"tunebook eval {model} --dataset my_test.jsonl --output_dir scores/tuned"),
        ("Use it elsewhere, with a proof that it is what was trained",
         f"tunebook export {run} --to merged --output_dir served"),
        ("Change the recipe", f"tunebook cp {report['recipe']} my_recipe.py"),
        ("See it beside other runs", f"tunebook runs {shlex.quote(folder.rpartition('/')[0] or '.')} --html runs.html"),
    ]  # fmt: skip


def training_command(args: dict[str, Any], recipe: Path) -> str:
    """The command that trains this again: the flags that are not the recipe's defaults."""
    defaults = vars(catalog.load(recipe).Args())
    file = f"recipes/{recipe.name}" if recipe.resolve().parent == catalog.folder() else str(recipe)
    words = ["python", file]
    for name, given in args.items():
        if given is None or given == [] or name in ONCE or given == defaults.get(name):
            continue
        if isinstance(given, bool):
            words.append(f"--{'' if given else 'no-'}{name}")
        else:
            words += [f"--{name}", *map(str, given if isinstance(given, list) else [given])]
    return shlex.join(words)
