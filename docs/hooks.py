"""MkDocs hooks: the packages under their import names, and an API page for each of them, from the tree as it is."""

import shutil
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build" / "docs" / "tunebook"
TOPS = ("common", "evals")
INTERNAL = {"commands", "synthetic"}  # described by --help, and of no use to a recipe


def on_startup(command, dirty):
    """Lay common/ and evals/ out as tunebook.common and tunebook.evals, before mkdocstrings looks for its paths."""
    shutil.rmtree(TREE, ignore_errors=True)
    for top in TOPS:
        for file in (ROOT / top).rglob("*.py"):  # copies: what reads them follows no links
            copy = TREE / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    (TREE / "__init__.py").touch()


def on_config(config):
    """Add the pages of the packages to the navigation."""
    pages = [{name: path_of(name)} for name in packages()]
    config.nav = [{"API": [{"Overview": "api.md"}, *pages]} if "API" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, config) -> Files:
    """An API page for each package: its modules, read without importing them."""
    for name, modules in packages().items():
        text = "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, path_of(name), content=text + "\n"))
    return files


def path_of(package: str) -> str:
    return f"api/{package.removeprefix('tunebook.').replace('.', '_')}.md"


def packages() -> dict[str, list[str]]:
    """Package -> its public modules, by import name."""
    found = {}
    for top in TOPS:
        for folder in sorted([ROOT / top, *(ROOT / top).glob("*/")]):
            inner = folder.relative_to(ROOT).parts
            if INTERNAL & set(inner) or not (folder / "__init__.py").exists():
                continue
            name = ".".join(("tunebook", *inner))
            modules = [f"{name}.{file.stem}" for file in sorted(folder.glob("*.py")) if file.stem[0] != "_"]
            if modules:
                found[name] = modules
    return found
