"""On-disk cache of encoded datasets, keyed by what they are made of."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.distributed import is_local_main_process, is_main_process, wait_for
from tunebook.common.run_folder import fingerprints

KEY = "key"  # a file that names the dataset which a run trains on


def cached(
    folder: Path, key: str, schema: Any, batches: Iterable[Any], record: Callable[[], dict[str, Any]]
) -> tuple[Any, dict[str, Any]]:
    """The dataset called `key`, read from `folder` or made and kept there; it is streamed to disk and memory-mapped.

    Args:
        schema, batches: of Arrow; the batches are made only where they are needed.
        record: JSON values to keep beside the rows; called after the last batch.

    Returns:
        A datasets.Dataset, and what was recorded with it.
    """
    import datasets
    import pyarrow

    path = folder / f"{key}.arrow"
    beside = path.with_suffix(".json")
    if not is_local_main_process():
        wait_for(path)  # it is made once
    folder.mkdir(parents=True, exist_ok=True)
    if is_main_process():
        (folder / KEY).write_text(key + "\n", encoding="utf-8")
    if (kept := _whole(path, beside)) is not None:
        print(f"tokens: read from {path}")
        return datasets.Dataset.from_file(str(path)), kept
    with files.atomic(path) as part:
        with pyarrow.OSFile(str(part), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        files.write_json(beside, {"record": record(), "sha256": _digest(part, record())})
    return datasets.Dataset.from_file(str(path)), record()


def _whole(path: Path, beside: Path) -> dict[str, Any] | None:
    """What was recorded with a cached dataset; None where there is none, or another than was written."""
    if not path.exists() or not beside.exists():
        return None
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
        if found["sha256"] == _digest(path, found["record"]):
            return found["record"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    print(f"tokens: {path} is damaged or of an earlier version, and is made anew")
    return None


def _digest(path: Path, record: dict[str, Any]) -> str:
    return hashlib.sha256(f"{fingerprints.file(path)} {json.dumps(record)}".encode()).hexdigest()
