"""Encoded rows on disk: a second run of the same rows, tokenizer and template reads them; a changed one never does."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import (
    cuts,
    edges,
    files,
    loss_weights,
    marks,
    masking,
    rendering,
    stretches,
    templates,
    text_rendering,
    thinking,
    tokenizers,
    words,
)  # fmt: skip
from common.distributed import is_main_process
from common.errors import UserError
from common.masking import Counts
from common.templates import AnyTemplate

KEY = "key"  # a file that names the tokens which a run trains on
CODE = (
    *(cuts, edges, loss_weights, marks, masking, rendering, stretches, text_rendering),
    *(templates, templates.chats, templates.tools, thinking, tokenizers, words),
)  # whose text is part of the key


def key_of(rows: Iterable[dict], tokenizer: Any, template: AnyTemplate, settings: dict[str, Any]) -> str:
    """A name for the result: the hash of the rows, the tokenizer, the template, the settings and the code."""
    digest = hashlib.sha256()
    for module in CODE:
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
    digest.update(json.dumps([tokenizer.eos_token, repr(template), settings], sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":"), default=str).encode())
    return digest.hexdigest()[:32]


def _same(folder: Path, key: str) -> None:
    """Refuse to go on with a run whose tokens have changed: its order of rows, and which it has seen, would be others.

    What a run trains on is named in folder/KEY.
    """
    path = folder / KEY
    before = path.read_text(encoding="utf-8").strip() if path.exists() else key
    if before != key and any(folder.parent.glob("checkpoint-*/trainer_state.json")):
        raise UserError(
            f"{folder.parent} holds a run that stopped, and its data, tokenizer, template or the code that encodes "
            "them have changed since; put them back, choose another --output_dir, or add --overwrite"
        )
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(key + "\n", encoding="utf-8")


def encode(
    rows: Iterable[dict], tokenizer: Any, template: AnyTemplate, settings: dict[str, Any], folder: Path
) -> tuple[Any, Counts]:
    """What masking.encode returns, from `folder` where it is already there, else made and kept there.

    The rows pass through in parts and the result is read from disk as it is used, so memory does not grow with them.

    Raises:
        UserError: the run that `folder` belongs to has checkpoints of other tokens.
    """
    import datasets
    import pyarrow

    key = key_of(rows, tokenizer, template, settings)
    _same(folder, key)
    path = folder / f"{key}.arrow"
    record = path.with_suffix(".json")
    if path.exists() and record.exists():
        counts = Counts(**json.loads(record.read_text(encoding="utf-8")))
        counts.dropped = Counter(counts.dropped)
        print(f"tokens: read from {path}")
        return masking.needed(datasets.Dataset.from_file(str(path)), counts), counts
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    with files.atomic(path) as part:
        with pyarrow.OSFile(str(part), "wb") as file, pyarrow.ipc.new_stream(file, masking.schema()) as writer:
            for batch in masking.batches(rows, tokenizer, template, counts, **settings):
                writer.write_batch(batch)
        files.write_json(record, counts.as_dict())
    return masking.needed(datasets.Dataset.from_file(str(path)), counts), counts
