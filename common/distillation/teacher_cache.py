"""A teacher's targets for a dataset, on disk: the most likely tokens at every trained position, and the rest's mass.

One safetensors file. A row is found by the hash of its ids and labels, so rows may come in any order, packed or not,
any number of times, and a part of them is enough. The tensors (R rows, N positions that train, K tokens):

    rows       uint8 (R, 16)    hash of a row
    starts     int64 (R + 1,)   where a row's positions begin
    ids        uint16 or int32 (N, K), the likeliest first
    log_probs  float16 (N, K), at the teacher's temperature
    log_rest   float16 (N,), of all other tokens together

Its metadata names what the figures hold for: tokenizer, template, teacher, temperature, vocabulary and K; and what the
teacher's cross-entropy was on which held-out rows.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open

from tunebook.common import files
from tunebook.common.distillation import student
from tunebook.common.distillation.losses import TopK
from tunebook.common.errors import UserError
from tunebook.common.run_folder import fingerprints
from tunebook.common.tokens.lengths import IGNORE_INDEX

LEAST = -60000.0  # log-probabilities below are not told apart in half precision


def hash_of(ids: Any, labels: Any) -> bytes:
    """16 bytes that stand for a row."""
    parts = (numpy.ascontiguousarray(part, dtype=numpy.int32).tobytes() for part in (ids, labels))
    return hashlib.blake2b(b"|".join(parts), digest_size=16).digest()


def hash_of_all(rows: Iterable[dict[str, Any]]) -> str:
    """What stands for all rows, in any order, packed or not."""
    return hashlib.sha256(b"".join(sorted(hash_of(*parts) for parts in documents(rows)))).hexdigest()[:32]


def trained(labels: Any) -> int:
    """Positions of a row that train: all its labels but the first token's, before which there is nothing."""
    return int((numpy.asarray(labels)[1:] != IGNORE_INDEX).sum())


def documents(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """(ids, labels) of encoded rows; of packed ones (`seq_lengths`), those of each document."""
    for row in rows:
        ids, labels = (numpy.asarray(row[name], dtype=numpy.int32) for name in ("input_ids", "labels"))
        ends = numpy.cumsum(row["seq_lengths"] if row.get("seq_lengths") else [len(ids)])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield ids[start:end], labels[start:end]


def fingerprint(place: str) -> str:
    """A name for a model's files, or for its name on the Hub where it has not been fetched."""
    return fingerprints.weights(place) or f"{place}, not on this machine"


def metadata_for(tokenizer: Any, template: Any, teacher: str, temperature: float, k: int) -> dict[str, str]:
    """What a cache holds for, as its metadata say it.

    Args:
        teacher: as --teacher.
    """
    text = tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass")
    return {
        "tokenizer": hashlib.sha256(text).hexdigest()[:32],
        "template": hashlib.sha256(repr(template).encode()).hexdigest()[:32],
        "teacher": fingerprint(student.resolve_teacher(teacher)),
        "temperature": f"{temperature:g}",
        "vocabulary": str(max(tokenizer.get_vocab().values()) + 1),  # without padding of the teacher's head
        "k": str(k),
    }


def seal(path: Path) -> None:
    """Write the hash of a finished file beside it."""
    files.write_atomic(f"{path}.sha256", fingerprints.file(path) + "\n")


def require_whole(path: Path) -> None:
    """Raises UserError where a file is not what was written; one of an earlier version has no hash beside it."""
    beside = Path(f"{path}.sha256")
    if beside.exists() and beside.read_text(encoding="utf-8", errors="replace").strip() != fingerprints.file(path):
        raise UserError(
            f"{path} is damaged: it is not what was written. Remove it, and the teacher makes it anew; or remove "
            f"{beside.name} if you have put another file there"
        )


class TeacherCache:
    """An open cache; its tensors are read from disk as they are used. `name`: the teacher's, as --teacher."""

    def __init__(self, path: Path, name: str = ""):
        self.path, self.name = path, name
        with safe_open(path, "pt") as file:  # of torch: its tensors lie in the file, those of numpy would be copies
            self.metadata: dict[str, str] = file.metadata()
            parts = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118  it is no dict
        self.ids, self.log_probs, self.log_rest = (parts[name] for name in ("ids", "log_probs", "log_rest"))
        self._places = {bytes(key): int(start) for key, start in zip(parts["rows"], parts["starts"], strict=False)}

    def fits(self, wanted: dict[str, str], rows: Iterable[dict[str, Any]]) -> None:
        """Make sure that the cache is one of this teacher, tokenizer and template, and has all of the rows.

        Raises:
            UserError: with what differs, or the first row that is not there.
        """
        for name, value in wanted.items():
            theirs = self.metadata.get(name)
            if theirs != value:
                raise UserError(f"{self.path} was made with another {name} ({theirs}, here {value}); name another file")
        for number, (ids, labels) in enumerate(documents(rows), 1):
            if self.start(ids, labels) is None:
                raise UserError(f"{self.path} was made of other data: row {number} is not in it; name another file")

    def held_out_loss(self, rows: Iterable[dict[str, Any]]) -> float | None:
        """The teacher's cross-entropy on these rows, nats a token; None where it was measured on others, or not."""
        return float(self.metadata["held_out_loss"]) if self.metadata.get("held_out") == hash_of_all(rows) else None

    def start(self, ids: Any, labels: Any) -> int | None:
        """Where the positions of a row begin; None for a row that is not here."""
        return self._places.get(hash_of(ids, labels))

    def targets(self, batch: dict[str, Any], keep_BT: torch.Tensor) -> TopK:
        """Those of the labels that `keep_BT` (B, T - 1) keeps, for a batch that Placed has made."""
        places = batch["places"][:, 1:][keep_BT].clamp(min=0).cpu().numpy()
        parts = (numpy.asarray(part[places]) for part in (self.ids, self.log_probs, self.log_rest))
        ids, log_probs, log_rest = (torch.from_numpy(part).to(keep_BT.device) for part in parts)
        return TopK(ids.long(), log_probs.float(), log_rest.float(), int(self.metadata["vocabulary"]))


class NullTargets:
    """In place of a cache where a model without weights is planned."""

    def start(self, ids: Any, labels: Any) -> None:
        """No row is here."""


class TargetCollator:
    """A collator that tells each label where in the cache its targets stand: `places`, int64 (B, T), -1 where none."""

    def __init__(self, collate: Any, targets: TeacherCache | NullTargets):
        self.collate, self.targets = collate, targets
        self.one_row = getattr(collate, "one_row", False)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(rows)
        batch["places"] = torch.full_like(batch["input_ids"], -1)
        line, at = 0, 0
        for number, row in enumerate(rows):
            if not self.one_row:
                line, at = number, 0
            for ids, labels in documents([row]):
                trains = numpy.flatnonzero(labels[1:] != IGNORE_INDEX) + 1
                start = self.targets.start(ids, labels)  # held-out rows have none
                if start is not None:
                    batch["places"][line, at + trains] = torch.arange(start, start + len(trains))
                at += len(ids)
        return batch
