"""Streaming readers of json, jsonl, csv, tsv, parquet and arrow files, .gz, and folders of them.

Iterating twice reads twice, so a million rows need the memory of a few.
"""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunebook.common.data import json_array
from tunebook.common.data.spec import SPLIT_OF
from tunebook.common.errors import Part, RowErrors, UserError, nearest

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".parquet", ".arrow")
# What `datasets` and the Hub write beside the rows: it describes them, and holds none.
ABOUT = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
BATCH = 1000  # rows of a binary file that are Python objects at once
LONGEST = 64 << 20  # bytes of one row; more is a file with lost line ends or quotes, and would fill the memory


class Source:
    """One file; yields (number from 1, value). Blank lines and a csv header are not counted."""

    def __init__(self, path: Path, name: str, header: bool = True):
        self.path, self.name, self.header = path, name, header
        self.packed = path.suffix == ".gz"
        self.kind = path.suffixes[-2].lower() if self.packed and len(path.suffixes) > 1 else path.suffix.lower()
        if self.kind not in KINDS or (self.packed and self.kind in BINARY):
            sheet = "; save a sheet as .csv, in UTF-8" if self.kind in (".xlsx", ".xls", ".ods") else ""
            if self.kind in (".txt", ".md", ".text", ".log"):
                sheet = "; plain text has no prompt and answer to tell apart: make rows of questions and answers of it"
            raise UserError(
                f"--dataset {name}: expected a .json, .jsonl, .csv or .tsv file (also .gz), a .parquet or .arrow file, "
                f"a folder of them, or a Hub name{sheet}"
            )
        self.cells = self.kind in (".csv", ".tsv")  # whose values are all text
        self.stamp = self._stamp()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        problems = RowErrors(self.name)
        yield from self.rows(problems)
        problems.stop()

    def rows(self, problems: RowErrors | Part) -> Iterator[tuple[int, Any]]:
        """As iterating, but what cannot be read is added to `problems`."""
        if self._stamp() != self.stamp:
            raise UserError(f"--dataset {self.name} changed while it was being read; start again")
        reader = READERS[self.kind]
        extra = {"header": self.header, "tabs": self.kind == ".tsv"} if reader is _table else {}
        try:
            with self._open() as binary:
                yield from enumerate(reader(binary, problems, **extra), 1)
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
        problems = RowErrors(", ".join(part.name for part in self.parts))
        yield from self.rows(problems)
        problems.stop()

    def rows(self, problems: RowErrors) -> Iterator[tuple[int, Any]]:
        self.starts, number = [], 0
        for part in self.parts:
            self.starts.append(number)
            for _, value in part.rows(Part(problems, part.path.name)):
                number += 1
                yield number, value

    def place(self, number: int) -> str:
        which = max(place for place, start in enumerate(self.starts) if start < number)
        return f"{self.parts[which].path.name}, row {number - self.starts[which]}"


def read(path: str | Path, header: bool = True) -> Source | Joined:
    """The rows of a file, or of all data files of a folder in name order.

    `header`: False for csv and tsv files whose first line is a row; the columns are then called "1", "2", ...

    Raises:
        UserError: there is nothing to read at `path`, or (while iterating, at the end) rows that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return Joined([Source(file, str(file), header) for file in _data_files(path)])
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        reason = "is not a regular file" if path.exists() else "there is no such file"
        raise UserError(f"--dataset {path}: {reason}{nearest(path.name, siblings)}")
    return Source(path, str(path), header)


def splits(folder: Path, header: bool = True) -> tuple[dict[str, Source | Joined], list[str]]:
    """The splits of a folder, by file names (train.jsonl, test-00000-of-00002.parquet, ...) or by its folders' names.

    Returns:
        ({"train": ..., ...}, the names of data files that belong to no split). Without a train file: ({}, all files).
    """
    files, found = _data_files(folder), {}
    for file in files:
        if split := _split_of(file, folder):
            found.setdefault(split, []).append(Source(file, str(file), header))
    if "train" not in found:
        return {}, [file.name for file in files]
    used = {part.path for parts in found.values() for part in parts}
    named = {split: parts[0] if len(parts) == 1 else Joined(parts) for split, parts in found.items()}
    return named, [file.name for file in files if file not in used]


def passed_over(folder: Path) -> list[str]:
    """Names of files below a folder that look like data and are not read: what describes a dataset, and files in
    folders beside files of the folder's own. Hidden ones are left out."""
    read = set(_data_files(folder))
    about = [file for file in _visible(folder) if file.name in ABOUT]
    deeper = [file for file in _visible(folder) if _holds_rows(file) and file not in read]
    return [str(file.relative_to(folder)) for file in (*about, *deeper)]


def _split_of(file: Path, folder: Path) -> str | None:
    """The split that the name of a file gives, or else the folder that it is in."""
    stem = file.name.split(".")[0].lower()
    split = SPLIT_OF.get(stem) or SPLIT_OF.get(stem.split("-0")[0].split("_0")[0])
    return split or (SPLIT_OF.get(file.parent.name.lower()) if file.parent != folder else None)


def _visible(folder: Path) -> list[Path]:
    """All files below a folder, in name order, without hidden ones and those in hidden folders (.git, .cache)."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _holds_rows(file: Path) -> bool:
    kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    derived = kind == ".arrow" and file.name.startswith("cache-")  # what a map of `datasets` has left there
    return kind.lower() in KINDS and file.name not in ABOUT and not derived


def _data_files(folder: Path) -> list[Path]:
    every = [file for file in _visible(folder) if _holds_rows(file)]
    files = [file for file in every if file.parent == folder] or every
    if not files:
        raise UserError(f"--dataset {folder}: the folder holds no {', '.join(KINDS)} file")
    return files


def _decoded(
    binary: BinaryIO, problems: RowErrors | Part, broken: list[int] | None = None
) -> Iterator[tuple[int, str]]:
    """(line number, text) of each line. One that cannot be kept is a problem; where `broken` collects the numbers of
    such lines they come all the same, mended, as a line may be a part of a row."""
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
            line = line.removeprefix(codecs.BOM_UTF8)
        text, fault = "", _unseen(line)
        if not fault:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                fault = f"not UTF-8, byte {error.start} of the line is {line[error.start]:#x}"
        if fault:
            problems.skip(f"line {number}: {fault}")
            if broken is None:
                continue
            broken.append(number)
            text = line.decode("utf-8", "replace")
        yield number, text


def _unseen(line: bytes) -> str:
    """What is wrong with a line that no editor shows."""
    if line.startswith(codecs.BOM_UTF8):
        return f"begins with a byte order mark, as where files were joined; {json_array.WITHOUT_MARKS}"
    if (at := line.find(b"\0")) >= 0:
        return f"byte {at} of the line is NUL, as in UTF-16 text or a damaged file; save it as UTF-8 without them"
    return ""


def _lines(binary: BinaryIO, problems: RowErrors | Part) -> Iterator[Any]:
    first = True
    for number, text in _decoded(binary, problems):
        if text.isspace():
            continue
        try:
            yield json_array.value(text)
        except json_array.Wrong as error:
            stripped = text.strip()
            if stripped in ("[", "[{"):
                problems.skip(f"line {number}: {error}; a list of rows is .json: rename the file")
            elif first and stripped[:1] == "{" and stripped[-1] in "{[,":
                problems.add(f"line {number}: an object that goes over several lines; {json_array.ONE_A_LINE}")
                return
            else:
                problems.skip(f"line {number}: {error}")
        first = False


def _table(binary: BinaryIO, problems: RowErrors | Part, header: bool, tabs: bool) -> Iterator[dict[str, str]]:
    csv.field_size_limit(LONGEST)
    broken: list[int] = []
    lines = (text for _, text in _decoded(binary, problems, broken))
    tab: dict[str, Any] = {"delimiter": "\t" if tabs else ",", "strict": True}
    reader, before = csv.reader(lines, **tab), 0
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(f"line {before + reader.line_num}: {error}; is a quote not closed, or not doubled?")
            continue
        if broken and names is not None:  # this row had such a line, and it has been told
            broken.clear()
            continue
        if not cells:
            continue
        if names is None:
            names = cells if header else [str(place) for place in range(1, len(cells) + 1)]
            # In `a, b` the space belongs to the comma, in cells, too.
            if header and any(name[:1] == " " for name in names):
                before = reader.line_num
                reader, names = csv.reader(lines, skipinitialspace=True, **tab), [name.strip() for name in names]
            if duplicates := sorted({name for name in names if names.count(name) > 1}):
                names_twice = ", ".join(map(repr, duplicates))
                problems.add(f"line {before or reader.line_num}: the header names a column twice: {names_twice}")
                return
            if header:
                continue
        if len(cells) == len(names):
            yield dict(zip(names, cells, strict=True))
        else:
            where = "the header has" if header else "the first line has"
            problems.skip(f"line {before + reader.line_num}: {len(cells)} cells, {where} {len(names)}")


def _parquet(binary: BinaryIO, problems: RowErrors | Part) -> Iterator[dict]:
    from pyarrow import parquet

    yield from _batches("parquet", lambda: parquet.ParquetFile(binary).iter_batches(batch_size=BATCH), problems)


def _arrow(binary: BinaryIO, problems: RowErrors | Part) -> Iterator[dict]:
    """Rows of an Arrow stream, as `datasets` writes it, or an Arrow file."""
    from pyarrow import ipc

    def batches() -> Iterator[Any]:
        is_file = binary.read(6) == b"ARROW1"
        binary.seek(0)
        if is_file:
            reader = ipc.open_file(binary)
            whole = (reader.get_batch(place) for place in range(reader.num_record_batches))
        else:
            whole = iter(ipc.open_stream(binary))
        for batch in whole:  # one of save_to_disk may hold a thousand rows or all of them
            yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))

    yield from _batches("arrow", batches, problems)


def _batches(kind: str, batches: Callable[[], Iterable[Any]], problems: RowErrors | Part) -> Iterator[dict]:
    import pyarrow

    try:
        for batch in batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        problems.add(f"not a sound {kind} file: {error}")


READERS: dict[str, Callable[..., Iterator[Any]]] = {
    ".json": json_array.array,
    ".jsonl": _lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
