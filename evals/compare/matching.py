"""Whether two models were asked the same: the same tasks, versions, items and prompts, or the first difference."""

from typing import Any

from tunebook.common.errors import UserError
from tunebook.evals.compare import prompting
from tunebook.evals.compare.logs import ModelOutputs, Task

HINT = "; --any_prompt compares them all the same"
AROUND = 30  # characters shown on each side of where two prompts part
SETTINGS = {"dtype": "the number type of the weights", "lm_eval": "lm-eval", "transformers": "transformers"}


def pair(base: ModelOutputs, tuned: ModelOutputs, only: list[str], any_prompt: bool) -> tuple[list[str], list[str]]:
    """Names of the tasks that both have alike, and notes on what may move scores all the same.

    Args:
        only: the tasks (or groups) to compare; empty: all, and then both must have the same.
        any_prompt: accept other prompts and numbers of examples for the same items.

    Raises:
        UserError: the first thing in which the two differ.
    """
    if {path.resolve() for path in base.files} & {path.resolve() for path in tuned.files}:
        raise UserError(f"{base.folder} and {tuned.folder} are the same scores; name those of two models")
    names = _names(base, tuned, only)
    notes = [*base.notes, *tuned.notes]
    asked = set()
    for name in names:
        asked |= _same(base, tuned, base.tasks[name], tuned.tasks[name], any_prompt)
    if asked:
        notes.append(f"the prompts are not the same in {', '.join(sorted(asked))}: differences are of model and prompt")
    for key, words in SETTINGS.items():
        if base.settings[key] != tuned.settings[key]:
            notes.append(f"{words}: {base.settings[key]} before, {tuned.settings[key]} after; this alone moves scores")
    return names, notes


def _names(base: ModelOutputs, tuned: ModelOutputs, only: list[str]) -> list[str]:
    missing = [name for name in only if not set(leaves(base, name)) <= set(base.tasks)]
    missing += [name for name in only if not set(leaves(tuned, name)) <= set(tuned.tasks)]
    if missing:
        both = sorted(set(base.tasks) & set(tuned.tasks))
        raise UserError(f"--tasks {missing[0]}: both folders have {', '.join(both) or 'no task in common'}")
    if only:
        return [leaf for name in dict.fromkeys(only) for leaf in leaves(base, name)]
    here, there = set(base.tasks), set(tuned.tasks)
    both = sorted(here & there)
    if not both:
        run = f"lm_eval run --tasks {','.join(sorted(here))} --log_samples --output_path FOLDER"
        raise UserError(
            f"no task is in both: {base.folder} has {', '.join(sorted(here))}, {tuned.folder} has "
            f"{', '.join(sorted(there))}; score both models on the same tasks: {run}"
        )
    for name in sorted(here ^ there):
        side = base if name in here else tuned
        raise UserError(f"{name} is in {side.folder} alone; --tasks {' '.join(both)} compares what both have")
    return both


def leaves(side: ModelOutputs, name: str) -> list[str]:
    """The tasks in a group, at any depth; a task itself."""
    inside = side.groups.get(name)
    return [leaf for part in inside for leaf in leaves(side, part)] if inside else [name]


def _same(base: ModelOutputs, tuned: ModelOutputs, before: Task, after: Task, any_prompt: bool) -> set[str]:
    """{name} where prompts differ and that is accepted, else nothing.

    Raises:
        UserError: the two differ in version, items or metrics; or in prompts or examples, unless these may.
    """
    name = before.name
    _equal(name, "version", before.version, after.version)
    if not any_prompt:
        _equal(name, "number of examples in the prompt", before.shots, after.shots)
    other = before.items.keys() != after.items.keys() and prompting.same_items(before, after)
    if other and any_prompt:
        prompting.rekey(before, after)
    elif other:
        raise UserError(f"{name}: {prompting.differ(before, after) or _first_parting(before, after)}{HINT}")
    if before.items.keys() != after.items.keys():
        alone = min(before.items.keys() ^ after.items.keys())
        side = base if alone in before.items else tuned
        raise UserError(
            f"{name}: item {alone[0]} with doc_hash {alone[1][:12]} is in {side.folder} alone ({len(before.items)} "
            f"items before, {len(after.items)} after); score the same items: same data, same --limit"
        )
    _equal(name, "metrics", sorted(before.values), sorted(after.values))
    for key, sample in before.items.items():
        twin = after.items[key]
        if sample["target_hash"] != twin["target_hash"]:
            targets = f"{sample['target']!r} before, {twin['target']!r} after"
            raise UserError(f"{name}, item {key[0]}: the target is {targets}; score both on the same data")
        if sample["arguments"] != twin["arguments"]:
            other = True
            if not any_prompt:
                why = prompting.differ(before, after)
                where = f"{name}: {why}" if why else f"{name}, item {key[0]}: {_parting(sample, twin)}"
                raise UserError(f"{where}{_template(base, tuned)}")
    return {name} if other else set()


def _equal(task: str, what: str, before: Any, after: Any) -> None:
    if before != after:
        raise UserError(f"{task}: its {what} is {before} before and {after} after; score both in the same way")


def _parting(before: dict, after: dict) -> str:
    """Where two requests part, in words."""
    for (_, one), (_, other) in zip(_texts(before), _texts(after), strict=False):
        if one != other:
            here = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            here = min(len(one), len(other)) if here is None else here
            start, end = max(0, here - AROUND), here + AROUND
            return f"the prompts are not the same: {one[start:end]!r} before, {other[start:end]!r} after"
    return f"{len(_texts(before))} requests before, {len(_texts(after))} after"


def _first_parting(before: Task, after: Task) -> str:
    twins = {key[0]: sample for key, sample in after.items.items()}
    return next(
        f"item {key[0]}: {_parting(sample, twins[key[0]])}"
        for key, sample in before.items.items()
        if key not in after.items
    )


def _texts(sample: dict) -> list[tuple[str, str]]:
    """Every argument of every request as text; settings of generation too."""
    return [
        (f"{request} {place}", text if isinstance(text, str) else repr(text))
        for request, arguments in sample["arguments"].items()
        for place, text in arguments.items()
    ]


def _template(base: ModelOutputs, tuned: ModelOutputs) -> str:
    with_template = [side.settings["chat_template"] for side in (base, tuned)]
    if with_template == [False, True]:
        return f" (a chat template was applied after and not before){HINT}"
    return f" (a chat template was applied before and not after){HINT}" if with_template == [True, False] else HINT
