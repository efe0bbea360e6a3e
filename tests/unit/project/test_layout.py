"""How long things may be, and who may load the training libraries (imports: import-linter, in pyproject.toml)."""

import ast
import re
import sys

import pytest
from paths import ROOT

from tunebook.common import catalog
from tunebook.common.run import RunOptions, TrainerOptions

TRAINING = {"unsloth", "unsloth_zoo", "peft", "trl"}
LOADERS = {f"common/models/{name}.py" for name in ("loading", "lora", "inference")} | {
    "common/export/trained_weights.py"
}
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
LINES = {"loop_alpaca.py": 120}  # its loss and its step are functions of its own
FILES = [path for folder in ("common", "evals", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_training_libraries(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    place = path.relative_to(ROOT)
    if place.parts[0] != "recipes" and place.as_posix() not in LOADERS:
        assert not {name.split(".")[0] for name in imports(tree)} & TRAINING
    assert len(text.splitlines()) <= (LINES.get(place.name, 100) if place.parts[0] == "recipes" else 350)
    if place.parts[0] != "recipes":
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_import_nothing_heavy_at_the_top(path):
    top = {
        name.split(".")[0]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imports(node)
    }
    assert not top & {*TRAINING, "torch", "transformers", "datasets", "lm_eval"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_in_two_minutes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert main.end_lineno - main.lineno < 65
    given = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             and node.module.startswith("tunebook.") for alias in node.names}  # fmt: skip
    used = {node.id for node in ast.walk(main) if isinstance(node, ast.Name)} & given
    assert len(used) <= 15, sorted(used)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_flags_and_what_is_said_of_them(path):
    text, doc = path.read_text(encoding="utf-8"), ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    launched = re.findall(r"(?:accelerate launch|python) (\S+)", doc)
    assert launched and set(launched) == {f"recipes/{path.name}"}
    if path.stem != "pretrain_pocket":
        args = catalog.load(path).Args
        assert issubclass(args, TrainerOptions if "SFTTrainer" in text else RunOptions)
        assert not {"output_dir", "seed", "resume"} & set(vars(sys.modules[args.__module__].Args)["__annotations__"])
    for flag, word in (("learning_rate", "rate"), ("num_train_epochs", "epochs")):
        if told := re.search(
            rf"{flag}: float \| None = None  # .*default: (\S+) below 50 M parameters, else (\S+)", text
        ):
            assert re.search(rf"run\.defaults\(.*{word}=\((\S+), (\S+?)[,)]", text).groups()[:2] == told.groups()
        else:
            assert f"{flag}: float | None" not in text
