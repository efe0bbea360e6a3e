"""Schemas: every row of a source becomes an instruction, a pair or a chat (data/rows.py), and is checked."""

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

from tunebook.common.data import conversations, layouts
from tunebook.common.data.column_usage import Uses
from tunebook.common.data.conversations import Fault
from tunebook.common.data.layouts import NAMES as NAMES
from tunebook.common.data.layouts import REQUIRED, Schema
from tunebook.common.data.rows import Row
from tunebook.common.errors import RowErrors, UserError, type_name

EMPTY = (None, "", [], {})
MEDIA = {"image", "images", "video", "videos", "audio", "audios"}
MISSING = "is missing"
PEEKED = 200  # rows that decide what the columns mean
MARKS = ("label", "kto_tag")  # of rows whose answer is to be learnt or avoided (KTO)
# Names that say what a row is. A column of theirs that has one and means something else is kept as `their_NAME`.
OURS = {"row", "source", *(name for names in REQUIRED.values() for name in names)}


class Input(Protocol):
    """What is read from: readers.Source, readers.Joined, or hub.Source."""

    def rows(self, problems: RowErrors) -> Iterator[tuple[int, Any]]: ...
    def place(self, number: int) -> str: ...


class SchemaReader:
    """The canonical rows of a source, checked. Iterating twice reads twice.

    A row has the schema that it fills (a null column does not count), so that joined sets may have several.

    Args:
        name: the source as the user typed it.
        mapping: our name -> source column, e.g. {"instruction": "question", "output": "answer"}; of all rows.
        bad_rows: `refuse` a source with invalid rows, or `drop` and count them.

    Attributes:
        uses: what the columns became, over the rows of the last iteration.
        problems: of the last iteration; what was dropped is there.

    Raises:
        UserError: unknown columns (from here), or (at the end of an iteration) invalid rows, all in one message; where
            they are dropped: none is left.
    """

    marks = MARKS  # columns whose false says that an answer is to be avoided

    def __init__(self, source: Input, name: str, mapping: dict[str, str] | None = None, bad_rows: str = "refuse"):
        if bad_rows not in ("refuse", "drop"):
            raise UserError(f"--bad_rows {bad_rows}: it can be refuse or drop")
        self.source, self.name, self.drop = source, name, bad_rows == "drop"
        self.cells = getattr(source, "cells", False)
        self.uses, self.problems = Uses(), RowErrors(name)
        peeked = list(itertools.islice(source.rows(RowErrors(name, drop=True)), PEEKED))
        values = [value for _, value in peeked if isinstance(value, dict)]
        self.mapped = bool(mapping and values)
        self.schema = layouts.mapped(mapping, values, name) if mapping and values else layouts.detect(values, name)
        self._only: dict[tuple[str, ...], bool] = {}
        self._filled: dict[layouts.Signature, Schema] = {}
        # One kind for all rows of a schema: prompts that are turns make chats, and so does a history of any one row.
        pairs = [(value, found) for value in values if (found := self._schema_of(value)).kind == "pair"]
        turns = sum(isinstance(value.get(found.columns["prompt"]), list) for value, found in pairs)
        self.turns = 2 * turns > len(pairs)
        column = self.schema.columns.get("history")
        self.history = column is not None and self._any(column, values)

    def __iter__(self) -> Iterator[Row]:
        self.problems = problems = RowErrors(self.name, self.drop)
        self.uses = Uses()
        count, kept, incomplete, missing = 0, 0, False, False
        problems.expected = "some rows cannot be trained on"
        for number, value in self.source.rows(problems):
            count += 1
            faults: list[Fault] = []
            row = self.normalize(value, faults)
            if not faults:
                kept += 1
                yield {**row, "row": number, "source": self.name}
                continue
            incomplete = incomplete or any("incomplete" in fault for fault in faults)
            missing = missing or any(MISSING in fault[1] for fault in faults)
            for field, text, *reason in faults[:1] if self.drop else faults:
                said = f"{self.source.place(number)}: {f'`{field}` ' if field else ''}{text}"
                problems.skip(said, reason[0] if reason else "malformed")
        if incomplete:
            problems.expected = f"{self.schema.expected()} in every row"
        if missing:
            problems.expected += (
                f"; a column of another name is given after the file, {self.schema.required[-1]}=COLUMN"
            )
        if not count and not problems.count and not problems.dropped:
            raise UserError(f"--dataset {self.name} has no rows")
        problems.stop()
        if not kept:
            raise UserError(f"--dataset {self.name}: no row is left; {problems.left()}")

    def summary(self) -> str:
        """What the columns of the last iteration became, in words."""
        return f"{self.name}: {self.uses.summary()}"

    def _any(self, column: str, values: list[Row]) -> bool:
        if not any(column in value for value in values):
            return False
        rows = self.source.rows(RowErrors(self.name, drop=True))
        return any(isinstance(value, dict) and conversations.has_turns(value.get(column)) for _, value in rows)

    def _schema_of(self, value: Row) -> Schema:
        """The schema that a row fills; the one of most rows where it fills none."""
        if self.mapped:
            return self.schema
        names = tuple(value)
        if names not in self._only:
            self._only[names] = layouts.only(names, self.schema)
        if self._only[names]:
            return self.schema
        signature = layouts.signature(value)
        if signature not in self._filled:
            self._filled[signature] = layouts.filled(signature, self.schema) or self.schema
        return self._filled[signature]

    def normalize(self, value: Any, faults: list[Fault]) -> Row:
        if not isinstance(value, dict):
            faults.append(("", f"is {type_name(value)}, expected an object with named fields"))
            return {}
        schema = self._schema_of(value)
        columns = schema.columns
        others = {name: kept for name, kept in value.items() if name not in columns.values()}
        if "weight" in others:
            others["weight"] = conversations.number(others["weight"]) if self.cells else others["weight"]
            if fault := conversations.not_weight(others["weight"]):
                faults.append(("weight", f"{fault}; rename the column if it is no weight of the loss"))
        found: Row = {}
        for ours, theirs in columns.items():
            if value.get(theirs) is not None:
                found[ours] = value[theirs]
            elif ours in schema.required:
                has = f"{MISSING} (it has {', '.join(map(str, value)) or 'none'})"
                faults.append((theirs, "is null" if theirs in value else has, "incomplete"))
        if others:
            _unfit(others, self.marks, faults)
        if not faults:
            self.uses.add(schema, tuple(found), others)
            tools = found.pop("tools", None)
            found = conversations.with_tools(
                self._fields(found, faults, schema), tools, schema.columns["tools"], faults
            )
        return {**found, **_theirs(others, found)} if others else found

    def _fields(self, found: Row, faults: list[Fault], schema: Schema) -> Row:
        columns = schema.columns
        if schema.kind == "chat":
            return conversations.chat(found, columns, faults, schema.tree)
        if schema.kind == "pair":
            if self.turns:
                return conversations.joined(found, columns, faults)
            return _texts(found, ("prompt", "completion", "system"), columns, faults)
        history = found.pop("history", None)
        row = _texts({"input": "", **found}, ("instruction", "input", "output", "system"), columns, faults)
        if faults or not (self.history or conversations.has_turns(history)):
            return row
        return conversations.with_history(row, history, columns, faults)


def _unfit(others: Row, marks: tuple[str, ...], faults: list[Fault]) -> None:
    """Columns that mean something a row cannot be trained on with: pictures, and a mark against its answer."""
    for name in MEDIA & others.keys():
        if others[name] not in EMPTY:
            text = "holds what a text model does not see; without the column the row trains as if nothing were there"
            faults.append((name, text, "media"))
    for name in marks:
        if name in others and (others[name] is False or str(others[name]).strip().casefold() == "false"):
            text = "is false, as of an answer to avoid, and it would train like the others; else rename the column"
            faults.append((name, text, "answer_to_avoid"))


def _theirs(others: Row, ours: Row) -> Row:
    """The columns that mean nothing here, under names that none of ours has, and that no other of theirs has."""
    kept = {}
    for name, value in others.items():
        new = name
        while new in OURS or new in ours or (new != name and new in others):
            new = f"their_{new}"
        if new == name or value is not None:  # a null `messages` of a union is nothing of theirs
            kept[new] = value
    return kept


def _texts(found: Row, names: tuple[str, ...], columns: dict[str, str], faults: list[Fault]) -> Row:
    for name in names:
        if name in found and (fault := conversations.not_text(found[name])):
            faults.append((columns[name], fault))
    return {name: found[name] for name in names if name in found and (name != "system" or found[name])}
