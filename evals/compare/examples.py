"""Both models' answers to one item, from lm-eval's samples."""

from typing import Any

from tunebook.evals.compare.logs import Task

PROMPT = 600  # last characters of a prompt that are shown


def side_by_side(before: Task, after: Task, key: tuple[int, str], metric: str) -> dict[str, Any]:
    """An item with the prompt's end, the reference, both answers and both values."""
    sample = before.items[key]
    text = next(iter(sample["arguments"].values()))["arg_0"]
    return {
        "task": before.name,
        "item": key[0],
        "prompt": text if len(text) <= PROMPT else "… " + text[-PROMPT:],
        "target": target(sample),
        "before": answer(sample | {"filtered_resps": before.filtered_responses[metric][key]}, metric),
        "after": answer(after.items[key] | {"filtered_resps": after.filtered_responses[metric][key]}, metric),
        "before_value": _value(before.values[metric][key]),
        "after_value": _value(after.values[metric][key]),
    }


def answer(sample: dict, metric: str) -> str:
    """The generated text, or the most likely choice (per character, where the metric is acc_norm)."""
    choices = _choices(sample)
    if choices is None:
        response = sample["filtered_resps"][0]
        text = ", ".join(map(str, response)) if isinstance(response, list) else str(response)
        return text if "arg_1" in next(iter(sample["arguments"].values())) else f"log-likelihood {float(text):.3f}"
    scores = [float(response[0]) for response in sample["filtered_resps"]]
    if len(choices) == 1:
        return f"log-likelihood {scores[0]:.3f}"
    if metric.startswith("acc_norm"):
        scores = [score / max(1, len(choice.lstrip())) for score, choice in zip(scores, choices, strict=True)]
    return choices[scores.index(max(scores))].strip()


def target(sample: dict) -> str:
    """The reference; of a multiple choice, its text."""
    choices, text = _choices(sample), str(sample["target"])
    if choices and len(choices) > 1 and text.isdigit() and int(text) < len(choices):
        return choices[int(text)].strip()
    return text


def _choices(sample: dict) -> list[str] | None:
    """The continuations that were scored; None where text was generated."""
    second = [arguments.get("arg_1", "") for arguments in sample["arguments"].values()]
    scored = isinstance(sample["filtered_resps"][0], list) and len(sample["filtered_resps"]) == len(second)
    return second if scored and all(isinstance(text, str) for text in second) else None


def _value(value: Any) -> Any:
    """As lm-eval wrote it; None for texts that a metric collects, which are shown already."""
    texts = isinstance(value, (list, tuple)) and any(isinstance(part, (str, list)) for part in value)
    return None if texts else value
