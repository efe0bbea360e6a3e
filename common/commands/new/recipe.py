"""The recipe that is written: a copy of tunebook's with the proposed values in it."""

import shlex
from pathlib import Path
from typing import Any

from tunebook.common import catalog
from tunebook.common.commands import recipe_copy

SHORT = 90  # letters of a reason in a comment


def write(found: Any, chosen: Any, target: Path) -> Path:
    """Write the recipe, and return its path.

    Args:
        found: survey.Found. chosen: proposal.Proposal.
    """
    from tunebook.common.run import TrainerOptions

    text = catalog.recipes()[chosen.recipe].read_text(encoding="utf-8")
    values = {name: (one.value, _comment(one.because)) for name, one in chosen.choices.items()}
    if chosen.recipe == "dpo_pairs":
        values["template"] = (chosen.template.value, _comment(chosen.template.because))
    else:
        text = recipe_copy.with_template(text, chosen.template.value)
    text = recipe_copy.with_values(text, values, TrainerOptions)
    text = recipe_copy.with_docstring(text, docstring(found, chosen, target))
    recipe_copy.write_new(target, recipe_copy.with_origin(text, recipe_copy.origin(chosen.recipe)), "new")
    return target


def docstring(found: Any, chosen: Any, target: Path) -> str:
    """What the copy's --help begins with."""
    kinds = {"preference": "preference pairs", "chat": "conversations"}
    what = kinds.get(found.kind, "questions and answers")
    data = " ".join(Path(word).name if Path(word).exists() else word for word in found.data)
    method = f"DPO with {chosen.method}" if found.kind == "preference" else chosen.method
    return (
        f"{method} on {data}: {found.rows:,} {what}, as `tunebook new` proposed it.\n\n"
        f"    python {shlex.quote(str(target))} --dry_run\n"
        f"    python {shlex.quote(str(target))}\n\n"
        "Why each value is what it is stands beside it."
    )


def _comment(because: str) -> str:
    words = " ".join(because.split())
    return words if len(words) <= SHORT else words[: SHORT - 3] + "..."
