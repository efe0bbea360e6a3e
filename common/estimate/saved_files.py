"""The weights that a run saves: predicted before training, and compared with the files afterwards."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as safetensors has them


def tensors(model: Any) -> dict[str, Any] | None:
    """Name in the file -> tensor, of what a save of this model writes: its adapter, or all of it. None for PEFT's
    methods that save more than what trains (VeRA and its like)."""
    if "bottlenecks" in vars(model):
        from tunebook.common.models import bottleneck_adapters  # loads torch

        return bottleneck_adapters.tensors(model, bottleneck_adapters.names(model)[0])
    configs = getattr(model, "peft_config", {})  # a plain model has none
    if not configs:
        state = model.state_dict()
        return {name: state[name] for name in {tensor.data_ptr(): name for name, tensor in state.items()}.values()}
    name, config = next(iter(configs.items()))
    if config.is_prompt_learning:
        return {"prompt_embeddings": model.get_prompt_embedding_to_save(name)}
    if config.peft_type.value != "LORA":
        return None
    return {key_of(part, name): weight for part, weight in model.named_parameters() if weight.requires_grad}


def key_of(name: str, adapter: str) -> str:
    """What PEFT calls a parameter of an adapter in its file."""
    name = ".".join(part for part in name.split(".") if part not in (adapter, "modules_to_save"))
    return name.removesuffix(".weight") if ".lora_magnitude_vector." in name else name


def size(model: Any) -> dict[str, int] | None:
    """`bytes` of the tensors that a save writes, and of the `file` with its header, where it is one file.

    The header is 8 bytes and JSON, padded to a multiple of 8; tensors of wider types come first, then by name
    (safetensors 0.8).
    """
    weights = tensors(model)
    if weights is None:
        return None
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in sorted(weights.items(), key=lambda item: (-item[1].element_size(), item[0])):
        dtype = str(tensor.dtype).removeprefix("torch.")
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES.get(dtype, dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return {"bytes": start, "file": 8 + -(-text // 8) * 8 + start}


def difference(model: Any, folder: Path, predicted: int) -> str:
    """How a folder's safetensors files differ from the predicted bytes of weights; "" where they do not."""
    saved: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                saved |= {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118  it is no dict
        except SafetensorError:
            return f"{path} is not as long as its header says: it was not written to its end"
    if sum(saved.values()) == predicted:
        return ""
    expected = {name: weight.numel() * weight.element_size() for name, weight in (tensors(model) or {}).items()}
    parts = [f"{folder} holds {sum(saved.values()):,} bytes of weights, where {predicted:,} were to be saved"]
    for words, names in (
        ("missing", [name for name in expected if name not in saved]),
        ("more than what trains", [name for name in saved if name not in expected]),
        ("of another size", [name for name in saved if name in expected and saved[name] != expected[name]]),
    ):
        if names:
            parts.append(f"{len(names)} {words}, such as {names[0]}")
    return "; ".join(parts)
