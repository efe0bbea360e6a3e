"""The recipes, one line each: the first line of their docstrings.

    tunebook ls

A recipe is one file that is read from top to bottom.
"""

import ast
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from common.errors import UserError


@dataclass
class Args:
    pass


def main(args: Args) -> None:
    found = recipes()
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:{width}}  {headline(path)}")
    print(f"\nIn {folder()}. Copy one to change it: tunebook cp {next(iter(found))} my_recipe.py")


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe, in name order."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if not path.name.startswith("_")}


def folder() -> Path:
    """The recipes folder: beside common/ in a checkout, else in the folder that the package was installed from.

    Raises:
        UserError: neither holds recipes.
    """
    places = [Path(__file__).resolve().parents[2] / "recipes"]
    try:
        origin = importlib.metadata.distribution("tunebook").read_text("direct_url.json")
        url = urlparse(json.loads(origin or "{}").get("url", ""))
    except importlib.metadata.PackageNotFoundError:
        url = urlparse("")
    if url.scheme == "file":
        places.append(Path(unquote(url.path)) / "recipes")
    for place in places:
        if any(place.glob("*.py")):
            return place
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise UserError(f"no recipes in {looked}; get a checkout of tunebook and run `pip install -e .` in it")


def headline(path: Path) -> str:
    """The first line of a recipe's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no docstring)"
    return doc.splitlines()[0]
