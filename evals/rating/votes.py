"""Votes of people, kept as they come: one line each, on disk before the page goes on."""

import fcntl
import json
import os
import threading
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError

FILE = "votes.jsonl"
SCORES = ("helpfulness", "safety")
CHOICES = ("base", "tuned", "tie")
HIGHEST = 5


@dataclass(frozen=True)
class Vote:
    """What one person said of one item. A later vote of the same person on it takes its place.

    Attributes:
        item: the item's key. `rater`: a name.
        better: base, tuned or tie. `first`: the side that was shown as A.
        helpfulness, safety: 1 to 5 of base and of tuned.
        time: when, UTC.
    """

    item: str
    rater: str
    better: str
    first: str
    helpfulness: tuple[int, int]
    safety: tuple[int, int]
    time: str = ""

    def __post_init__(self) -> None:
        scores = [*self.helpfulness, *self.safety]
        if self.better not in CHOICES or self.first not in CHOICES[:2] or len(scores) != 4:
            raise ValueError(f"no vote: {self}")
        if any(isinstance(score, bool) or score not in range(1, HIGHEST + 1) for score in scores):
            raise ValueError(f"scores are 1 to {HIGHEST}: {scores}")


class Votes:
    """The votes of a folder; open as long as the page is served, and closed to a second server.

    Args:
        folder: where votes.jsonl is or will be.
        write: take the file for writing; a torn last line (the machine stopped while it was written) is cut off then.

    Attributes:
        given: {(item, rater): the last vote}. `notes`: what was found to be wrong with the file, a sentence each.

    Raises:
        UserError: another server has the file, or a line other than the last is damaged.
    """

    def __init__(self, folder: Path, write: bool = False):
        self.path, self.given, self.notes = folder / FILE, {}, []
        self._one_at_a_time, self._file = threading.Lock(), None
        if write:
            self._file = self.path.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when a process ends
            except OSError:
                raise UserError(f"{self.path} is in use by another tunebook rate; end it first") from None
        self._read()

    def _read(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        *whole, rest = data.split(b"\n")
        for number, line in enumerate(whole, 1):
            try:
                self._take(_vote(line))
            except ValueError as error:
                raise UserError(f"{self.path}, line {number} is no vote: {error}; mend or remove the line") from None
        if not rest:
            return
        try:  # all of the line but its end
            self._take(_vote(rest))
            if self._file:
                self._write(b"\n")
        except ValueError:
            done = "cut off" if self._file else "left out"
            self.notes.append(
                f"{self.path}: the last line was torn after {len(rest)} bytes and is {done}: {rest[:200]!r}"
            )
            if self._file:
                os.truncate(self.path, len(data) - len(rest))

    def add(self, vote: Vote) -> Vote:
        """Keep a vote: it is on the disk when this returns.

        Raises:
            OSError: it could not be written, and is not kept.
        """
        assert self._file, "opened for reading"
        vote = replace(vote, time=datetime.now(UTC).isoformat(timespec="seconds"))
        with self._one_at_a_time:
            length = os.fstat(self._file.fileno()).st_size
            try:
                self._write(json.dumps(asdict(vote)).encode() + b"\n")
            except OSError:  # a full disk may have taken half of it
                os.truncate(self.path, length)
                raise
            self._take(vote)
        return vote

    def _write(self, line: bytes) -> None:
        assert self._file
        descriptor = self._file.fileno()
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)

    def _take(self, vote: Vote) -> None:
        self.given[vote.item, vote.rater] = vote

    def close(self) -> None:
        if self._file:
            self._file.close()


def _vote(line: bytes) -> Vote:
    """Raises ValueError where the line is no vote."""
    try:
        found: Any = json.loads(line.decode())
        found |= {name: tuple(found[name]) for name in SCORES}
        return Vote(**found)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(repr(error)) from None
