"""The weights of an exported folder, by the names that they have in the model."""

import json
from pathlib import Path
from typing import Any

from tunebook.common.export.base_weights import BaseWeights
from tunebook.common.export.stored import StoredTensors


class ExportedFolder:
    """Of safetensors. Nothing is filled in where a weight is missing, as transformers does with a warning.

    Args:
        trained: AdaptedWeights or FineTunedWeights, whose names they have.
    """

    def __init__(self, folder: Path, trained: Any):
        self._stored = StoredTensors(folder)
        self._names = {name: name for name in self._stored.names}
        prefix = f"{trained.skeleton.base_model_prefix}."
        for name in self._stored.names:
            self._names.setdefault(prefix + name, name)
            self._names.setdefault(name.removeprefix(prefix), name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tied = config.get("text_config", config).get("tie_word_embeddings", config.get("tie_word_embeddings", True))
        self._tied = dict(trained.files.tied or trained.tied) if tied else {}
        self._whole = BaseWeights(folder) if trained.whole else None

    def skips(self, name: str) -> bool:
        """Whether a weight is not to be looked for; none is."""
        return False

    def read(self, name: str) -> Any:
        """A weight in float32; None: there is none."""
        if self._whole:
            return None if name in self._whole.missing else self._whole.read(name)
        place = self._names.get(name) or self._names.get(self._tied.get(name, ""))
        return self._stored.read(place).float() if place else None
