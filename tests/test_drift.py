"""The recipes' common blocks are the same words in all of them: a reader of one has read most of the others."""

import ast
import re

import pytest
from paths import ROOT

from common import settings

SFT = [path for path in sorted((ROOT / "recipes").glob("*.py")) if "SFTTrainer(" in path.read_text(encoding="utf-8")]
FIRST = ROOT / "recipes" / "lora_alpaca.py"
# Recipes with a trainer of their own say what they share with the first in its words.
OTHERS = [ROOT / "recipes" / name for name in ("dpo_pairs.py",)]
# What may differ from recipe to recipe: the value, and what is said of it.
OWN_DEFAULT = {
    "output_dir",
    "learning_rate",
    "max_length",
    "per_device_train_batch_size",
    "dataset",
    "max_steps",
    "num_train_epochs",
}
OWN_CONFIG = {"optim", "packing"}
# Where a method cannot be as the others, and its line says why.
OWN_REASON = {"prefix_alpaca.py": {"gradient_checkpointing"}}


def fields(path):
    """Name -> its line in Args, in order."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"    (\w+): [\w\[\] |]+ = .*", line)
        if match:
            found[match[1]] = line
    return found


def config(path):
    """Name -> its line in the SFTConfig values, in order."""
    text = path.read_text(encoding="utf-8")
    block = text[text.index("config = dict(") : text.index("    trainer = ")]
    return {match[1]: match[0] for match in re.finditer(r"^        (\w+)=.*$", block, re.MULTILINE)}


def calls(path):
    """What main calls of common and evals, in order."""
    wanted = {"suite_for", "fresh_folder", "overrides", "continues", "load", "choose", "encode", "gate", "mix",
              "Samples", "Scores", "first_batch", "rehearse", "measure", "evaluate", "train", "take", "account",
              "write"}  # fmt: skip
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    found.sort(key=lambda node: (node.lineno, node.col_offset))
    return [node.func.attr for node in found if node.func.attr in wanted]


@pytest.mark.parametrize("path", SFT, ids=lambda path: path.name)
def test_args_are_the_same_fields_in_the_same_order_with_the_same_words(path):
    mine, first = fields(path), fields(FIRST)
    assert list(mine) == list(first) and len(mine) <= 19
    for name in set(first) - OWN_DEFAULT:
        assert mine[name] == first[name]


@pytest.mark.parametrize("path", SFT, ids=lambda path: path.name)
def test_config_has_the_same_values_but_for_the_method(path):
    mine, first = config(path), config(FIRST)
    assert list(mine) == list(first)
    for name in set(first) - OWN_CONFIG - OWN_REASON.get(path.name, set()):
        assert mine[name] == first[name]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_what_other_recipes_share_is_in_the_same_words_and_order(path):
    for read, own in ((fields, {*OWN_DEFAULT, "model", "num_train_epochs", "sft"}), (config, OWN_CONFIG)):
        mine, first = read(path), read(FIRST)
        shared = [name for name in mine if name in first]
        assert len(shared) > 12 and shared == [name for name in first if name in mine]
        for name in set(shared) - own:
            comment = mine[name].partition("#")[2]
            assert mine[name] == first[name] or (name == "per_device_train_batch_size" and "pairs" in comment)
    wanted = [name for name in calls(FIRST) if name not in ("encode", "measure")]
    assert [name for name in dict.fromkeys(calls(path)) if name in wanted] == list(dict.fromkeys(wanted))


@pytest.mark.parametrize("path", SFT, ids=lambda path: path.name)
def test_main_goes_the_same_way(path):
    assert calls(path) == calls(FIRST)


@pytest.mark.parametrize("path", SFT, ids=lambda path: path.name)
def test_what_overrides_are_tried_with_is_what_recipes_write(path):
    written = config(path)
    for name, value in settings.RHYTHM.items():
        text = written[name].partition("=")[2]
        assert text.startswith((f"{value!r},", f'"{value}" if len(held_out)', "len(held_out) > 0,"))


@pytest.mark.parametrize("path", [*SFT, *OTHERS, ROOT / "recipes" / "loop_alpaca.py"], ids=lambda path: path.name)
def test_what_is_said_of_a_default_is_what_is_chosen(path):
    text, told = path.read_text(encoding="utf-8"), fields(path)
    call = re.search(r"defaults\.choose\(.*\)", text)[0]
    for flag, word in (("learning_rate", "rate"), ("num_train_epochs", "epochs")):
        if " = None " in told[flag]:
            small, large = re.search(rf"{word}=\((\S+), (\S+?)[ )]", call).groups()
            assert f"None: {small} below 50 M parameters, else {large}" in told[flag]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_output_and_launch_lines_name_the_recipe(path):
    text = path.read_text(encoding="utf-8")
    assert f'output_dir: str = "runs/{path.stem}"' in text
    doc = ast.get_docstring(ast.parse(text))
    launched = re.findall(r"(?:accelerate launch|python) (\S+)", doc)
    assert launched and set(launched) == {f"recipes/{path.name}"}
