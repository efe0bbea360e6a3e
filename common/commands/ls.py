"""The recipes, one line each: the first line of their docstrings.

    tunebook ls

A recipe is one file that is read from top to bottom.
"""

from dataclasses import dataclass

from tunebook.common import catalog


@dataclass
class Args:
    pass


def main(args: Args) -> None:
    found = catalog.recipes()
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:{width}}  {catalog.headline(path)}")
    print(f"\nIn {catalog.folder()}. Copy one to change it: tunebook cp {next(iter(found))} my_recipe.py")
