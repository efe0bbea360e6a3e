"""Files of rows, read as a stream: json, jsonl, csv, tsv, parquet, their .gz, and folders of them.

What comes out are raw values (a dict, normally); `columns` gives them meaning. Iterating twice reads twice, so a
million rows need the memory of a few.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from common import json_text
from common.cli import UserError, nearest
from common.problems import Problems

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
LONGEST = 64 << 20  # bytes of one row; more is a file with lost line ends or quotes, and would fill the memory
SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Source:
    """One file. Iterating yields (number, value): the row's place counted from 1, and what the file holds there.

    Blank lines and a csv header are no rows and are not counted.
    """

    def __init__(self, path: Path, name: str, header: bool = True):
        self.path, self.name, self.header = path, name, header
        self.packed = path.suffix == ".gz"
        self.kind = path.suffixes[-2].lower() if self.packed and len(path.suffixes) > 1 else path.suffix.lower()
        if self.kind not in KINDS or (self.packed and self.kind == ".parquet"):
            raise UserError(
                f"--dataset {name}: expected a .json, .jsonl, .csv or .tsv file (also .gz), a .parquet file, "
                "a folder of them, or a Hub name"
            )
        self.cells = self.kind in (".csv", ".tsv")  # whose values are all text
        self.stamp = self._stamp()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        problems = Problems(self.name)
        yield from self.rows(problems)
        problems.stop()

    def rows(self, problems: Problems) -> Iterator[tuple[int, Any]]:
        """As iterating, but what cannot be read is added to `problems`."""
        if self._stamp() != self.stamp:
            raise UserError(f"--dataset {self.name} changed while it was being read; start again")
        reader = {".json": json_text.array, ".jsonl": _lines, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
        extra = {"header": self.header, "tabs": self.kind == ".tsv"} if reader[self.kind] is _table else {}
        try:
            with self._open() as binary:
                yield from enumerate(reader[self.kind](binary, problems, **extra), 1)
        except (OSError, EOFError, zlib.error) as error:
            problems.add(f"the file cannot be read to its end: {error}")

    def place(self, number: int) -> str:
        """How a message calls a row."""
        return f"row {number}"

    @property
    def size(self) -> int:
        """Bytes, roughly, when unpacked."""
        return self.stamp[0] * (5 if self.packed or self.kind == ".parquet" else 1)

    def _open(self) -> BinaryIO:
        return io.BufferedReader(gzip.open(self.path)) if self.packed else self.path.open("rb")  # type: ignore[arg-type]

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise UserError(f"--dataset {self.name}: {error.strerror}") from None
        return status.st_size, status.st_mtime_ns


class Joined:
    """Several files one after the other; the numbers run on, and messages name file and row."""

    def __init__(self, parts: list[Source]):
        self.parts, self.starts = parts, [0]
        self.size = sum(part.size for part in parts)
        self.cells = any(part.cells for part in parts)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        problems = Problems(", ".join(part.name for part in self.parts))
        yield from self.rows(problems)
        problems.stop()

    def rows(self, problems: Problems) -> Iterator[tuple[int, Any]]:
        self.starts, number = [], 0
        for part in self.parts:
            self.starts.append(number)
            found = Problems(part.name)
            for _, value in part.rows(found):
                number += 1
                yield number, value
            for text in found.first:
                problems.add(f"{part.path.name}: {text}")
            problems.count += found.count - len(found.first)

    def place(self, number: int) -> str:
        which = max(place for place, start in enumerate(self.starts) if start < number)
        return f"{self.parts[which].path.name}, row {number - self.starts[which]}"


def read(path: str | Path, header: bool = True) -> Source | Joined:
    """The rows of a file, or of all data files of a folder in name order.

    Args:
        header: False for csv and tsv files whose first line is a row; the columns are then called "1", "2", ...

    Raises:
        UserError: there is nothing to read at `path`, or (while iterating, at the end) rows that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return Joined([Source(file, str(file), header) for file in _data_files(path)])
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        what = "is not a regular file" if path.exists() else "there is no such file"
        raise UserError(f"--dataset {path}: {what}{nearest(path.name, beside)}")
    return Source(path, str(path), header)


def sides(folder: Path, header: bool = True) -> tuple[dict[str, Source | Joined], list[str]]:
    """The sides that a folder's file names give (train.jsonl, test-00000-of-00002.parquet, ...).

    Returns:
        ({"train": ..., ...}, the names of data files that belong to no side). Without a train file: ({}, all files).
    """
    files, found = _data_files(folder), {}
    for file in files:
        stem = file.name.split(".")[0].lower()
        side = SIDES.get(stem) or SIDES.get(stem.split("-0")[0].split("_0")[0])
        if side:
            found.setdefault(side, []).append(Source(file, str(file), header))
    if "train" not in found:
        return {}, [file.name for file in files]
    used = {part.path for parts in found.values() for part in parts}
    named = {side: parts[0] if len(parts) == 1 else Joined(parts) for side, parts in found.items()}
    return named, [file.name for file in files if file not in used]


def _data_files(folder: Path) -> list[Path]:
    def holds_rows(file: Path) -> bool:
        kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
        return kind.lower() in KINDS and file.is_file() and not file.name.startswith(".")

    files = sorted(filter(holds_rows, folder.iterdir())) or sorted(filter(holds_rows, folder.rglob("*")))
    if not files:
        raise UserError(f"--dataset {folder}: the folder holds no {', '.join(KINDS)} file")
    return files


def _decoded(binary: BinaryIO, problems: Problems, broken: bool) -> Iterator[tuple[int, str]]:
    """(line number, text) of each line; a line that is not UTF-8 is a problem, and comes mended only if `broken`."""
    number = 0
    while line := binary.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            problems.add(f"line {number} is longer than {LONGEST >> 20} MB; are line ends missing?")
            return
        if number == 1:
            if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                problems.add("the file is UTF-16; save it as UTF-8")
                return
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(f"line {number}: not UTF-8, byte {error.start} of the line is {line[error.start]:#x}")
            if broken:
                yield number, line.decode("utf-8", "replace")


def _lines(binary: BinaryIO, problems: Problems) -> Iterator[Any]:
    for number, text in _decoded(binary, problems, broken=False):
        if text.isspace():
            continue
        try:
            yield json_text.value(text)
        except json_text.Wrong as error:
            hint = "; a list of rows is .json: rename the file" if text.strip() in ("[", "[{") else ""
            problems.add(f"line {number}: {error}{hint}")


def _table(binary: BinaryIO, problems: Problems, header: bool, tabs: bool) -> Iterator[dict[str, str]]:
    csv.field_size_limit(LONGEST)
    lines = (text for _, text in _decoded(binary, problems, broken=True))
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(f"line {reader.line_num}: {error}; is a quote not closed, or not doubled?")
            continue
        if not cells:
            continue
        if names is None:
            names = cells if header else [str(place) for place in range(1, len(cells) + 1)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                problems.add(f"line {reader.line_num}: the header names a column twice: {', '.join(map(repr, twice))}")
                return
            if header:
                continue
        if len(cells) == len(names):
            yield dict(zip(names, cells, strict=True))
        else:
            where = "the header has" if header else "the first line has"
            problems.add(f"line {reader.line_num}: {len(cells)} cells, {where} {len(names)}")


def _parquet(binary: BinaryIO, problems: Problems) -> Iterator[dict]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(binary).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        problems.add(f"not a sound parquet file: {error}")
