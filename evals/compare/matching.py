"""Whether two models got the same tasks, versions, items and prompts, or the first difference."""

from typing import Any

from tunebook.common.errors import UserError
from tunebook.evals.compare import prompting
from tunebook.evals.compare.logs import ModelScores, Task

HINT = "; --any_prompt compares them all the same"
CONTEXT = 30  # characters shown on each side of the first difference of two prompts
SETTINGS = {"dtype": "the number type of the weights", "lm_eval": "lm-eval", "transformers": "transformers"}


def pair(base: ModelScores, tuned: ModelScores, only: list[str], any_prompt: bool) -> tuple[list[str], list[str]]:
    """Names of the tasks to compare, and notes on what else may change scores.

    Args:
        only: tasks or groups; empty: all, and then both must have the same.
        any_prompt: accept other prompts and numbers of few-shot examples for the same items.

    Raises:
        UserError: the first difference between the two.
    """
    if {path.resolve() for path in base.files} & {path.resolve() for path in tuned.files}:
        raise UserError(f"{base.folder} and {tuned.folder} are the same scores; name those of two models")
    names = _names(base, tuned, only)
    notes = [*base.notes, *tuned.notes]
    differ = sorted(name for name in names if not _same_prompts(base, tuned, name, any_prompt))
    if differ:
        notes.append(f"the prompts are not the same in {', '.join(differ)}: differences are of model and prompt")
    for key, words in SETTINGS.items():
        if base.settings[key] != tuned.settings[key]:
            notes.append(f"{words}: {base.settings[key]} before, {tuned.settings[key]} after; this alone moves scores")
    return names, notes


def _names(base: ModelScores, tuned: ModelScores, only: list[str]) -> list[str]:
    both = sorted(set(base.tasks) & set(tuned.tasks))
    missing = [name for model in (base, tuned) for name in only if not set(leaves(model, name)) <= set(model.tasks)]
    if missing:
        raise UserError(f"--tasks {missing[0]}: both folders have {', '.join(both) or 'no task in common'}")
    if only:
        return [leaf for name in dict.fromkeys(only) for leaf in leaves(base, name)]
    if not both:
        run = f"lm_eval run --tasks {','.join(sorted(base.tasks))} --log_samples --output_path FOLDER"
        raise UserError(
            f"no task is in both: {base.folder} has {', '.join(sorted(base.tasks))}, {tuned.folder} has "
            f"{', '.join(sorted(tuned.tasks))}; score both models on the same tasks: {run}"
        )
    if alone := sorted(set(base.tasks) ^ set(tuned.tasks)):
        model = base if alone[0] in base.tasks else tuned
        raise UserError(f"{alone[0]} is in {model.folder} alone; --tasks {' '.join(both)} compares what both have")
    return both


def leaves(model: ModelScores, name: str) -> list[str]:
    """The tasks in a group, at any depth; a task itself."""
    parts = model.groups.get(name)
    return [leaf for part in parts for leaf in leaves(model, part)] if parts else [name]


def _same_prompts(base: ModelScores, tuned: ModelScores, name: str, any_prompt: bool) -> bool:
    """Whether a task's prompts are the same in both.

    Raises:
        UserError: the two differ in version, items or metrics; or in prompts or examples, unless any_prompt.
    """
    before, after = base.tasks[name], tuned.tasks[name]
    _equal(name, "version", before.version, after.version)
    if not any_prompt:
        _equal(name, "number of examples in the prompt", before.shots, after.shots)
    same = True
    if before.items.keys() != after.items.keys() and prompting.same_items(before, after):
        if not any_prompt:
            raise UserError(f"{name}: {prompting.differ(before, after) or _first_difference(before, after)}{HINT}")
        same = False
        prompting.rekey(before, after)
    if before.items.keys() != after.items.keys():
        alone = min(before.items.keys() ^ after.items.keys())
        model = base if alone in before.items else tuned
        raise UserError(
            f"{name}: item {alone[0]} with doc_hash {alone[1][:12]} is in {model.folder} alone ({len(before.items)} "
            f"items before, {len(after.items)} after); score the same items: same data, same --limit"
        )
    _equal(name, "metrics", sorted(before.values), sorted(after.values))
    for key, sample in before.items.items():
        twin = after.items[key]
        if sample["target_hash"] != twin["target_hash"]:
            targets = f"{sample['target']!r} before, {twin['target']!r} after"
            raise UserError(f"{name}, item {key[0]}: the target is {targets}; score both on the same data")
        if sample["arguments"] != twin["arguments"]:
            same = False
            if not any_prompt:
                why = prompting.differ(before, after)
                where = f"{name}: {why}" if why else f"{name}, item {key[0]}: {_difference(sample, twin)}"
                raise UserError(f"{where}{_hint(base, tuned)}")
    return same


def _equal(task: str, what: str, before: Any, after: Any) -> None:
    if before != after:
        raise UserError(f"{task}: its {what} is {before} before and {after} after; score both in the same way")


def _difference(before: dict, after: dict) -> str:
    """The first difference of two samples' requests, in words."""
    for one, other in zip(_texts(before), _texts(after), strict=False):
        if one != other:
            pairs = enumerate(zip(one, other, strict=False))
            here = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
            start, end = max(0, here - CONTEXT), here + CONTEXT
            return f"the prompts are not the same: {one[start:end]!r} before, {other[start:end]!r} after"
    return f"{len(_texts(before))} requests before, {len(_texts(after))} after"


def _first_difference(before: Task, after: Task) -> str:
    twins = {key[0]: sample for key, sample in after.items.items()}
    return next(
        f"item {key[0]}: {_difference(sample, twins[key[0]])}"
        for key, sample in before.items.items()
        if key not in after.items
    )


def _texts(sample: dict) -> list[str]:
    """Every argument of every request as text, with the generation settings."""
    return [
        text if isinstance(text, str) else repr(text)
        for arguments in sample["arguments"].values()
        for text in arguments.values()
    ]


def _hint(base: ModelScores, tuned: ModelScores) -> str:
    before, after = base.settings["chat_template"], tuned.settings["chat_template"]
    if before == after:
        return HINT
    where = "before and not after" if before else "after and not before"
    return f" (a chat template was applied {where}){HINT}"
