"""What the commands on data share: all rows of what the user named, and checks of where they may write."""

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.common import data
from tunebook.common.data.rows import Row, kind
from tunebook.common.data.schema import PEEKED, SchemaReader
from tunebook.common.data.spec import parse
from tunebook.common.errors import UserError


class AllRows:
    """All rows of several sources, one after the other, not split. Small sources are kept, large ones read again.

    Attributes:
        drop: as in data.Listed.
    """

    def __init__(self, tables: list[tuple[SchemaReader, bool]], drop: bool = False):
        self.tables, self.drop = tables, drop
        self.held: dict[int, list[Row]] = {}

    def __iter__(self) -> Iterator[Row]:
        for place, (table, small) in enumerate(self.tables):
            if small and place not in self.held:
                self.held[place] = list(table)
            yield from self.held.get(place, table)

    def check(self) -> None:
        """Read small sources, and the first row of large ones, so that what is wrong is told before anything is loaded.

        Raises:
            UserError: rows are wrong.
        """
        for place, (table, small) in enumerate(self.tables):
            if small:
                self.held[place] = list(table)
            else:
                next(iter(table), None)

    @property
    def dropped(self) -> Counter[str]:
        """Rows dropped on reading, by reason, once the rows have been gone through."""
        return sum((table.problems.dropped for table, _ in self.tables), Counter())

    def columns(self) -> list[str]:
        """What the columns became and what was dropped, in words, once the rows have been gone through."""
        return data.column_notes([table for table, _ in self.tables])


def rows(
    words: list[str], command: str, only_train: bool = False, bad_rows: str = "refuse",
    reads: type[SchemaReader] = SchemaReader,
) -> AllRows:  # fmt: skip
    """The rows of files, folders, Hub names or pocket. Splits that a source has of its own are read one by one.

    Args:
        command: whose name a message gives.
        only_train: leave out all but the training rows of a source that has splits.
        bad_rows: `refuse` a source with rows that are wrong, or `drop` and count them.
        reads: what makes rows of a source; pairs.PairReader makes pairs.

    Raises:
        UserError: nothing was named, or it cannot be read; wrong rows are told while the rows are gone through.
    """
    if not words:
        raise UserError(f"name a file, a folder, a Hub name or pocket: tunebook {command} my_rows.json")
    wanted, _ = parse(words)
    notes: list[str] = []
    tables = []
    for name, spec in wanted.items():
        if spec.share is not None:
            notes.append(f"{name}: a share is for training; all its rows are read here")
        splits = data.splits_of(name, spec, notes)
        if only_train and splits.keys() - {"train", ""}:
            notes.append(f"{name}: its train split alone is read")
            splits = {"train": splits["train"]}
        for split, source in splits.items():
            called = f"{name} ({split})" if split else name
            tables.append((reads(source, called, spec.mapping, bad_rows), source.size <= data.IN_MEMORY_BYTES))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return AllRows(tables, bad_rows == "drop")


def template(found: AllRows, tokenizer: Any) -> tuple[str, str]:
    """The template that recipes train such rows with, by the kind of the first rows, and in words which recipes do."""
    kinds = {kind(row) for row in itertools.islice(found, PEEKED)}
    if "chat" not in kinds:
        return "alpaca", "as the *_alpaca recipes train it"
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        return "tokenizer", "the tokenizer's own, as chat_sharegpt trains it; --template chatml is another"
    return "chatml", "chat_sharegpt takes the tokenizer's own, and this tokenizer has none"


def writable(outputs: dict[str, str], words: list[str]) -> None:
    """Make sure before the work that the named files can be written, and that none is the data itself.

    Args:
        outputs: flag -> file, or "" where none was asked for.

    Raises:
        UserError: the folder is missing or not writable, the name is a folder, or the file is one that is read.
    """
    import os

    read = {Path(word).resolve() for word in words}
    named: dict[Path, str] = {}
    for flag, name in outputs.items():
        if not name:
            continue
        path = Path(name).resolve()
        if path in read:
            raise UserError(f"{flag} {name} is the data itself; choose another file")
        if path in named:
            raise UserError(f"{flag} {name} is what {named[path]} writes, too; choose another file")
        if path.is_dir():
            raise UserError(f"{flag} {name} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise UserError(f"{flag} {name}: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{flag} {name}: the folder {path.parent} cannot be written")
        named[path] = flag


@contextlib.contextmanager
def plain_names() -> Iterator[None]:
    """Messages about data begin with the flag of recipes, --dataset; these commands take the name alone."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--dataset ", "")) from error
