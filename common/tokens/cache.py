"""On-disk cache of encoded datasets, keyed by what they are made of."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.distributed import is_local_main_process, wait_for
from tunebook.common.errors import UserError

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

    Raises:
        UserError: the run that `folder` belongs to has checkpoints of another dataset.
    """
    import datasets
    import pyarrow

    path = folder / f"{key}.arrow"
    beside = path.with_suffix(".json")
    if is_local_main_process():
        _refuse_changed(folder, key)
    else:
        wait_for(path)  # it is made once
    if path.exists() and beside.exists():
        print(f"tokens: read from {path}")
        return datasets.Dataset.from_file(str(path)), json.loads(beside.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as part:
        with pyarrow.OSFile(str(part), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        files.write_json(beside, record())
    return datasets.Dataset.from_file(str(path)), record()


def _refuse_changed(folder: Path, key: str) -> None:
    """Refuse to resume a run whose tokens have changed: its row order would be another."""
    path = folder / KEY
    folder.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").strip() if path.exists() else key
    if before != key and any(folder.parent.glob("checkpoint-*/trainer_state.json")):
        raise UserError(
            f"{folder.parent} contains an interrupted run, and its data, tokenizer, template or the code that encodes "
            "them have changed since; put them back, choose another --output_dir, or add --overwrite"
        )
    path.write_text(key + "\n", encoding="utf-8")
