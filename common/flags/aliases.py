"""Older names of flags and their values, which still work (those of recipes: catalog.py)."""

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from tunebook.common.errors import UserError

VALUES = {"train_on": {"answers": "assistant", "last": "last_assistant"}}
FLAGS = {"sft": "set", "four_bit": "load_in_4bit"}
STUDENT, TEACHER = "load_in_4bit", "teacher_load_in_4bit"
# --four_bit of distillation: whose weights are in 4 bits.
WHOSE = {"none": (), "student": (STUDENT,), "teacher": (TEACHER,), "both": (STUDENT, TEACHER)}


def words(argv: list[str], fields: Collection[str]) -> list[str]:
    """A command line in the present flags, as far as `fields` has them and not the older ones.

    Raises:
        UserError: --four_bit of distillation names nobody.
    """
    renamed, remaining = [], iter(argv)
    for arg in remaining:
        match = re.fullmatch(r"--(no-|no_)?([\w-]+?)(=.*)?", arg)
        old = match[2].replace("-", "_") if match else ""
        if match and old in VALUES and old in fields:
            value = match[3][1:] if match[3] else next(remaining, "")
            renamed.append(f"--{old}={VALUES[old].get(value, value)}")
        elif match is None or old in fields or FLAGS.get(old) not in fields:
            renamed.append(arg)
        elif old == "four_bit" and TEACHER in fields:
            renamed += [f"--{flag}" for flag in _whose(match[3][1:] if match[3] else next(remaining, ""))]
        else:
            renamed.append(f"--{match[1] or ''}{FLAGS[old]}{match[3] or ''}")
    return renamed


def values(given: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The same for the values of a config file."""
    renamed = {}
    for name, value in given.items():
        if name in fields or FLAGS.get(name) not in fields:
            renamed[name] = VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        elif name == "four_bit" and TEACHER in fields:
            renamed |= dict.fromkeys(_whose(value), True)
        else:
            renamed[FLAGS[name]] = value
    return renamed


def _whose(word: str) -> tuple[str, ...]:
    if word not in WHOSE:
        raise UserError(f"--four_bit {word}: it is none, teacher, student or both; or --{STUDENT} and --{TEACHER}")
    return WHOSE[word]


def nothing(args: Any) -> Any:
    """Arguments in which an empty text of an optional field, and `--adapter none`, are None."""
    empty = {
        field.name: None
        for field in dataclasses.fields(args)
        if str(field.type) == "str | None"
        and (getattr(args, field.name) == "" or (field.name, getattr(args, field.name)) == ("adapter", "none"))
    }
    return dataclasses.replace(args, **empty) if empty else args
