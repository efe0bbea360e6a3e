"""What a run has logged step by step (log.jsonl), as plots."""

import json
from pathlib import Path
from typing import Any

from tunebook.common.report import figures
from tunebook.common.report.figures import Plot, Series

MIB = 2**20
# (title, unit, {name of a line: (key of the log, divisor)}, note); a plot without any of its keys is left out.
PLOTS: tuple[tuple[str, str, dict[str, tuple[str, float]], str], ...] = (
    ("Rewards", "reward", {
        "better answer, training": ("rewards/chosen", 1), "other answer, training": ("rewards/rejected", 1),
        "better answer, held-out": ("eval_rewards/chosen", 1), "other answer, held-out": ("eval_rewards/rejected", 1),
    }, "beta times the log-probability less that of the reference"),
    ("Margin of rewards", "reward", {"training": ("rewards/margins", 1), "held-out": ("eval_rewards/margins", 1)},
     "better answer less the other"),
    ("Pairs in the right order", "share of pairs", {
        "training": ("rewards/accuracies", 1), "held-out": ("eval_rewards/accuracies", 1)},
     "the better answer has the higher reward; at step 0 all rewards are equal"),
    ("Tokens guessed", "share of tokens", {
        "training": ("mean_token_accuracy", 1), "held-out": ("eval_mean_token_accuracy", 1)},
     "the likeliest token is the right one"),
    ("Learning rate", "rate", {"learning rate": ("learning_rate", 1)}, ""),
    ("Gradient norm", "norm", {"gradient norm": ("grad_norm", 1)}, "before clipping"),
    ("Speed", "trained tokens a second", {"trained tokens a second": ("trained_tokens_per_second", 1)},
     "mean of the run so far, with its evaluations"),
    ("Memory", "MiB", {"in use": ("memory_bytes", MIB), "peak": ("peak_bytes", MIB)}, ""),
)  # fmt: skip


def read(log_file: Path) -> list[dict[str, Any]]:
    """The lines of a log; what cannot be read is left out."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append(values)
    return found


def series(lines: list[dict[str, Any]], key: str, divisor: float = 1) -> list[list[float]]:
    """[[step, value], ...] of one key: the last value of each step."""
    points = {line["step"]: line[key] / divisor for line in lines if isinstance(line.get(key), (int, float))}
    return [[step, value] for step, value in sorted(points.items())]


def plots(lines: list[dict[str, Any]]) -> list[Plot]:
    """Every plot of PLOTS that the log has values for."""
    drawn = []
    for title, unit, keys, note in PLOTS:
        lines_of: Series = {name: series(lines, key, divisor) for name, (key, divisor) in keys.items()}
        drawn.append(figures.curves(title.lower().replace(" ", "-"), title, lines_of, y=unit, note=note))
    return [one for one in drawn if one]
