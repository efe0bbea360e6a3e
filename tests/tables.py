"""Rows in memory, read as a source is."""

import pytest

from tunebook.common.data import schema
from tunebook.common.errors import UserError


class Rows:
    """Values in memory as a source."""

    def __init__(self, *values):
        self.values = values

    def rows(self, problems):
        return enumerate(self.values, 1)

    def place(self, number):
        return f"row {number}"


def canonical(*values, **mapping):
    rows = list(schema.SchemaReader(Rows(*values), "mine", mapping))
    assert [row.pop("row") for row in rows] == list(range(1, len(values) + 1))
    assert {row.pop("source") for row in rows} == {"mine"}
    return rows


def fault(*values, **mapping):
    with pytest.raises(UserError) as error:
        canonical(*values, **mapping)
    return str(error.value)


def talk(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


HELLO = talk(("user", "hello"), ("assistant", "hi"))
