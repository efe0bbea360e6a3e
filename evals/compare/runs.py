"""What a run's folder says of its model: the precision of its base, and the rows that it was trained on."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tunebook.common.tokens import cache, rendering, templates

REPORT = "report.json"


def of(folder: str) -> Path | None:
    """The run whose adapter/, model/ or own folder this is, where its report is there."""
    path = Path(folder).resolve()
    return next((place for place in (path, path.parent) if folder and (place / REPORT).is_file()), None)


def report(run: Path) -> dict[str, Any]:
    """report.json of a run; empty where it can't be read."""
    try:
        found = json.loads((run / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def precision(folder: str, four_bit: bool) -> str:
    """A note where an adapter's base has another precision than in training; "" where it has not, or not known."""
    run = of(folder)
    groups = (report(run).get("train") or {}).get("parameters") if run else None
    if not groups:
        return ""
    trained = any(4 in group.get("bits", ()) for group in groups)
    if trained == four_bit:
        return ""
    how, here = ("4 bits", "16 or 32") if trained else ("16 or 32 bits", "4")
    remedy = "--four_bit scores it as it was trained" if trained else "without --four_bit it is as it was trained"
    return f"the adapter was trained on a base in {how} and is scored on one in {here}, which moves scores: {remedy}"


def seen(folder: str, rows: list[dict], tokenizer: Any) -> tuple[int, Path] | None:
    """How many of the rows a run was trained on, compared by their tokens, and the file of its tokens; None where that
    is not known.

    Args:
        folder: of the run's adapter or model.
        tokenizer: the one that it was trained with.
    """
    run = of(folder)
    if run is None or not (Path(folder) / templates.FILE).exists() or not (files := _tokens(run)):
        return None
    encoded, bad, _ = rendering.renderer(tokenizer, templates.load(folder), "assistant")(rows)
    known = {key for file in files for key in _keys(file)}
    return sum(_key(ids) in known for place, (ids, _) in enumerate(encoded) if place not in bad), files[0]


def _tokens(run: Path) -> list[Path]:
    """The file of rows that the run was trained on, as the run names it; all that it has where it names none."""
    key = run / "tokens" / cache.KEY
    if key.exists():
        files = [key.with_name(f"{key.read_text(encoding='utf-8').strip()}.arrow")]
    else:
        files = sorted((run / "tokens").glob("*.arrow"))
    return [file for file in files if file.exists()]


def _keys(file: Path) -> Any:
    """The key of every row of a cache of tokens (tokens/cache.py)."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as batches:
        for batch in batches:
            column = batch.column("input_ids")
            ids, ends = column.values.to_numpy(), column.offsets.to_numpy()
            for start, end in pairwise(ends.tolist()):
                yield _key(ids[start:end])


def _key(ids: Any) -> bytes:
    import hashlib

    import numpy as np

    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).digest()
