"""An append-only cache of replies on disk, so that none is paid for twice."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError


def key_of(*parts: Any) -> str:
    """The SHA-256 of what JSON says of the parts, whatever the order of keys in their dicts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def append(descriptor: int, line: bytes) -> None:
    """Write the line and wait until it is on disk."""
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)


class ResponseCache:
    """A .jsonl file of records by key, the last of each in memory; for one process at a time.

    A line that a kill has truncated is ended, counted in `corrupt_lines` and ignored.

    Raises:
        UserError: the file cannot be opened or written, or another process has it.
    """

    def __init__(self, path: Path):
        self.path, self.corrupt_lines = path, 0
        self._records: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise UserError(f"{path} is in use by another process; wait for it, or choose another folder") from None
        self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        for line in data.splitlines():
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                self._records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                self.corrupt_lines += 1
        if data and not data.endswith(b"\n"):
            self._write(b"\n")

    def get(self, key: str) -> dict[str, Any] | None:
        """The record, with its key under `key`."""
        return self._records.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Store a record; it is on disk when this returns."""
        whole = {"key": key, **record}
        self._write(json.dumps(whole).encode() + b"\n")
        self._records[key] = whole

    def _write(self, line: bytes) -> None:
        try:
            append(self._file, line)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}; what is in it is kept") from None

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        os.close(self._file)
