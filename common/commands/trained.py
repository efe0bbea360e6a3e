"""What a recipe does with rows, read from its text: its template, its limit, and what of a row trains."""

import ast
from dataclasses import dataclass

from tunebook.common import catalog
from tunebook.common.errors import UserError

ENCODES = {"run.encode", "encoding.encode"}  # what makes ids and labels in a recipe


@dataclass
class Trained:
    """What a recipe gives to encoding.encode: a template's name, and settings."""

    recipe: str
    template: str
    max_length: int
    train_on: str
    too_long: str


def by(name: str) -> Trained:
    """What a recipe of `tunebook ls`, or a copy of one, does where its flags are not given.

    Raises:
        UserError: there is no such recipe, or it does not train on rows with a prompt and an answer.
    """
    file = catalog.find(name, "--recipe")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {name}: not a Python file: {error}") from None
    defaults = {
        node.target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    template = _template(tree, defaults)
    if template is None or not ENCODES & set(calls) or "max_length" not in defaults:
        shows = f"python {file} --dry_run shows what it trains"
        raise UserError(f"--recipe {name}: it does not train on rows of a prompt and an answer; {shows}")
    words = {
        word.arg: word.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (*ENCODES, "dict")
        for word in node.keywords
        if isinstance(word.value, ast.Constant)
    }
    return Trained(
        recipe=file.stem,
        template=template,
        max_length=int(str(defaults["max_length"])),
        train_on=str(words.get("train_on", "assistant")),
        too_long=str(words.get("too_long", "drop")),
    )


def _template(tree: ast.AST, defaults: dict) -> str | None:
    """The name of what is assigned to `template`: templates.ALPACA, or templates.get of a name or a flag."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != "template":
            continue
        value = node.value
        if isinstance(value, ast.Attribute) and ast.unparse(value.value) == "templates":
            return value.attr.lower()
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "templates.get" and value.args:
            first = value.args[0]
            if isinstance(first, ast.Constant):
                return str(first.value)
            if isinstance(first, ast.Attribute):
                return str(defaults.get(first.attr)) if first.attr in defaults else None
    return None
