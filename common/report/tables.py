"""The tables of a run's report, as rows of texts."""

from typing import Any

from tunebook.common.format import DASH, byte_size, duration, number, percent
from tunebook.common.report import summary

REWARDS = {"reward_chosen": "Reward of the better answer", "reward_rejected": "Reward of the other", "margin": "Margin"}
SHARES = {"accuracy": "The better answer has the higher reward (a tie is one half)",
          "likelier": "The better answer is likelier"}  # fmt: skip


def of(report: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Every table of the page under its name there."""
    skills = extra["by_skill"]
    return {
        "preference_rows": _preference(report["scores"].get("preference")),
        "skill_heads": ["Skill", *map(summary.labels.task, skills["columns"])],
        "skill_rows": [[skill, *cells] for skill, cells in skills["rows"].items()],
        "data_rows": _data(report),
        "parameter_rows": [
            [row["kind"], row["gradient"], number(row["parameters"]), number(row["trained"]),
             "/".join(map(str, row["bits"])), byte_size(row["bytes"])]
            for row in report["train"]["parameters"]
        ],
        "cost_rows": cost_rows(report),
        "part_rows": _parts(report["run"]),
        "argument_rows": [[name, _text(value)] for name, value in (report["args"] | report["versions"]).items()],
    }  # fmt: skip


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _preference(found: dict[str, Any] | None) -> list[list[str]]:
    """Rewards and shares of held-out pairs; a share with its interval where no pair is a tie."""
    if not found:
        return []

    def share(when: str, name: str) -> str:
        one = found[when]
        if when == "before" and name == "accuracy":
            return f"{percent(one[name])}, by definition"
        if one.get("ties"):
            return percent(one[name])
        low, high = summary.wilson(one[name], found["pairs"])
        return f"{percent(one[name])} ({100 * low:.1f} to {100 * high:.1f} %)"

    rows = [[words, *(number(found[when][name]) for when in ("before", "after"))] for name, words in REWARDS.items()]
    return rows + [[words, share("before", name), share("after", name)] for name, words in SHARES.items()]


def _data(report: dict[str, Any]) -> list[list[str]]:
    data = report["data"]
    rows = [["Rows read", number(data["rows"])], ["Rows kept", number(data["kept"])]]
    rows += [[f"Dropped: {reason.replace('_', ' ')}", number(count)] for reason, count in data["dropped"].items()]
    if len(data["sources"]) > 1:
        rows += [
            [f"From {source}",
             f"{number(part['rows'])} of {number(part['of_rows'])} rows, {number(part['tokens'])} tokens"]
            for source, part in data["sources"].items()
        ]  # fmt: skip
    return [
        *rows,
        ["Rows with special-token text, kept as text", number(data["special_text"])],
        ["Truncated", number(data["truncated"])],
        ["Tokens of the rows kept, once each", number(data["tokens"])],
        ["Of these, tokens that train",
         f"{number(data['trained_tokens'])} ({percent(data['trained_tokens'] / (data['tokens'] or 1))})"],
        ["Trained tokens of the run, over all its steps", number(report["measured"]["trained_tokens"])],
        ["Padding share of the batches", percent(data["padding_share"])],
    ]  # fmt: skip


def _parts(run: dict[str, Any]) -> list[list[str]]:
    return [
        [number(place), part["how"] + (f"; begun in spite of {'; '.join(part['changes'])}" if part["changes"] else ""),
         part["begun"], part["ended"] or "not known", number(part["from_step"]), number(part["to_step"]),
         number(part["processes"]), duration(part["seconds"]), number(part["trained_tokens"]),
         byte_size(part["peak_bytes"])]
        for place, part in enumerate(run["parts"], 1)
    ]  # fmt: skip


def cost_rows(report: dict[str, Any]) -> list[list[str]]:
    """Forecast beside measured, in the order of what, forecast, measured, measured over forecast."""
    forecast, measured, run = report["forecast"], report["measured"], report["run"]

    def ratio(name: str) -> str:
        return f"{measured[name] / forecast[name]:.2f}" if forecast.get(name) else DASH

    most = ", of the process with most" if run["processes"] > 1 else ""
    rows = [
        [f"Peak memory{most}", byte_size(forecast.get("peak_bytes")), byte_size(measured["peak_bytes"]),
         ratio("peak_bytes")],
        ["Training with its evaluations", duration(forecast.get("seconds")), duration(measured["seconds"]),
         ratio("seconds")],
        ["Tokens a second", "", number(measured["tokens_per_second"], 0), ""],
        ["Trained tokens a second", "", number(measured["trained_tokens_per_second"], 0), ""],
        ["Waiting for data", "", percent(measured["data_wait_share"]), ""],
        ["First step after", "", duration(measured["seconds_to_first_step"]), ""],
    ]  # fmt: skip
    if "evaluation_seconds" in measured:
        share = measured.get("evaluation_share")
        rows.append(["Of this, evaluations", "", duration(measured["evaluation_seconds"])
                     + (f" ({percent(share)})" if share is not None else ""), ""])  # fmt: skip
    if measured.get("skipped_steps"):
        rows.append(["Steps left out (a gradient overflowed float16)", "", number(measured["skipped_steps"]), ""])
    return rows
