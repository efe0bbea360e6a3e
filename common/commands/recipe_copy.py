"""A recipe's text as the start of one's own: where it is from, how the copy is run, other values of its flags."""

import ast
import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common import provenance
from tunebook.common.errors import UserError

TEMPLATE = re.compile(r"template = templates\.(?:ALPACA|get\(\"\w+\")")  # how recipes choose one


def write_new(target: Path, text: str, command: str) -> None:
    """Write a file that is not there yet.

    Raises:
        UserError: it is there, or cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"tunebook {command}: {target} exists and is left as it is; choose another name") from None
    except OSError as error:
        raise UserError(f"tunebook {command}: {target} cannot be written: {error.strerror}") from None


def origin(name: str) -> str:
    """The comment line that says what was copied, from which commit, and when."""
    commit = provenance.commit()
    where = f"commit {commit}" if commit else f"version {importlib.metadata.version('tunebook')}"
    return f"# Copied from recipes/{name}.py of tunebook, {where}, {datetime.now(UTC):%Y-%m-%d}."


def with_origin(text: str, line: str) -> str:
    """`text` with `line` under its docstring, or on top where it has none."""
    lines, place = text.splitlines(keepends=True), _docstring(text)
    return "".join([*lines[:place], line + "\n", *lines[place:]])


def without_claims(text: str, name: str, target: str) -> str:
    """The text with a docstring that runs the copy, and without what was measured of the original."""
    doc, place = ast.get_docstring(ast.parse(text), clean=False), _docstring(text)
    if doc is None:
        return text
    paragraphs = [part for part in doc.split("\n\n") if not part.startswith("Measured")]
    new = "\n\n".join(paragraphs).replace(f"recipes/{name}.py", target).strip()
    return _with_docstring(text, place, new)


def with_docstring(text: str, doc: str) -> str:
    """`text` with another docstring."""
    return _with_docstring(text, _docstring(text), doc)


def _with_docstring(text: str, place: int, doc: str) -> str:
    quotes = doc.replace("\\", "\\\\").replace('"""', '\\"""')
    end = "\n" if "\n" in doc or len(doc) > 110 else ""
    return f'"""{quotes}{end}"""\n' + "".join(text.splitlines(keepends=True)[place:])


def _docstring(text: str) -> int:
    """The last line of the docstring; 0 where there is none."""
    first = ast.parse(text).body[:1]
    has_doc = bool(first) and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant)
    return (first[0].end_lineno or 0) if has_doc else 0


def with_values(text: str, values: Mapping[str, tuple[Any, str]], inherited: type) -> str:
    """The recipe with other defaults of its flags.

    Args:
        values: flag -> its value, and the reason as a comment; "" keeps the comment that is there.
        inherited: the dataclass that holds the flags which the recipe does not write out; they are added to it.
    """
    args = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Args")
    fields = [node for node in args.body if isinstance(node, ast.AnnAssign)]
    own = {ast.unparse(node.target): node for node in fields}
    lines, others = text.splitlines(), []
    for name, (value, why) in values.items():
        if node := own.get(name):
            comment = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].strip()
            kept = comment.removeprefix("#").strip()
            lines[node.lineno - 1] = _line(name, ast.unparse(node.annotation), value, why or kept)
            lines[node.lineno : node.end_lineno] = []
        else:
            kind = next(field.type for field in dataclasses.fields(inherited) if field.name == name)
            others.append(
                _line(name, kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind)), value, why)
            )
    last = args.end_lineno or args.lineno
    return "\n".join([*lines[:last], *others, *lines[last:]]) + "\n"


def _line(name: str, kind: str, value: Any, why: str) -> str:
    said = (
        f"field(default_factory=lambda: [{', '.join(map(_literal, value))}])"
        if isinstance(value, list)
        else _literal(value)
    )
    return f"    {name}: {kind} = {said}" + f"  # {' '.join(why.split())}" * bool(why)


def _literal(value: Any) -> str:
    """As it stands in a program; JSON's strings are Python's, in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def with_template(text: str, name: str) -> str:
    """The recipe with the template of this name, chosen in its text."""
    if name == "alpaca":
        return text
    written = TEMPLATE.search(text)
    assert written, "a recipe without a template of its own"
    call = f'template = templates.get("{name}"' + ("" if written[0].endswith('"') else ", tokenizer)")
    return text.replace(written[0], call, 1)


def by_size(text: str) -> dict[str, tuple[float, float]]:
    """`rate` and `epochs` of a recipe, for a small model and for a larger one, as it gives them to run.defaults."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.defaults":
            return {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    return {}
