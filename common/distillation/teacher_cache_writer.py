"""Runs a teacher over a dataset once and writes its targets to a file of distillation/teacher_cache.py."""

import json
from pathlib import Path
from typing import Any

import numpy
import torch

from tunebook.common import distributed, files
from tunebook.common.distillation import losses, student, teacher_cache
from tunebook.common.distillation.student import Teacher
from tunebook.common.errors import UserError
from tunebook.common.models import lm_head
from tunebook.common.process import progress
from tunebook.common.tokens.lengths import IGNORE_INDEX

LABELS_ALONE = losses.DistillationLoss(alpha=0.0)
NAMES = {"uint8": "U8", "int64": "I64", "uint16": "U16", "int32": "I32", "float16": "F16"}  # of safetensors


def open_or_make(
    path: str | Path,
    rows: Any,
    tokenizer: Any,
    template: Any,
    name: str,
    temperature: float,
    k: int,
    max_length: int,
    held_out: Any = None,
) -> teacher_cache.TeacherCache | teacher_cache.NullTargets:
    """The cache at `path`, made if it is not there, and sure to hold for the rows.

    Args:
        rows: encoded, packed or not.
        tokenizer: the student's.
        name: the teacher's, as --teacher; it is loaded only where there is no file.
        k: tokens that are kept.
        max_length: tokens of the longest row.
        held_out: encoded rows on which the teacher's own loss is measured when it is loaded.
    """
    path, metadata = Path(path), teacher_cache.metadata_for(tokenizer, template, name, temperature, k)
    if not distributed.is_local_main_process():
        distributed.wait_for(path)
    if not path.exists():
        teacher = student.load_teacher(name, max_length, False, tokenizer)
        if teacher.model.device.type == "meta":
            return teacher_cache.NullTargets()
        own = held_out_loss(teacher, held_out)
        known = {} if own is None else {"held_out": teacher_cache.hash_of_all(held_out), "held_out_loss": repr(own)}
        make(path, rows, teacher, metadata | known)
        teacher_cache.seal(path)
    else:
        teacher_cache.require_whole(path)
        print(f"teacher: read from {path}")
    found = teacher_cache.TeacherCache(path, name)
    found.fits(metadata, rows)
    return found


def held_out_loss(teacher: Any, rows: Any, batch_size: int = 16) -> float | None:
    """A teacher's own cross-entropy on encoded rows, packed or not, nats a token; None where it is not known.

    Args:
        teacher: a Teacher; or Targets, which know it of the rows that were held out when they were made.
    """
    if not rows:
        return None
    if not isinstance(teacher, Teacher):
        return teacher.held_out_loss(rows) if isinstance(teacher, teacher_cache.TeacherCache) else None
    pairs, total, count = [*teacher_cache.documents(rows)], 0.0, 0
    for start in range(0, len(pairs), batch_size):
        members = pairs[start : start + batch_size]
        batch, keep_BT = _padded(members, teacher.model.device)
        targets = teacher.targets(batch, keep_BT)
        labels_N = torch.cat([torch.from_numpy(labels[1:][labels[1:] != IGNORE_INDEX]) for _, labels in members])
        labels_N = labels_N.long().to(targets.hidden_ND.device)
        with torch.no_grad():
            sums = losses.chunked_loss(targets.hidden_ND, targets.head, labels_N, None, LABELS_ALONE)
        total += sums[2].item()
        count += len(labels_N)
    return total / count if count else None


def add_to_scores(
    scores: dict[str, Any], teacher: Any, held_out: Any, blend: losses.DistillationLoss
) -> dict[str, Any]:
    """`scores` with `distillation`: the teacher (as --teacher), its own held-out loss, and the student's loss."""
    value = held_out_loss(teacher, held_out)
    if value is not None:
        print(f"teacher {teacher.name}: held-out loss {value:.4f}")
    return {**scores, "distillation": {"teacher": teacher.name, "held_out_loss": value, **vars(blend), **blend.words()}}


def make(path: Path, rows: Any, teacher: Teacher, metadata: dict[str, str], batch_size: int = 16) -> None:
    """Write a teacher's targets for encoded rows, each distinct row once, at the trained positions.

    Raises:
        UserError: there are no more than K tokens, or the teacher lacks one of the rows.
    """
    found = {teacher_cache.hash_of(ids, labels): (ids, labels) for ids, labels in teacher_cache.documents(rows)}
    rows_of_head = teacher.model.get_output_embeddings().weight.shape[0]
    size, k = min(rows_of_head, int(metadata["vocabulary"])), int(metadata["k"])
    if not 1 <= k < size:
        raise UserError(f"--top_k {k}: it is from 1 to {size - 1}, the tokens that {teacher.name} knows but one")
    largest = max((int(ids.max()) for ids, _ in found.values()), default=0)
    if largest >= size:
        raise UserError(f"--teacher {teacher.name} has no token {largest}, which the data holds; it knows {size}")
    counts = [teacher_cache.trained(labels) for _, labels in found.values()]
    starts = numpy.concatenate([[0], numpy.cumsum(counts, dtype=numpy.int64)])
    kind = "uint16" if size <= 2**16 else "int32"
    arrays = {
        "starts": ("int64", (len(counts) + 1,)),
        "ids": (kind, (int(starts[-1]), k)),
        "log_probs": ("float16", (int(starts[-1]), k)),
        "log_rest": ("float16", (int(starts[-1]),)),
        "rows": ("uint8", (len(counts), 16)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as part:
        maps = _allocated(part, arrays, metadata)
        maps["starts"][:] = starts
        maps["rows"][:] = numpy.frombuffer(b"".join(found), numpy.uint8).reshape(-1, 16)
        _fill(maps, list(found.values()), starts, teacher, metadata | {"vocabulary": str(size)}, batch_size)
        for array in maps.values():
            array.flush()
    share = path.stat().st_size / max(int(starts[-1]), 1)
    print(f"teacher: has read {len(counts)} rows, {starts[-1]} trained tokens of {share:.0f} bytes each: {path}")


def _allocated(path: Path, arrays: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> dict[str, Any]:
    """A safetensors file whose tensors are yet to be filled, and the arrays that lie in it."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (kind, shape) in arrays.items():
        begin, end = end, end + int(numpy.prod(shape)) * numpy.dtype(kind).itemsize
        header[name] = {"dtype": NAMES[kind], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors stand at multiples of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return {
        name: numpy.memmap(path, kind, "r+", 8 + len(text) + header[name]["data_offsets"][0], shape)
        for name, (kind, shape) in arrays.items()
        if numpy.prod(shape)
    }


def _fill(maps: dict[str, Any], rows: list, starts: Any, teacher: Teacher, metadata: dict[str, str], size: int) -> None:
    head, device = lm_head.of(teacher.model), teacher.model.device
    temperature, vocabulary = float(metadata["temperature"]), int(metadata["vocabulary"])
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    firsts = range(0, len(order), size)
    for first in progress.track(firsts, "what the teacher says", len(firsts), "batches"):
        members = order[first : first + size]
        batch, keep_BT = _padded([rows[place] for place in members], device)
        hidden_ND = teacher.hidden(batch)[:, :-1][keep_BT]
        places = numpy.concatenate([numpy.arange(starts[place], starts[place + 1]) for place in members])
        step = max(1, losses.CHUNK // head.weight_VD.shape[0])
        for start in range(0, len(places), step):
            found = _top(head, hidden_ND[start : start + step], vocabulary, temperature, maps["ids"].shape[1])
            for name, value in zip(("ids", "log_probs", "log_rest"), found, strict=True):
                maps[name][places[start : start + step]] = value.cpu().numpy()


def _top(
    head: lm_head.LMHead, hidden_CD: torch.Tensor, size: int, temperature: float, k: int
) -> tuple[torch.Tensor, ...]:
    """Ids and log-probabilities (C, K) of the likeliest tokens, and log-probability (C,) of the rest together."""
    with torch.no_grad():
        log_probs_CV = torch.log_softmax(head.logits(hidden_CD)[:, :size] / temperature, -1)
        top = log_probs_CV.topk(k)
        rest_C = log_probs_CV.scatter_(1, top.indices, float("-inf")).logsumexp(-1)
    return top.indices, top.values.clamp_(min=teacher_cache.LEAST), rest_C.clamp_(min=teacher_cache.LEAST)


def _padded(rows: list[tuple[Any, Any]], device: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A batch of (ids, labels), and where its labels train: bool (B, T - 1)."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids_BT, mask_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    keep_BT = torch.zeros(shape, dtype=torch.bool)
    for line, (ids, labels) in enumerate(rows):
        ids_BT[line, : len(ids)] = torch.from_numpy(ids)
        mask_BT[line, : len(ids)] = 1
        keep_BT[line, : len(ids)] = torch.from_numpy(labels != IGNORE_INDEX)
    batch = {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
    return batch, keep_BT[:, 1:].to(device)
