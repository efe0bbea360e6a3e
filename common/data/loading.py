"""Rows to train on, from the bundled set, files, folders or the Hub: checked in one go and split without leakage."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunebook.common.data import hub, overlap, readers, schema
from tunebook.common.data.rows import Row
from tunebook.common.data.rows import question as question_of
from tunebook.common.data.rows import system as system_of
from tunebook.common.data.schema import Table
from tunebook.common.data.texts import digest, normalized
from tunebook.common.errors import UserError, first_names, nearest
from tunebook.common.pocket import FOLDER as POCKET

NAMES = ("train", "validation", "test")
# name of --dataset -> how the names of its files begin
BUNDLED = {"pocket": "", "pocket_chat": "chat_", "pocket_pairs": "pairs_"}
ANSWERS = ("chosen", "rejected")  # what a source of preference pairs may name beside columns.NAMES
SIZES = {"train": 85, "validation": 10, "test": 5}  # percent
HELD = 64 << 20  # bytes: a source of this size is kept in memory, a larger one is read again each time
TEXTS = 200_000  # rows whose questions are compared as texts; of more, only equal ones are kept together


WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # how a path of Windows begins


class Listed(list[Row]):
    """Rows in memory. `drop`: those that a template cannot take are dropped and counted; else they are refused."""

    drop = False


class Rows(Sequence):
    """The rows of one side. They can be gone through any number of times; a slice is a list.

    Large sources are not in memory: iterating reads the file again, and an index costs reading up to that row.

    Attributes:
        dropped: rows of the sources that are not among them, by reason.
        drop: as in Listed.
    """

    def __init__(self, parts: "list[list[Row] | _Picked]", drop: bool = False, dropped: Counter[str] | None = None):
        self._parts, self.drop, self.dropped = parts, drop, dropped or Counter()

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(self._parts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            found = Listed(itertools.islice(self, start, stop, step) if step > 0 else list(self)[place])
            found.drop = self.drop
            return found
        place = place + len(self) if place < 0 else place
        for part in self._parts:
            if 0 <= place < len(part):
                return part[place] if isinstance(part, list) else next(itertools.islice(part, place, None))
            place -= len(part)
        raise IndexError("there is no such row")

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


class _Picked:
    """Rows of a table that is not in memory: all, or those at `places` (int64, rising, from 0)."""

    def __init__(self, table: Table, count: int, places: Any = None):
        self.table, self.count, self.places = table, count, places

    def __len__(self) -> int:
        return self.count if self.places is None else len(self.places)

    def __iter__(self) -> Iterator[Row]:
        if self.places is None:
            yield from self.table
            return
        rows, at = iter(self.table), 0
        for start in range(0, len(self.places), 10_000):  # a part at a time: plain ints are quick to compare
            for place in self.places[start : start + 10_000].tolist():
                yield next(itertools.islice(rows, place - at, None))
                at = place + 1


class Sides(dict[str, Rows]):
    """{"train", "validation", "test"} -> Rows.

    `shares`: source -> its share (below 1.0) or rows (an int) as typed after the colon, or None. `by`: what shares
    count, "rows" or "tokens". `notes`: what a user should be told about how the data was read.
    """

    def __init__(self, rows: dict[str, Rows], shares: dict[str, float | int | None], by: str, notes: list[str]):
        super().__init__(rows)
        self.shares, self.by, self.notes = shares, by, notes


def load(words: str | list[str], seed: int = 0, reads: type[Table] = Table, bad_rows: str = "refuse") -> Sides:
    """The train, validation and test rows of one or several data sets.

    Args:
        words: each is `pocket`, `pocket_chat`, a .json, .jsonl, .csv, .tsv (also .gz), .parquet or .arrow file, a
            folder of them (also one of save_to_disk, or a clone of a Hub data set), or a Hub name. `:0.7` after it
            gives its share of the mix, `:5000` a number of rows. Words of the form NAME=COLUMN after it say what its
            columns mean (instruction=question output=answer), header=no that a csv has none. `shares=tokens` makes
            shares count tokens, not rows. One text may hold several words.
        seed: of the split. Sides that a source has of its own (train.jsonl, test.jsonl, ...) are kept.
        reads: what makes rows of a source; pairs.Table makes pairs.
        bad_rows: `refuse` a source with rows that are wrong, or `drop` them: Rows.dropped counts them by reason.

    Raises:
        UserError: a file or name does not exist, a word means nothing, or rows are wrong: all rows of a source in one
            message, with their numbers.
    """
    wanted, by = parse([words] if isinstance(words, str) and Path(words).exists() else words)
    notes: list[str] = []
    told: list[str] = []
    parts: dict[str, list] = {side: [] for side in NAMES}
    dropped: dict[str, Counter[str]] = {side: Counter() for side in NAMES}
    whole: dict[tuple[int, ...], list[_Checked]] = {}
    given = False  # sides that are not split here
    for name, want in wanted.items():
        found = sides_of(name, want, notes)
        tables = {side: reads(source, name, want.mapping, bad_rows) for side, source in found.items()}
        checked = {side: _Checked(found[side], table) for side, table in tables.items()}
        for side, table in tables.items():
            dropped[side or "train"] += table.problems.dropped
        told += [] if name in BUNDLED else columns_of(list(tables.values()))
        rest = checked.pop("", None) or checked.pop("train")  # what the sides that are missing are taken from
        given |= bool(checked) and name not in BUNDLED
        for side, table in checked.items():
            parts[side].append(table.rows())
        missing = [0 if side in checked else SIZES[side] for side in NAMES[1:]]
        if any(missing):
            whole.setdefault((100 - sum(missing), *missing), []).append(rest)
        else:
            parts["train"].append(rest.rows())
    for sizes, tables in whole.items():
        _split(tables, sizes, seed, parts, notes)
    rows = {side: Rows(parts[side], bad_rows == "drop", dropped[side]) for side in NAMES}
    if not len(rows["train"]):
        raise UserError(f"--dataset {' '.join(wanted)}: {sum(map(len, rows.values()))} rows are too few to split")
    if given:
        notes += overlap.notes(rows)
    return Sides(rows, {name: want.share for name, want in wanted.items()}, by, [*notes, *told])


def columns_of(tables: list[Table]) -> list[str]:
    """What the columns of sources became, and what was dropped of them, in words. They have been gone through."""
    lines = [table.line() for table in tables]
    return [*dict.fromkeys(lines), *(f"{table.name}: {left}" for table in tables if (left := table.problems.left()))]


class Want:
    """What was asked of a source: its share, and what its columns mean."""

    def __init__(self, share: float | int | None):
        self.share, self.mapping, self.header = share, {}, True


def parse(words: str | list[str]) -> tuple[dict[str, Want], str]:
    """The sources that the words of --dataset name, and what shares count ("rows" or "tokens")."""
    wanted: dict[str, Want] = {}
    by, last = "rows", None
    for word in words.split() if isinstance(words, str) else words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or Path(word).exists():
            source, share = _share(word)
            if source in wanted:
                raise UserError(f"--dataset {source} is named twice; give it one share")
            wanted[source] = last = Want(share)
        elif name == "shares":
            if value not in ("rows", "tokens"):
                raise UserError(f"--dataset {word}: shares count rows or tokens")
            by = value
        elif last is None:
            raise UserError(f"--dataset {word}: name the file before what its columns mean")
        elif name == "header":
            if value not in ("yes", "no"):
                raise UserError(f"--dataset {word}: header is yes or no")
            last.header = value == "yes"
        elif name in schema.NAMES or name in ANSWERS:
            last.mapping[name] = value
        else:
            known = sorted({*schema.NAMES, "header", "shares"})
            raise UserError(f"--dataset {word}: {name} is none of {', '.join(known)}{nearest(name, known)}")
    if not wanted:
        raise UserError("--dataset needs a file, a folder, a Hub name or pocket")
    return wanted, by


def _share(word: str) -> tuple[str, float | int | None]:
    name, colon, tail = word.rpartition(":")
    if not colon or Path(word).exists() or "/" in tail or "\\" in tail:
        return word, None
    try:
        share = int(tail) if tail.isdecimal() else float(tail)
    except ValueError:
        raise UserError(f"--dataset {word}: after the colon comes a share (0.7) or rows (5000), not {tail!r}") from None
    if not (share > 0 and (isinstance(share, int) or share <= 1)):
        raise UserError(f"--dataset {word}: a share is above 0 and at most 1.0, a number of rows is whole, from 1")
    return name, share


def sides_of(name: str, want: Want, notes: list[str]) -> dict[str, Any]:
    """The sources of a name by side; {"": source} where it has no sides of its own."""
    path = Path(name)
    if name in BUNDLED:
        return {side: readers.read(POCKET / f"{BUNDLED[name]}{side}.jsonl") for side in NAMES}
    if WINDOWS.match(name) and os.name != "nt" and not path.exists():
        raise UserError(f"--dataset {name}: a path of Windows; here it may be {_posix(name)}, or copy the file")
    if path.is_dir():
        own, others = readers.sides(path, want.header)
        if own and others:
            notes.append(f"{name}: not read, as their names are no side: {', '.join(others)}")
        if over := readers.passed_over(path):
            notes.append(f"{name}: not read, as they describe the data or lie deeper: {first_names(over)}")
        return dict(own) or {"": readers.read(path, want.header)}
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.exists() or kind in readers.KINDS or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        return {"": readers.read(path.expanduser(), want.header)}
    return hub.sides(name, notes)


def _posix(name: str) -> str:
    """Where a path of Windows is under WSL."""
    drive, _, rest = name.partition(":")
    return f"/mnt/{drive.lower()}{rest.replace(chr(92), '/')}" if rest else name.replace(chr(92), "/")


class _Checked:
    """A table of which every row has been checked, counted, and asked for its question."""

    def __init__(self, source: Any, table: Table):
        self.table = table
        self.held = list(table) if source.size <= HELD else None
        self.count, self.texts, self.systems = 0, [], []
        same: dict[str, str] = {}  # a system text that is in every row is kept once
        for row in self.held if self.held is not None else self.table:
            self.count += 1
            system = system_of(row)
            self.systems.append(same.setdefault(system, system))
            self.texts.append(question_of(row))
            if self.count == TEXTS + 1:
                self.texts = [_key(text) for text in self.texts]
                self.systems, same = [_key(text) for text in self.systems], {}
            elif self.count > TEXTS:
                self.texts[-1], self.systems[-1] = _key(self.texts[-1]), _key(self.systems[-1])

    def rows(self, places: Any = None) -> "list[Row] | _Picked":
        if self.held is None:
            return _Picked(self.table, self.count, places)
        return self.held if places is None else [self.held[place] for place in places.tolist()]


def _key(text: str) -> str:
    """Stands for a question among very many: equal for equal questions, whatever their case and spaces."""
    return digest(normalized(text), 12).hex()


def _split(tables: list[_Checked], sizes: tuple[int, ...], seed: int, parts: dict[str, list], notes: list[str]) -> None:
    """Adds the rows of the tables to `parts`. They are split together, so that no question is on two sides."""
    import numpy as np

    from tunebook.common.data import splitting

    asked = [splitting.asked(table.texts, table.systems) for table in tables]
    texts = [text for part in asked for text in part]
    if len(texts) > TEXTS:
        texts = [text if len(part) > TEXTS else _key(text) for part in asked for text in part]
        notes.append(f"{len(texts)} rows: equal questions are kept on one side; similar ones were not looked for")
    strata = [str(place) for place, table in enumerate(tables) for _ in range(table.count)] if tables[1:] else None
    sides = splitting.sides(texts, sizes=sizes, seed=seed, strata=strata)
    if empty := splitting.unfilled(texts, sides, sizes, 0.8 if len(texts) <= TEXTS else None):
        notes.append(empty)
    start = 0
    for table in tables:
        of_table, start = sides[start : start + table.count], start + table.count
        for code, side in enumerate(NAMES):
            places = np.flatnonzero(of_table == code)
            if len(places):
                parts[side].append(table.rows(places))
