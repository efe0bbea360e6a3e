"""The tensors of a model's folder, each read when it is asked for: one at a time is in memory."""

import json
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError

STATE = ".quant_state.bitsandbytes__"  # what bitsandbytes adds to the name of a 4-bit weight that it has saved


class StoredTensors:
    """Of safetensors, in one file or in shards, or of pytorch_model.bin. A 4-bit weight is read as what it stands for.

    Attributes:
        names: of the tensors, as a model calls them.

    Raises:
        UserError: the folder holds no weights, a shard is missing, or they are quantized in another way.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._files = self._find()
        missing = sorted({file.name for file in self._files.values() if not file.exists()})
        if missing:
            raise UserError(f"{folder}: the index names {missing[0]}, which is not there; download the folder again")
        self.packed = {name.partition(STATE)[0] for name in self._files if STATE in name}
        parts = tuple(f"{name}." for name in self.packed)
        self.names = [name for name in self._files if not (parts and name.startswith(parts))]
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        method = (config.get("quantization_config") or {}).get("quant_method")
        if method and not self.packed:
            raise UserError(
                f"{folder}: its weights are quantized by {method}, from which nothing can be merged exactly; "
                "name the 16-bit model as --model"
            )

    def _find(self) -> dict[str, Path]:
        from safetensors import safe_open

        single = self.folder / "model.safetensors"
        if single.exists():
            with safe_open(single, "pt") as file:
                return dict.fromkeys(file.keys(), single)
        for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            index = self.folder / name
            if index.exists():
                found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                return {tensor: self.folder / file for tensor, file in found.items()}
        single = self.folder / "pytorch_model.bin"
        if single.exists():
            return dict.fromkeys(self._pickled(single), single)
        raise UserError(f"{self.folder}: no weights (model.safetensors)")

    def _pickled(self, file: Path) -> dict[str, Any]:
        import torch

        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)

    def _tensor(self, name: str) -> Any:
        """The tensor as it is stored, a view of the file. That is opened anew: its pages are given back with the
        tensor."""
        from safetensors import safe_open

        file = self._files[name]
        if file.suffix == ".bin":
            return self._pickled(file)[name]
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(name)

    def read(self, name: str) -> Any:
        """A tensor on the CPU, in the type in which it is stored; a 4-bit one in float32."""
        if name not in self.packed:
            return self._tensor(name)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {key: self._tensor(key) for key in self._files if key.startswith(f"{name}.")}
        state = QuantState.from_dict(parts, device="cpu")
        return dequantize_4bit(self._tensor(name), state).float()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading its values."""
        from safetensors import safe_open

        file = self._files[name]
        if name in self.packed or file.suffix == ".bin":
            return tuple(self.read(name).shape)
        with safe_open(file, "pt") as opened:
            return tuple(opened.get_slice(name).get_shape())
