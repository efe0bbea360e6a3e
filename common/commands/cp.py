"""Copy a recipe to a file of your own. Nothing is written over.

    tunebook cp qlora_alpaca my_recipe.py

The copy says under its docstring where it is from. What was measured of the original is not said of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tunebook.common import catalog
from tunebook.common.commands import recipe_copy
from tunebook.common.errors import UserError


@dataclass
class Args:
    # One of `tunebook ls`.
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE", help_behavior_hint="")] = ""
    # The copy: a .py file that does not exist yet, or a folder.
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = ""


def main(args: Args) -> None:
    if not args.recipe or not args.file:
        raise UserError("name a recipe and a file: tunebook cp qlora_alpaca my_recipe.py (tunebook ls shows them)")
    recipe = catalog.find(Path(args.recipe).stem, "tunebook cp")
    target = Path(args.file)
    target = target / recipe.name if target.is_dir() else target
    if target.suffix != ".py":
        raise UserError(f"tunebook cp: {args.file} does not end in .py; name the copy like my_recipe.py")
    text = recipe_copy.without_claims(recipe.read_text(encoding="utf-8"), recipe.stem, str(target))
    recipe_copy.write_new(target, recipe_copy.with_origin(text, recipe_copy.origin(recipe.stem)), "cp")
    print(f"{target}: a copy of {recipe.stem}. Run it: python {target}")
