"""The recipe files, found by name and loaded as modules."""

import ast
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError, nearest

# Earlier name of a recipe -> its name.
ALIASES = {"adapters_alpaca": "bottleneck_adapters_alpaca", "soft_prompts_alpaca": "prompt_tuning_alpaca"}


def folder() -> Path:
    """The recipes folder, which lies beside common/ in a checkout as in an installed package.

    Raises:
        UserError: it holds no recipe.
    """
    place = Path(__file__).resolve().parents[1] / "recipes"
    if not any(place.glob("*.py")):
        raise UserError(f"no recipes in {place}; install tunebook anew, or get a checkout of it")
    return place


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe, in name order."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if not path.name.startswith("_")}


def find(name: str, asked: str) -> Path:
    """The file of a recipe: one of `recipes`, with or without .py, an earlier name of one, or any .py file.

    Args:
        asked: where the name stands, for the message: "tunebook plan", "--recipe".

    Raises:
        UserError: there is no such recipe.
    """
    known, file = recipes(), Path(name)
    if file.suffix == ".py" and file.is_file():
        return file.resolve()
    stem = name.removesuffix(".py")
    stem = stem if stem in known else ALIASES.get(stem, stem)
    if stem in known:
        return known[stem]
    raise UserError(f"{asked} {name}: no such recipe or file; there is {', '.join(known)}{nearest(stem, known)}")


def headline(file: Path) -> str:
    """The first line of a recipe's docstring."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "(no docstring)"
    return doc.splitlines()[0]


def load(file: Path) -> Any:
    """The module of a recipe's file, which need not be on the path."""
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and help texts look for it there
    spec.loader.exec_module(module)
    return module
