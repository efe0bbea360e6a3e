"""What the columns of a source mean: every row becomes an instruction, a pair or a chat, and is checked.

instruction: {"instruction", "input", "output"[, "system"]}, text each; pair: {"prompt", "completion"}, text each;
chat: {"messages": [{"role", "content", ...}][, "tools": list]}. All have "row" (the place in the source, from 1) and
"source" (its name); columns that mean nothing here are kept as they are.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from common import dialogue
from common.cli import UserError, nearest
from common.dialogue import Fault, sort
from common.problems import Problems

Row = dict[str, Any]
MISSING = "is missing"
PEEKED = 200  # rows that decide what the columns mean
OPTIONAL = {"instruction": ("input", "system", "history"), "pair": (), "chat": ("tools", "system")}
REQUIRED = {"instruction": ("instruction", "output"), "pair": ("prompt", "completion"), "chat": ("messages",)}
NAMES = {name for kind in REQUIRED for name in REQUIRED[kind] + OPTIONAL[kind]}


@dataclass(frozen=True)
class Layout:
    """Which column holds what: `columns` maps our names to theirs; the ones in `must` have to be in every row."""

    kind: str
    columns: dict[str, str]
    must: tuple[str, ...]
    tree: bool = False

    def expected(self) -> str:
        names = ", ".join(f"`{self.columns[name]}`" for name in self.must)
        optional = [f"`{theirs}`" for ours, theirs in self.columns.items() if ours not in self.must]
        return f"expected {names}" + (f" ({', '.join(optional)} may be missing)" if optional else "")


def layout(kind: str, columns: dict[str, str] | None = None, tree: bool = False) -> Layout:
    """A layout of a kind; names that are not given are called as ours are."""
    names = {name: name for name in (*REQUIRED[kind], *OPTIONAL[kind])} | (columns or {})
    return Layout(kind, names, REQUIRED[kind], tree)


# The first that most rows satisfy holds.
KNOWN = (
    layout("chat"),
    layout("chat", {"messages": "conversations"}),
    layout("chat", {"messages": "prompt"}, tree=True),
    layout("instruction"),
    layout("instruction", {"input": "context", "output": "response"}),
    layout("pair"),
    layout("pair", {"completion": "response"}),
    layout("pair", {"completion": "answer"}),
    layout("pair", {"prompt": "question", "completion": "answer"}),
    layout("pair", {"prompt": "question", "completion": "response"}),
)
# Names that say what a row is. A column of theirs that has one and means something else is kept as `their_NAME`.
OURS = {"row", "source", *(name for names in REQUIRED.values() for name in names)}


class Input(Protocol):
    """What is read from: sources.Source, sources.Joined, or rows of the Hub."""

    def rows(self, problems: Problems) -> Iterator[tuple[int, Any]]: ...
    def place(self, number: int) -> str: ...


def kind(row: Row) -> str:
    """instruction, pair or chat."""
    return "chat" if "messages" in row else "instruction" if "instruction" in row else "pair"


def question(row: Row) -> str:
    """The text that a row asks with, by which rows are called duplicates: no system text, no answer.

    Of a chat it is every turn before the last answer. Of an Alpaca prompt that is already rendered it is what follows
    `### Instruction:`, as the words before it are the same in all rows.
    """
    if kind(row) == "instruction":
        return f"{row['instruction']}\n{row['input']}"
    if kind(row) == "pair":
        return row["prompt"].rpartition("### Instruction:")[2]
    return "\n".join(turn["content"] for turn in row["messages"][:-1] if turn["role"] not in dialogue.INSTRUCTS)


class Table:
    """The canonical rows of a source, checked. Iterating twice reads twice.

    Args:
        source: what is read.
        name: the source as the user typed it.
        mapping: our name -> their column, e.g. {"instruction": "question", "output": "answer"}.

    Raises:
        UserError: the columns mean nothing known (from here), or (at the end of an iteration) rows are wrong: all of
            them in one message.
    """

    def __init__(self, source: Input, name: str, mapping: dict[str, str] | None = None):
        self.source, self.name = source, name
        self.cells = getattr(source, "cells", False)
        peeked = list(itertools.islice(source.rows(Problems(name)), PEEKED))
        values = [value for _, value in peeked if isinstance(value, dict)]
        self.layout = _mapped(mapping, values, name) if mapping and values else _detect(values, name)
        # One kind for all rows: prompts that are turns make chats, and so does a history of any one row.
        turns = sum(isinstance(value.get(self.layout.columns.get("prompt")), list) for value in values)
        self.turns = self.layout.kind == "pair" and 2 * turns > len(values)
        self.history = self.layout.kind == "instruction" and self._any(self.layout.columns["history"], values)

    def __iter__(self) -> Iterator[Row]:
        problems, count, missing = Problems(self.name), 0, False
        for number, value in self.source.rows(problems):
            count += 1
            faults: list[Fault] = []
            row = self._canonical(value, faults)
            if not faults:
                yield {**row, "row": number, "source": self.name}
                continue
            problems.expected = f"{self.layout.expected()} in every row"
            missing = missing or any(MISSING in text for _, text in faults)
            for field, text in faults:
                problems.add(f"{self.source.place(number)}: {f'`{field}` ' if field else ''}{text}")
        if missing:
            problems.expected += f"; a column of another name is given after the file, {self.layout.must[-1]}=COLUMN"
        if not count and not problems.count:
            raise UserError(f"--dataset {self.name} has no rows")
        problems.stop()

    def _any(self, column: str, values: list[Row]) -> bool:
        if not any(column in value for value in values):
            return False
        rows = self.source.rows(Problems(self.name))
        return any(isinstance(value, dict) and bool(value.get(column)) for _, value in rows)

    def _canonical(self, value: Any, faults: list[Fault]) -> Row:
        if not isinstance(value, dict):
            faults.append(("", f"is {sort(value)}, expected an object with named fields"))
            return {}
        columns = self.layout.columns
        others = {name: kept for name, kept in value.items() if name not in columns.values()}
        if "weight" in others:
            others["weight"] = dialogue.number(others["weight"]) if self.cells else others["weight"]
            if fault := dialogue.not_weight(others["weight"]):
                faults.append(("weight", f"{fault}; rename the column if it is no weight of the loss"))
        found: Row = {}
        for ours, theirs in columns.items():
            if value.get(theirs) is not None:
                found[ours] = value[theirs]
            elif ours in self.layout.must:
                has = f"{MISSING} (it has {', '.join(map(str, value)) or 'none'})"
                faults.append((theirs, "is null" if theirs in value else has))
        if not faults:
            found = self._fields(found, faults)
        return {**found, **{f"their_{name}" if name in OURS else name: kept for name, kept in others.items()}}

    def _fields(self, found: Row, faults: list[Fault]) -> Row:
        columns = self.layout.columns
        if self.layout.kind == "chat":
            return dialogue.chat(found, columns, faults, self.layout.tree)
        if self.layout.kind == "pair":
            if self.turns:
                return dialogue.joined(found, columns, faults)
            return _texts(found, ("prompt", "completion"), columns, faults)
        history = found.pop("history", None)
        row = _texts({"input": "", **found}, ("instruction", "input", "output", "system"), columns, faults)
        if not row.get("system"):
            row.pop("system", None)
        return dialogue.with_history(row, history, columns, faults) if self.history and not faults else row


def _texts(found: Row, names: tuple[str, ...], columns: dict[str, str], faults: list[Fault]) -> Row:
    for name in names:
        if name in found and (fault := dialogue.not_text(found[name])):
            faults.append((columns[name], fault))
    return {name: found[name] for name in names if name in found}


def _detect(values: list[Row], name: str) -> Layout:
    """The known layout that most of the rows satisfy; else the one that most rows satisfy in part."""

    def fits(known: Layout, value: Row) -> bool:
        if known.tree != isinstance(value.get("prompt"), dict) and known.columns.get("messages") == "prompt":
            return False
        return all(known.columns[ours] in value for ours in known.must)

    def part(known: Layout, value: Row) -> bool:
        return not known.tree and any(known.columns[ours] in value for ours in known.must)

    for test in (fits, part):
        scores = [sum(test(known, value) for value in values) for known in KNOWN]
        if max(scores):
            return KNOWN[scores.index(max(scores))]
    if not values:  # nothing to go by: empty, or all rows are wrong, and iterating says how
        return KNOWN[3]
    there = list(dict.fromkeys(str(column) for value in values for column in value))
    raise UserError(
        f"--dataset {name}: no known columns. It has: {_listed(there)}{_hint(there)}\n"
        "  Known are instruction (input) output, prompt completion, question answer, messages, conversations;"
        f" others are named after the file: --dataset {name} instruction=COLUMN output=COLUMN"
    )


def _listed(there: list[str]) -> str:
    return ", ".join(repr(column[:40] + "..." * (len(column) > 40)) for column in there[:20]) or "none"


def _hint(there: list[str]) -> str:
    if {"chosen", "rejected"} <= set(there):
        return "\n  chosen and rejected alone are preferences: name the prompt's and one answer's column"
    if there == ["text"]:
        return "\n  text alone has no prompt and answer to tell apart; that is data for pre-training"
    if len(there) == 1 and any(mark in there[0] for mark in ";\t|"):
        return "\n  that looks like cells with another separator: save it with commas as .csv, or with tabs as .tsv"
    if any(len(column) > 30 or " " in column for column in there):
        return "\n  if its first line is no header, add header=no; the columns are then called 1, 2, ..."
    return ""


def _mapped(mapping: dict[str, str], values: list[Row], name: str) -> Layout:
    there = list(dict.fromkeys(str(column) for value in values for column in value))
    listed = f"it has: {_listed(there)}"
    for ours, theirs in mapping.items():
        if ours not in NAMES:
            raise UserError(f"--dataset {name} {ours}={theirs}: {ours} is none of {', '.join(sorted(NAMES))}")
        if theirs not in there:
            raise UserError(f"--dataset {name} {ours}={theirs}: no such column{nearest(theirs, there)}; {listed}")
    for known in ("chat", "pair", "instruction"):
        if mapping.keys() & set(REQUIRED[known]):
            made = layout(known, {ours: theirs for ours, theirs in mapping.items() if ours in _all(known)})
            if missing := [ours for ours in made.must if made.columns[ours] not in there]:
                raise UserError(f"--dataset {name}: name the column of {missing[0]}: {missing[0]}=COLUMN; {listed}")
            if strange := mapping.keys() - _all(known):
                raise UserError(f"--dataset {name}: {min(strange)} does not belong to a {known}; {listed}")
            return made
    base = _detect(values, name)  # only optional ones are named: input=context
    if strange := mapping.keys() - _all(base.kind):
        raise UserError(f"--dataset {name}: {min(strange)} does not belong to a {base.kind}; {listed}")
    return Layout(base.kind, {**base.columns, **mapping}, base.must, base.tree)


def _all(known: str) -> set[str]:
    return {*REQUIRED[known], *OPTIONAL[known]}
