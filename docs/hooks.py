"""MkDocs hooks: the packages under their import names, and an API page for each of them, from the tree as it is."""

from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build" / "docs" / "tunebook"
TOPS = ("common", "evals")
INTERNAL = {"commands", "synthetic"}  # described by --help, and of no use to a recipe


def on_config(config):
    """Lay common/ and evals/ out as tunebook.common and tunebook.evals, and add their pages to the navigation."""
    TREE.mkdir(parents=True, exist_ok=True)
    (TREE / "__init__.py").touch()
    for top in TOPS:
        link = TREE / top
        if not link.is_symlink():
            link.symlink_to(ROOT / top, target_is_directory=True)
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
