"""Who may know whom, and how long things may be."""

import ast

import pytest
from paths import ROOT

TRAINING = {"unsloth", "unsloth_zoo", "peft", "trl"}
MAY_NOT = {"common": {"recipes", "evals"}, "evals": {"recipes"}}
FILES = [path for folder in ("common", "evals", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_and_sizes(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    place = path.relative_to(ROOT)
    roots = {name.split(".")[0] for name in imports(tree)}
    assert not roots & MAY_NOT.get(place.parts[0], {"recipes"})
    if place.parts[0] != "recipes" and str(place) not in ("common/models.py", "common/lora.py", "common/adapted.py"):
        assert not roots & TRAINING
    assert len(text.splitlines()) <= (150 if place.parts[0] == "recipes" else 350)
    if place.parts[0] != "recipes":
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, node.name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_recipes_import_nothing_heavy_at_the_top(path):
    top = {
        name.split(".")[0]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imports(node)
    }
    assert not top & {*TRAINING, "torch", "transformers", "datasets", "lm_eval"}
