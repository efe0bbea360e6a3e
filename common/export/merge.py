"""Merged weights on disk: a tensor at a time is computed in float32, rounded once, and written in shards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export.trained_weights import AdaptedWeights, FineTunedWeights
from tunebook.common.process import progress

SHARD = 1 << 30  # bytes of a file of weights: what is in memory at a time, beside a layer in float32
DTYPES = ("bfloat16", "float16", "float32")
NAME = "model-{:05d}-of-{:05d}.safetensors"


def dtype_for(wanted: str, config: dict[str, Any]) -> str:
    """The type of the exported weights: the base's own where that has 16 bits, else float16, which keeps three more
    bits of a small change than bfloat16 does.

    Raises:
        UserError: there is no such type.
    """
    if wanted not in ("auto", *DTYPES):
        raise UserError(f"--dtype {wanted}: there is auto, {', '.join(DTYPES)}")
    own = _dtype(config)
    return wanted if wanted != "auto" else own if own in ("bfloat16", "float16") else "float16"


def _dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def size(trained: AdaptedWeights | FineTunedWeights, dtype: str) -> int:
    """Bytes of the merged weights."""
    values = sum(_count(shape) for name, shape in trained.shapes.items() if name not in trained.tied)
    return values * (4 if dtype == "float32" else 2)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def write(trained: AdaptedWeights | FineTunedWeights, folder: Path, dtype: str) -> None:
    """Write weights and config.json into a folder.

    Raises:
        UserError: a weight does not fit into float16.
    """
    if trained.whole:
        _write_whole(trained, folder, dtype)
    else:
        _write_shards(_tensors(trained, dtype), folder)
    config = _config(trained, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tensors(trained: Any, dtype: str) -> Iterator[tuple[str, Any]]:
    """Names as a file has them, and tensors as they are served; first those of the model, then others of the base."""
    import torch

    base = trained.files
    wide = _dtype(base.config) in ("bfloat16", "float16")
    used = set()
    names = [*trained.shapes, *(name for name in base.tied if name not in trained.shapes)]
    for name in progress.track(names, "merging", len(names), "tensors"):
        place = base.stored_as(name)
        if place is not None:
            used.add(place)
        if name in trained.tied:
            continue
        kept = base.stored.read(place) if place is not None and place not in base.stored.packed else None
        own = "float32" if wide and kept is not None and kept.dtype == torch.float32 else dtype
        same = name not in trained.touched or trained.files is not trained.base
        if same and kept is not None and name not in base.quantized:
            yield str(place), rounded(name, kept, own)  # without a way through float32
        else:
            del kept
            yield place or name, rounded(name, trained.read(name), own)
    for place in base.stored.names:  # what is no parameter: buffers, parts that this class of model leaves out
        if place not in used:
            yield place, base.stored.read(place)


def rounded(name: str, value: Any, dtype: str) -> Any:
    """A weight in the type in which it is served.

    Raises:
        UserError: float16 cannot hold it.
    """
    import torch

    found = value.to(getattr(torch, dtype))
    if dtype == "float16" and torch.isinf(found).any() and not torch.isinf(value).any():
        raise UserError(f"{name} holds {value.abs().max():.3g}, which is beyond float16: --dtype bfloat16")
    return found


def _write_shards(tensors: Iterator[tuple[str, Any]], folder: Path) -> None:
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    part: dict[str, Any] = {}
    held = total = 0

    def flush() -> None:
        save_file(part, folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(part))
        part.clear()

    for name, value in tensors:
        length = value.numel() * value.element_size()
        if part and held + length > SHARD:
            flush()
            held = 0
        part[name] = value.contiguous()
        held, total = held + length, total + length
    flush()
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    files = {place: NAME.format(place + 1, len(shards)) for place in range(len(shards))}
    for place, file in files.items():
        (folder / f"{place}.safetensors").rename(folder / file)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: files[place] for place, names in enumerate(shards) for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_whole(trained: Any, folder: Path, dtype: str) -> None:
    """Of an architecture whose file has other tensors than the model: transformers turns them back when it saves."""
    import torch
    from transformers import AutoModelForCausalLM

    skeleton = trained.skeleton
    config = type(skeleton.config).from_dict(_config(trained, dtype))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    state = {name: rounded(name, trained.read(name), dtype) for name in trained.shapes if name not in trained.tied}
    buffers = {name: value for name, value in trained.files.read_buffers().items() if name in model.state_dict()}
    model.load_state_dict({**state, **buffers}, assign=True, strict=False)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size=f"{SHARD >> 20}MB")


def _config(trained: Any, dtype: str) -> dict[str, Any]:
    """The base's config.json, with what the merge has changed."""
    config = json.loads(json.dumps(trained.config))
    for name in ("quantization_config", "_name_or_path", "unsloth_version", "unsloth_fixed"):
        config.pop(name, None)
    names = {"dtype", "torch_dtype"} & set(config) or {"dtype"}
    config.update(dict.fromkeys(names, dtype))
    model = trained.skeleton
    text = config.get("text_config", config)
    embeddings = next((name for name, module in model.named_modules() if module is model.get_input_embeddings()), "")
    text["vocab_size"] = trained.shapes[f"{embeddings}.weight"][0]
    was_tied = bool(model.config.get_text_config().tie_word_embeddings)
    for place in (config, text):
        if was_tied != bool(trained.tied) or "tie_word_embeddings" in place:
            place["tie_word_embeddings"] = bool(trained.tied)
    return config
