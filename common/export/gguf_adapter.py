"""A LoRA adapter as GGUF, for llama.cpp to put on the GGUF of its base."""

import importlib
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export.gguf_tensors import GgufWeights, dequantized, field, rows_in_pairs
from tunebook.common.export.source import Source, read_json
from tunebook.common.export.trained_weights import ADAPTER, PREFIX, AdaptedWeights

MERGE = "--to gguf without --as_lora merges it"


def check(source: Source) -> None:
    """Refuse by name what llama.cpp's adapters are not: two matrices beside a weight.

    Raises:
        UserError: it is one of these.
    """
    folder = source.trained
    if not source.adapter:
        raise UserError(f"--as_lora: {source.name} trained the whole model, there is no adapter; leave the flag out")
    config = read_json(folder / "adapter_config.json")
    for name, what in (
        ("use_dora", "DoRA's magnitudes"),
        ("modules_to_save", "modules that trained whole"),
        ("trainable_token_indices", "embeddings of single tokens"),
        ("lora_bias", "biases"),
        ("target_parameters", "experts in one tensor"),
    ):
        if config.get(name):
            raise UserError(f"{folder}: an adapter of llama.cpp has no place for {what} ({name}); {MERGE}")
    if config.get("bias", "none") != "none":
        raise UserError(f"{folder}: an adapter of llama.cpp has no place for biases (bias={config['bias']}); {MERGE}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start in ("pissa", "olora"):
        raise UserError(f"{folder}: init_lora_weights={start} has changed the base, too; {MERGE}")


def write(trained: AdaptedWeights, adapter: Path, base: Path, file: Path) -> None:
    """Write the adapter for the base's GGUF.

    The scale of every layer (alpha / r, rsLoRA's alpha / sqrt(r), patterns) is written into its second matrix, since
    llama.cpp knows one alpha for all, and divides it by each layer's rank.

    Raises:
        UserError: a layer is not in the base's GGUF.
    """
    from safetensors import safe_open

    gguf = importlib.import_module("gguf")
    weights = GgufWeights(base, trained)
    writer = gguf.GGUFWriter(file, field(weights._reader, "general.architecture"))
    alpha = float(trained.lora["lora_alpha"])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    with safe_open(adapter / ADAPTER, "pt") as stored:
        for key in stored.keys():  # noqa: SIM118  it is no dict
            if ".lora_embedding" in key:
                raise UserError(f"{adapter}: an adapter of llama.cpp has no place for LoRA on embeddings; {MERGE}")
            if ".lora_A" not in key:
                continue
            module = key.removeprefix(PREFIX).partition(".lora_")[0]
            place = weights.place(f"{module}.weight")
            if place is None:
                raise UserError(f"{adapter}: {module} is not in the GGUF of the base; {MERGE}")
            first, second = stored.get_tensor(key).float(), stored.get_tensor(key.replace(".lora_A", ".lora_B")).float()
            second = second * (trained.scale(module) / (alpha / first.shape[0]))
            second = _arranged(second, weights, f"{module}.weight", trained)
            writer.add_tensor(f"{place}.lora_a", first.numpy())
            writer.add_tensor(f"{place}.lora_b", second.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _arranged(second: Any, weights: GgufWeights, name: str, trained: AdaptedWeights) -> Any:
    """The second matrix with its rows in the order that the base's weight has in the GGUF."""
    stored = dequantized(weights._tensors[str(weights.place(name))]).reshape(trained.shapes[name])
    base = trained.base.read(name)
    tries = {0: base}
    for heads in dict.fromkeys(weights._heads):
        if len(base) % (2 * heads) == 0:
            tries[heads] = rows_in_pairs(base, heads)
    heads = min(tries, key=lambda count: float((tries[count] - stored).norm()))
    return rows_in_pairs(second, heads) if heads else second
