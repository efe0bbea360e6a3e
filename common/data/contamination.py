"""Training rows that overlap benchmark items: shared word n-grams, compared offline."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunebook.common.data import readers
from tunebook.common.data.rows import Row, texts
from tunebook.common.errors import UserError

Grams = dict[int, tuple[np.ndarray, np.ndarray]]  # length: (hashes, sorted; the pieces that they are of)
WORDS = 8  # in a row, shared with an item
LONG_FROM, LONG_WORDS = 50, 13  # an item of so many words needs a longer run: long texts share phrases by chance
WHOLE_FROM = 5  # words: a shorter item counts only where it is all that a field says
COMMON = 10  # a run that more items than this share is the benchmark's template
PART = 2000  # rows looked at in one go
QUESTIONS = ("question", "prompt", "instruction", "input", "problem", "query", "sentence", "ctx", "text", "turns")
# Scripts without spaces: each character is a word, and a run is twice as long.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Item:
    """A benchmark's item: its name (file and place) and its texts; the first one is the question."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """A row that shares `words` (as normalized) with an item; `whole` where that is the item's whole question."""

    row: int
    field: str
    item: str
    words: str
    whole: bool


@dataclass
class Found:
    """The overlaps in the order of the rows, and how much was compared."""

    rows: int = 0
    items: int = 0
    template_runs: int = 0  # runs of words that were left out, as more than COMMON items share them
    incomparable: int = 0  # items of which nothing is left to compare
    overlaps: list[Overlap] = field(default_factory=list)

    @property
    def row_numbers(self) -> list[int]:
        """The rows that overlap an item, each once, ascending."""
        return sorted({overlap.row for overlap in self.overlaps})


def read(path: str | Path) -> Iterator[Item]:
    """The items of a benchmark: a file, or all data files under a folder in name order.

    An item's first text is its question (the first of QUESTIONS that it has); the others are its longer texts, such
    as choices and reference answers. An item may also be a bare text.

    Raises:
        UserError: there is no data file at `path`, or one cannot be read.
    """
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if _holds_items(file)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: the folder holds no {', '.join(readers.KINDS)} file")
    for file in files:
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        for number, value in readers.read(file):
            texts = tuple(_texts(value))
            if texts:
                yield Item(f"{name}:{number}", texts)


def _holds_items(file: Path) -> bool:
    kind = Path(file.name.removesuffix(".gz")).suffix.lower()
    return file.is_file() and kind in readers.KINDS and not file.name.startswith(".")


def _texts(value: Any) -> Iterator[str]:
    """The question, if the item has one; then every text in it that is long enough to be compared by its runs."""
    question = None
    if isinstance(value, dict):
        question = next((value[name] for name in QUESTIONS if isinstance(value.get(name), str)), None)
    leaves = list(_leaves(value))
    if question is None and leaves:
        question = max(leaves, key=len)
    if question is not None:
        yield question
        yield from (text for text in leaves if text != question and len(WORD.findall(text)) >= WORDS)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def words(text: str) -> list[str]:
    """Casefolded words without punctuation; each Chinese or Japanese character is one."""
    return WORD.findall(text.casefold())


def find(rows: Iterable[Row], items: Iterable[Item | str], n: int = WORDS) -> Found:
    """The rows that share a run of n words with an item, in a question or an answer.

    A text of 50 words or more needs a run of 13, one of Chinese or Japanese characters twice as many. A question of
    fewer than n words must occur whole, and one of fewer than 5 must be all that a field says. A run that is mostly
    numbers and single letters does not count. Every item that a row overlaps is named once.
    """
    index = _Index(items, n)
    found = Found(items=index.items, template_runs=index.template_runs, incomparable=index.incomparable)
    stream = enumerate(rows, 1)
    while part := list(islice(stream, PART)):
        found.rows, found.overlaps = found.rows + len(part), found.overlaps + index.overlaps(part)
    return found


class _Index:
    """The runs of words of all items, as hashes by length; what a hash finds is compared word for word."""

    def __init__(self, items: Iterable[Item | str], n: int):
        self.vocabulary: dict[str, int] = {}
        self.names: list[str] = []
        self.pieces: list[tuple[int, list[str], int, bool]] = []  # item, words, length of a run, question
        self.alone: dict[tuple[str, ...], list[int]] = {}  # questions too short for a run
        for place, given in enumerate(items):
            item = Item(f"item {place + 1}", (given,)) if isinstance(given, str) else given
            self.names.append(item.name)
            for order, text in enumerate(item.texts):
                self._add(place, words(text), n, question=order == 0)
        self.items = len(self.names)
        self.grams, self.template_runs = self._hashed()
        left = {self.pieces[place][0] for _, of in self.grams.values() for place in of.tolist()}
        left.update(item for places in self.alone.values() for item in places)
        self.incomparable = self.items - len(left)

    def _add(self, item: int, found: list[str], n: int, question: bool) -> None:
        characters = sum(len(word) == 1 and re.match(f"[{CJK}]", word) is not None for word in found)
        length = (2 if 2 * characters > len(found) else 1) * (n if len(found) < LONG_FROM else max(n, LONG_WORDS))
        if len(found) < length:
            if not question or not found:
                return
            if len(found) < WHOLE_FROM:
                self.alone.setdefault(tuple(found), []).append(item)
                return
            length = len(found)
        for word in found:
            self.vocabulary.setdefault(word, len(self.vocabulary) + 1)
        self.pieces.append((item, found, length, question))

    def _ids(self, found: list[str]) -> list[int]:
        return [self.vocabulary.get(word, 0) for word in found]

    def _hashed(self) -> tuple[Grams, int]:
        by_length: dict[int, list[int]] = {}
        for place, (_, _, length, _) in enumerate(self.pieces):
            by_length.setdefault(length, []).append(place)
        grams, template = {}, 0
        for length, places in by_length.items():
            hashes, owner, _ = _runs([self._ids(self.pieces[place][1]) for place in places], length)
            item = np.array([self.pieces[place][0] for place in places])[owner]
            distinct = np.unique(np.stack([hashes, item.astype(np.uint64)]), axis=1)[0]
            values, counts = np.unique(distinct, return_counts=True)
            shared = values[counts > COMMON]
            template += len(shared)
            kept = ~np.isin(hashes, shared)
            hashes, owner = hashes[kept], np.array(places)[owner[kept]]
            order = np.argsort(hashes, kind="stable")
            grams[length] = hashes[order], owner[order]
        return grams, template

    def overlaps(self, rows: list[tuple[int, Row]]) -> list[Overlap]:
        fields = [
            (row.get("row", place), name, words(text))
            for place, row in rows
            for role, name, text in texts(row)
            if role != "aside" and text
        ]
        found: dict[tuple[int, int], tuple[int, Overlap]] = {}

        def add(field_place: int, item: int, shared: list[str], whole: bool) -> None:
            row, name, _ = fields[field_place]
            overlap = Overlap(row, name, self.names[item], " ".join(shared), whole)
            found.setdefault((row, item), (field_place, overlap))

        for field_place, (_, _, said) in enumerate(fields):
            for item in self.alone.get(tuple(said), ()) if len(said) < WHOLE_FROM else ():
                add(field_place, item, said, True)
        ids = [self._ids(said) for _, _, said in fields]
        for length, (hashes, owner) in self.grams.items():
            run, of, start = _runs(ids, length)
            low, high = np.searchsorted(hashes, run), np.searchsorted(hashes, run, side="right")
            for hit in np.flatnonzero(high > low).tolist():
                shared = fields[of[hit]][2][start[hit] : start[hit] + length]
                for piece in set(owner[low[hit] : high[hit]].tolist()):
                    item, said, _, question = self.pieces[piece]
                    whole = question and len(said) == length
                    # The words themselves, as two hashes may be equal by chance.
                    if (whole or _says(shared)) and f" {' '.join(shared)} " in f" {' '.join(said)} ":
                        add(int(of[hit]), item, shared, whole)
        return [overlap for _, overlap in sorted(found.values(), key=lambda pair: (pair[1].row, pair[0], pair[1].item))]


def _says(shared: list[str]) -> bool:
    """Not a count, a list of numbers or a formula, which any two texts may share: most of it is words."""
    return 2 * sum(not word.isdigit() and (len(word) > 1 or not word.isascii()) for word in shared) > len(shared)


def _runs(ids: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hash, which list, start in it) of every run of `length` ids that are all known (not 0)."""
    sizes = np.array([len(one) for one in ids], dtype=np.int64)
    flat = np.array([one for some in ids for one in some], dtype=np.uint64)
    count = max(len(flat) - length + 1, 0)
    hashes, known = np.zeros(count, dtype=np.uint64), np.ones(count, dtype=bool)
    for offset in range(length):
        hashes = hashes * MULTIPLIER + flat[offset : offset + count]
        known &= flat[offset : offset + count] > 0
    owner = np.repeat(np.arange(len(ids)), sizes)[:count]
    start = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)[:count]
    kept = known & (start + length <= sizes[owner])
    return hashes[kept], owner[kept], start[kept]
