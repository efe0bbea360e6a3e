"""The weights of a GGUF file, by the names and in the order that they have in the model."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError


def reader(file: Path) -> Any:
    """
    Raises:
        UserError: it is no GGUF file.
    """
    gguf = importlib.import_module("gguf")
    try:
        return gguf.GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{file} cannot be read as GGUF: {error}") from error


def field(opened: Any, name: str) -> Any:
    """A value of the file's metadata, or None."""
    found = opened.get_field(name)
    return found.contents() if found is not None else None


def bits(file: Path) -> int:
    """Of most of the weights: 32, 16, 8 or 4 (and below)."""
    count: Counter[str] = Counter()
    for tensor in reader(file).tensors:
        count[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = count.most_common(1)[0][0]
    return {"F32": 32, "F16": 16, "BF16": 16}.get(kind, 8 if kind.startswith(("Q8", "I8", "Q6")) else 4)


class GgufWeights:
    """As exported_weights.ExportedFolder. llama.cpp keeps queries and keys of some architectures in another order of
    rows, and some norms with 1 added: which of these a tensor has is told by which comes nearest to what it is to be.

    Args:
        trained: AdaptedWeights or FineTunedWeights.
        lora: a LoRA adapter in GGUF, which is merged into what is read.
    """

    def __init__(self, file: Path, trained: Any, lora: Path | None = None):
        gguf = importlib.import_module("gguf")
        self.file, self.trained, self._reader = file, trained, reader(file)
        config = trained.skeleton.config.get_text_config()
        architecture = field(self._reader, "general.architecture")
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if architecture not in kinds:
            raise UserError(f"{file}: its architecture, {architecture}, is not known here")
        self._map = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._lora = reader(lora) if lora else None
        self._deltas = {tensor.name: tensor for tensor in self._lora.tensors} if self._lora else {}
        self._heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads))

    def place(self, name: str) -> str | None:
        """The name of a weight in the file."""
        return self._map.get_name(name, try_suffixes=(".weight", ".bias"))

    def skips(self, name: str) -> bool:
        """An output layer that is tied, and what llama.cpp keeps in another shape (fused experts)."""
        return name in self.trained.tied or self.place(name) is None

    def read(self, name: str) -> Any:
        """A weight in float32, in the order of the model; None: there is none."""
        tensor = self._tensors.get(self.place(name) or "")
        if tensor is None and name in self.trained.files.tied:
            tensor = self._tensors.get(self.place(self.trained.files.tied[name]) or "")
        if tensor is None:
            return None
        value = dequantized(tensor)
        if self._lora and f"{tensor.name}.lora_a" in self._deltas:
            first, second = (dequantized(self._deltas[f"{tensor.name}.lora_{part}"]) for part in "ab")
            scale = field(self._lora, "adapter.lora.alpha") / len(first)
            value = value + scale * (second @ first).reshape(value.shape)
        wanted = self.trained.read(name)
        if value.numel() != wanted.numel():
            return value[: len(wanted)] if value.shape[1:] == wanted.shape[1:] and len(value) > len(wanted) else value
        if value.ndim != 2 or wanted.ndim != 2 or value.shape != wanted.T.shape:
            value = value.reshape(wanted.shape)
        return arranged(value, wanted, self._heads)


def dequantized(tensor: Any) -> Any:
    """A tensor of a GGUF file in float32."""
    import torch

    gguf = importlib.import_module("gguf")
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())


def arranged(value: Any, wanted: Any, heads: tuple[int, ...]) -> Any:
    """A tensor in the arrangement in which it is nearest to what it is to be."""
    tries = [value]
    if value.ndim == 2 and value.shape != wanted.shape:
        tries = [value.T]
    if value.ndim == 1:
        tries.append(value - 1)
    tries += [rows_in_halves(value, count) for count in dict.fromkeys(heads) if len(value) % (2 * count) == 0]
    return min(tries, key=lambda one: float((one - wanted).norm()))


def rows_in_halves(value: Any, heads: int) -> Any:
    """Rows of queries or keys as transformers has them: the halves of a head, not pairs of neighbors."""
    return value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def rows_in_pairs(value: Any, heads: int) -> Any:
    """The reverse of `rows_in_halves`: as llama.cpp has them."""
    return value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
