"""Load datasets from files, folders, the Hub or the bundled set, checked, and split without leakage."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunebook.common import pocket
from tunebook.common.data import hub, overlap, readers
from tunebook.common.data.rows import Row
from tunebook.common.data.rows import question as question_of
from tunebook.common.data.rows import system as system_of
from tunebook.common.data.schema import SchemaReader
from tunebook.common.data.spec import SPLITS, SourceSpec, parse
from tunebook.common.data.texts import NEAR_DUPLICATE_LIMIT, digest, normalized
from tunebook.common.errors import UserError, first_names
from tunebook.common.process import progress

SIZES = {"train": 85, "validation": 10, "test": 5}  # percent
IN_MEMORY_BYTES = 64 << 20  # bytes: a source of this size is kept in memory, a larger one is read again each time


WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # how a path of Windows begins


class RowList(list[Row]):
    """Rows in memory. `drop`: those that a template cannot take are dropped and counted; else they are refused."""

    drop = False


class Rows(Sequence):
    """The rows of one split. They can be gone through any number of times; a slice is a list.

    Large sources are not in memory: iterating reads the file again, and an index costs reading up to that row.

    Attributes:
        dropped: rows of the sources that are not among them, by reason.
        drop: as in RowList.
    """

    def __init__(self, parts: "list[list[Row] | RowSubset]", drop: bool = False, dropped: Counter[str] | None = None):
        self._parts, self.drop, self.dropped = parts, drop, dropped or Counter()

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(self._parts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            found = RowList(itertools.islice(self, start, stop, step) if step > 0 else list(self)[place])
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


class RowSubset:
    """Rows of a table that is not in memory: all, or those at `places` (int64, rising, from 0)."""

    def __init__(self, table: SchemaReader, count: int, places: Any = None):
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


class Splits(dict[str, Rows]):
    """{"train", "validation", "test"} -> Rows.

    Attributes:
        weights: source -> its share (a float up to 1) or rows (an int) as typed after the colon, or None.
        unit: what shares count, "rows" or "tokens".
        notes: what a user should be told about how the data was read.
    """

    def __init__(self, rows: dict[str, Rows], weights: dict[str, float | int | None], unit: str, notes: list[str]):
        super().__init__(rows)
        self.weights, self.unit, self.notes = weights, unit, notes


def load(
    words: str | list[str], seed: int = 0, reads: type[SchemaReader] = SchemaReader, bad_rows: str = "refuse"
) -> Splits:
    """The train, validation and test rows of one or several datasets.

    Args:
        words: each is `pocket`, `pocket_chat`, a .json, .jsonl, .csv, .tsv (also .gz), .parquet or .arrow file, a
            folder of them (also one of save_to_disk, or a clone of a Hub dataset), or a Hub name. `:0.7` after it
            gives its share of the mix, `:5000` a number of rows. Words of the form NAME=COLUMN after it say what its
            columns mean (instruction=question output=answer), header=no that a csv has none. `shares=tokens` makes
            shares count tokens, not rows. One text may hold several words.
        seed: of the split. Splits that a source has of its own (train.jsonl, test.jsonl, ...) are kept.
        reads: what makes rows of a source; pairs.PairReader makes pairs.
        bad_rows: `refuse` a source with rows that are wrong, or `drop` them: Rows.dropped counts them by reason.

    Raises:
        UserError: a file or name does not exist, a word means nothing, or rows are wrong: all rows of a source in one
            message, with their numbers.
    """
    specs, unit = parse([words] if isinstance(words, str) and Path(words).exists() else words)
    notes: list[str] = []
    column_lines: list[str] = []
    parts: dict[str, list] = {split: [] for split in SPLITS}
    dropped: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    unsplit: dict[tuple[int, ...], list[_Checked]] = {}
    has_own_splits = False  # whether a source has splits of its own
    for name, spec in specs.items():
        sources = splits_of(name, spec, notes)
        tables = {split: reads(source, name, spec.mapping, bad_rows) for split, source in sources.items()}
        checked = {split: _Checked(sources[split], table) for split, table in tables.items()}
        for split, table in tables.items():
            dropped[split or "train"] += table.problems.dropped
        column_lines += [] if pocket.rows(name) else column_notes(list(tables.values()))
        remainder = checked.pop("", None) or checked.pop("train")  # what the splits that are missing are taken from
        has_own_splits |= bool(checked) and not pocket.rows(name)
        for split, table in checked.items():
            parts[split].append(table.rows())
        missing = [0 if split in checked else SIZES[split] for split in SPLITS[1:]]
        if any(missing):
            unsplit.setdefault((100 - sum(missing), *missing), []).append(remainder)
        else:
            parts["train"].append(remainder.rows())
    for sizes, tables in unsplit.items():
        _split(tables, sizes, seed, parts, notes)
    rows = {split: Rows(parts[split], bad_rows == "drop", dropped[split]) for split in SPLITS}
    if not len(rows["train"]):
        raise UserError(f"--dataset {' '.join(specs)}: {sum(map(len, rows.values()))} rows are too few to split")
    if has_own_splits:
        notes += overlap.notes(rows)
    return Splits(rows, {name: spec.share for name, spec in specs.items()}, unit, [*notes, *column_lines])


def column_notes(tables: list[SchemaReader]) -> list[str]:
    """What the columns of sources became, and what was dropped of them, in words. They have been gone through."""
    lines = [table.summary() for table in tables]
    return [*dict.fromkeys(lines), *(f"{table.name}: {left}" for table in tables if (left := table.problems.left()))]


def splits_of(name: str, spec: SourceSpec, notes: list[str]) -> dict[str, Any]:
    """The sources of a name by split; {"": source} where it has no splits of its own."""
    path = Path(name)
    if bundled := pocket.rows(name):
        return {split: readers.read(file) for split, file in bundled.items()}
    if WINDOWS_PATH.match(name) and os.name != "nt" and not path.exists():
        raise UserError(f"--dataset {name}: a path of Windows; here it may be {_posix(name)}, or copy the file")
    if path.is_dir():
        own, others = readers.splits(path, spec.header)
        if own and others:
            notes.append(f"{name}: not read, as their names name no split: {', '.join(others)}")
        if over := readers.passed_over(path):
            notes.append(f"{name}: not read, as they describe the data or lie deeper: {first_names(over)}")
        return dict(own) or {"": readers.read(path, spec.header)}
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.exists() or kind in readers.KINDS or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        return {"": readers.read(path.expanduser(), spec.header)}
    return hub.splits(name, notes)


def _posix(name: str) -> str:
    """Where a path of Windows is under WSL."""
    drive, _, rest = name.partition(":")
    return f"/mnt/{drive.lower()}{rest.replace(chr(92), '/')}" if rest else name.replace(chr(92), "/")


class _Checked:
    """A table of which every row has been checked, counted, and asked for its question."""

    def __init__(self, source: Any, table: SchemaReader):
        self.table = table
        rows = progress.track(table, f"reading {table.name}", unit="rows")
        self.held = list(rows) if source.size <= IN_MEMORY_BYTES else None
        self.count, self.texts, self.systems = 0, [], []
        same: dict[str, str] = {}  # a system text that is in every row is kept once
        for row in self.held if self.held is not None else rows:
            self.count += 1
            system = system_of(row)
            self.systems.append(same.setdefault(system, system))
            self.texts.append(question_of(row))
            if self.count == NEAR_DUPLICATE_LIMIT + 1:
                self.texts = [_key(text) for text in self.texts]
                self.systems, same = [_key(text) for text in self.systems], {}
            elif self.count > NEAR_DUPLICATE_LIMIT:
                self.texts[-1], self.systems[-1] = _key(self.texts[-1]), _key(self.systems[-1])

    def rows(self, places: Any = None) -> "list[Row] | RowSubset":
        if self.held is None:
            return RowSubset(self.table, self.count, places)
        return self.held if places is None else [self.held[place] for place in places.tolist()]


def _key(text: str) -> str:
    """Stands for a question among very many: equal for equal questions, whatever their case and spaces."""
    return digest(normalized(text), 12).hex()


def _split(tables: list[_Checked], sizes: tuple[int, ...], seed: int, parts: dict[str, list], notes: list[str]) -> None:
    """Adds the rows of the tables to `parts`. They are split together, so that no question is in two splits."""
    import numpy as np

    from tunebook.common.data import splitting

    asked = [splitting.asked(table.texts, table.systems) for table in tables]
    texts = [text for part in asked for text in part]
    if len(texts) > NEAR_DUPLICATE_LIMIT:
        texts = [text if len(part) > NEAR_DUPLICATE_LIMIT else _key(text) for part in asked for text in part]
        notes.append(f"{len(texts)} rows: equal questions are kept in one split; similar ones were not looked for")
    strata = [str(place) for place, table in enumerate(tables) for _ in range(table.count)] if tables[1:] else None
    with progress.start("splitting without leakage"):
        assigned = splitting.assign(texts, sizes=sizes, seed=seed, strata=strata)
    if empty := splitting.unfilled(texts, assigned, sizes, 0.8 if len(texts) <= NEAR_DUPLICATE_LIMIT else None):
        notes.append(empty)
    start = 0
    for table in tables:
        of_table, start = assigned[start : start + table.count], start + table.count
        for code, name in enumerate(SPLITS):
            places = np.flatnonzero(of_table == code)
            if len(places):
                parts[name].append(table.rows(places))
