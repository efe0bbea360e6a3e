"""What a model's files say of its size, without loading it: parameters, and the tokens that it takes."""

import json
import struct
from pathlib import Path
from typing import Any

from tunebook.common import models

LENGTHS = ("max_position_embeddings", "n_positions")


def facts(name: str) -> tuple[str, int | None, int | None]:
    """Where the model is (a folder, or its Hub name), its parameters, and its longest input; None where not known.

    Raises:
        UserError: there is no such model.
    """
    place = models.resolve(name, weights=False)
    folder = Path(place) if Path(place).is_dir() else _cached(place)
    if folder is None:
        return place, None, None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    limit = next((config[key] for key in LENGTHS if isinstance(config.get(key), int)), None)
    return place, _parameters(folder), limit


def _cached(name: str) -> Path | None:
    """The folder of a Hub model in the Hub's cache; None where it is not there yet."""
    from huggingface_hub import try_to_load_from_cache

    found: Any = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _parameters(folder: Path) -> int | None:
    """The elements of all weights, from the heads of the safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    total = 0
    for file in files:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            head = json.loads(opened.read(length))
        for key, tensor in head.items():
            if key != "__metadata__":
                size = 1
                for width in tensor["shape"]:
                    size *= width
                total += size
    return total
