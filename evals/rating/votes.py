"""Votes of people, one line each, on disk before the page goes on."""

import fcntl
import json
import os
import threading
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.evals.responses.store import append

FILE = "votes.jsonl"
SCORES = ("helpfulness", "safety")
CHOICES = ("base", "tuned", "tie")
HIGHEST = 5


@dataclass(frozen=True)
class Vote:
    """One person's vote on one item; a later one on the same item replaces it."""

    item: str  # its key
    rater: str
    better: str  # base, tuned or tie
    first: str  # base or tuned: shown as A
    helpfulness: tuple[int, int]  # 1 to 5 of base and of tuned
    safety: tuple[int, int]
    time: str = ""  # UTC

    def __post_init__(self) -> None:
        scores = [*self.helpfulness, *self.safety]
        if self.better not in CHOICES or self.first not in CHOICES[:2] or len(scores) != 4:
            raise ValueError(f"no vote: {self}")
        if any(isinstance(score, bool) or score not in range(1, HIGHEST + 1) for score in scores):
            raise ValueError(f"scores are 1 to {HIGHEST}: {scores}")


class Votes:
    """The votes of a folder, for one server at a time.

    Args:
        folder: of votes.jsonl.
        write: open the file for writing, and remove a last line that is incomplete.

    Attributes:
        latest: {(item, rater): the last vote}.
        notes: faults of the file, a sentence each.

    Raises:
        UserError: another server has the file, or a line other than the last is damaged.
    """

    def __init__(self, folder: Path, write: bool = False):
        self.path, self.latest, self.notes = folder / FILE, {}, []
        self._lock, self._file = threading.Lock(), None
        if write:
            self._file = self.path.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path} is in use by another tunebook rate; end it first") from None
        self._read()

    def _read(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        *lines, rest = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                self._keep(_vote(line))
            except ValueError as error:
                raise UserError(f"{self.path}, line {number} is no vote: {error}; correct or remove the line") from None
        if not rest:
            return
        try:  # all of the line but its end
            self._keep(_vote(rest))
            if self._file:
                append(self._file.fileno(), b"\n")
        except ValueError:
            done = "cut off" if self._file else "left out"
            self.notes.append(
                f"{self.path}: the last line was torn after {len(rest)} bytes and is {done}: {rest[:200]!r}"
            )
            if self._file:
                os.truncate(self.path, len(data) - len(rest))

    def add(self, vote: Vote) -> Vote:
        """Store a vote; it is on disk when this returns.

        Raises:
            OSError: it could not be written, and does not count.
        """
        assert self._file, "opened for reading"
        vote = replace(vote, time=datetime.now(UTC).isoformat(timespec="seconds"))
        with self._lock:
            length = os.fstat(self._file.fileno()).st_size
            try:
                append(self._file.fileno(), json.dumps(asdict(vote)).encode() + b"\n")
            except OSError:  # a full disk may have taken half of it
                os.truncate(self.path, length)
                raise
            self._keep(vote)
        return vote

    def _keep(self, vote: Vote) -> None:
        self.latest[vote.item, vote.rater] = vote

    def close(self) -> None:
        if self._file:
            self._file.close()


def _vote(line: bytes) -> Vote:
    """Raises ValueError where the line is no vote."""
    try:
        values: Any = json.loads(line.decode())
        values |= {name: tuple(values[name]) for name in SCORES}
        return Vote(**values)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(repr(error)) from None
