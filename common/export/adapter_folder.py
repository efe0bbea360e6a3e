"""An adapter's folder for PEFT and vLLM: its files, and a base that other machines find."""

import json
import shutil
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export import serving
from tunebook.common.export.checks import Check
from tunebook.common.export.source import Source
from tunebook.common.export.trained_weights import AdaptedWeights
from tunebook.common.models import inference

WEIGHTS = "adapter_model.safetensors"


def write(source: Source, base_name: str, folder: Path) -> list[str]:
    """Copy weights and config; the base is named as on the Hub, not by a folder of this machine.

    Args:
        base_name: of the base, for others; "": its own name, or that of its folder.
    """
    file = source.trained / WEIGHTS
    if not file.exists():
        raise UserError(f"{source.trained}: no {WEIGHTS}; save the adapter again, as safetensors")
    shutil.copyfile(file, folder / WEIGHTS)
    config = json.loads((source.trained / inference.PEFT).read_text(encoding="utf-8"))
    local = Path(source.base).exists()
    config["base_model_name_or_path"] = base_name or (Path(source.base).name if local else source.base)
    config["inference_mode"] = True
    (folder / inference.PEFT).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    notes = []
    if local and not base_name:
        notes.append(
            f"the adapter's base is called {Path(source.base).name}; name it as on the Hub: --base_name ORG/NAME"
        )
    if refused := serving.not_for_vllm(config):
        notes.append(f"vLLM does not serve {refused}; what can be merged, --to merged gives it as plain weights")
    return notes


def equal(source: Source, folder: Path) -> Check:
    """Whether the weights of an adapter that is no LoRA are the run's, byte for byte."""
    file = folder / WEIGHTS
    same = file.exists() and (source.trained / WEIGHTS).read_bytes() == file.read_bytes()
    failure = "" if same else f"{WEIGHTS} is not that of the run" if file.exists() else f"there is no {WEIGHTS}"
    return Check(3, "the adapter's weights", "equal" if same else "others", "equal", failure)


class Weights:
    """As exported_weights.ExportedFolder: the weights of the base with the exported adapter merged in."""

    def __init__(self, folder: Path, reference: Any):
        self._adapted = AdaptedWeights(reference.base, folder)
        self._touched = {*self._adapted.touched, *reference.weights.touched}

    def skips(self, name: str) -> bool:
        """What neither adapter touches is the base's own."""
        return name not in self._touched

    def read(self, name: str) -> Any:
        """A weight in float32."""
        return self._adapted.read(name)
