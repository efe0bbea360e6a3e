"""What files, rows, models and this package's code are, by their content: times and places do not matter."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunebook.common import files

# Packages of this collection that decide what a run trains on, and how.
TRAINING_CODE = ("data", "tokens", "batching", "models", "training", "distillation", "preference")
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")  # and the settings of a model


def file(path: Path) -> str:
    """sha256 of a file, which is streamed."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def rows(splits: Mapping[str, Iterable[Any]]) -> dict[str, dict[str, Any]]:
    """Split -> how many rows it has, and a hash of them in their order."""
    found = {}
    for split, content in splits.items():
        digest, count = hashlib.sha256(), 0
        for row in content:
            digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":"), default=str).encode())
            count += 1
        found[split] = {"rows": count, "sha256": digest.hexdigest()}
    return found


def code() -> str:
    """A hash of this collection's own code that shapes training."""
    digest, here = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(path for package in TRAINING_CODE for path in (here / package).rglob("*.py")):
        digest.update(f"{path.relative_to(here).as_posix()} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def weights(name: str) -> str | None:
    """A name for a model's files; None where a Hub name has not been fetched. No weight is loaded.

    Sizes of the files, their first bytes (of safetensors: names and shapes) and samples of each are hashed.
    """
    if (folder := _folder(name)) is None:
        return None
    config = folder / "config.json"  # an adapter has none
    digest = hashlib.sha256(config.read_bytes() if config.exists() else b"")
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        for sample in files.samples(path):
            digest.update(sample)
    return digest.hexdigest()[:32]


def model(name: str) -> str | None:
    """The same of weights, tokenizer and settings; also of an adapter's folder."""
    if (folder := _folder(name)) is None:
        return None
    digest = hashlib.sha256((weights(name) or "").encode())
    for path in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {file(path)} ".encode())
    return digest.hexdigest()[:32]


def _folder(name: str) -> Path | None:
    if (folder := Path(name)).is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None
