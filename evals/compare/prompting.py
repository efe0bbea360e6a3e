"""The templates of two models' prompts: whether they are the same, and the command that makes them so."""

import shlex
from pathlib import Path
from typing import Any

from tunebook.common.models import inference
from tunebook.common.tokens import templates
from tunebook.evals.compare.logs import ModelScores, Task

# Fields of an item that depend on its prompt; the others identify it.
PROMPT_FIELDS = {"prompt", "asked", "context", "scored", "tokens", "as_trained"}


def differ(before: Task, after: Task) -> str:
    """The two templates of a task and the remedy, in words; "" where they are the same."""
    one, other = before.metadata.get("template"), after.metadata.get("template")
    if not one or not other or one == other or _content(one) == _content(other):
        return ""
    return f"the template is {called(one)} before and {called(other)} after; {remedy(after)}"


def remedy(after: Task) -> str:
    """The command that asks the base as the tuned model is asked."""
    template = after.metadata["template"]
    rows = after.metadata.get("dataset")
    asked = ["--dataset", *rows] if rows else ["--tasks", after.name]
    if inference.has_adapter(Path(template)):
        model = ["--adapter", template, "--base"]
    else:
        model = ["--model", "BASE", "--template", template]
    words = shlex.join(["tunebook", "eval", *model, *asked, "--output_dir", "FOLDER"])
    return f"ask both in one: {words}"


def note(base: ModelScores, tuned: ModelScores) -> str:
    """`differ` of the first common task whose templates differ."""
    both = (name for name in base.tasks if name in tuned.tasks)
    return next((words for name in both if (words := differ(base.tasks[name], tuned.tasks[name]))), "")


def same_items(before: Task, after: Task) -> bool:
    """Whether both have the same items, whatever their prompts."""
    one, other = ({key[0]: _identity(sample) for key, sample in task.items.items()} for task in (before, after))
    return one == other


def rekey(before: Task, after: Task) -> None:
    """Give the items of `after` the keys that they have in `before`, by their numbers."""
    keys = {key[0]: key for key in before.items}
    after.items = {keys[key[0]]: sample for key, sample in after.items.items()}
    for by_metric in (after.values, after.filtered_responses):
        for metric, by_key in by_metric.items():
            by_metric[metric] = {keys[key[0]]: value for key, value in by_key.items()}


def called(template: str) -> str:
    """A template's name, and its folder where it has one."""
    return f"{templates.load(template).name} ({template})" if (Path(template) / templates.FILE).exists() else template


def _content(template: str) -> Any:
    return templates.load(template) if (Path(template) / templates.FILE).exists() else templates.TEXT.get(template)


def _identity(sample: dict[str, Any]) -> Any:
    doc = {name: value for name, value in (sample.get("doc") or {}).items() if name not in PROMPT_FIELDS}
    return [sample["target_hash"], doc]
