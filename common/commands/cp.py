"""Copy a recipe to a file of your own. Nothing is written over.

    tunebook cp qlora_alpaca my_recipe.py

The copy says under its docstring where it is from.
"""

import ast
import importlib.metadata
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro

from tunebook.common import catalog, provenance
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
    text = with_origin(recipe.read_text(encoding="utf-8"), origin(recipe.stem))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"tunebook cp: {target} exists and is left as it is; choose another name") from None
    except OSError as error:
        raise UserError(f"tunebook cp: {target} cannot be written: {error.strerror}") from None
    print(f"{target}: a copy of {recipe.stem}. Run it: python {target}")


def origin(name: str) -> str:
    """The comment line that says what was copied, from which commit, and when."""
    commit = provenance.commit()
    where = f"commit {commit}" if commit else f"version {importlib.metadata.version('tunebook')}"
    return f"# Copied from recipes/{name}.py of tunebook, {where}, {datetime.now(UTC):%Y-%m-%d}."


def with_origin(text: str, line: str) -> str:
    """`text` with `line` under its docstring, or on top where it has none."""
    lines = text.splitlines(keepends=True)
    first = ast.parse(text).body[:1]
    has_doc = bool(first) and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant)
    place = (first[0].end_lineno or 0) if has_doc else 0
    return "".join([*lines[:place], line + "\n", *lines[place:]])
