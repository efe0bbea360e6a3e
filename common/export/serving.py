"""The commands that serve an export, for its model card and the terminal."""

import json
import shlex
from pathlib import Path
from typing import Any

from tunebook.common.models import inference

LARGEST_RANK = 16  # that vLLM serves without being told
RANKS = (16, 32, 64, 128, 256, 320, 512)  # that it can be told
ONLY_START = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # of init_lora_weights: they leave the base as it was


def commands(target: str, folder: Path, named: str, base: str) -> list[str]:
    """
    Args:
        folder: the export, whose files are looked at. named: how the commands call it.
        base: how they call the model under an adapter.

    Returns:
        One for each server that takes it; none for an adapter that vLLM does not serve.
    """
    named, title = shlex.quote(named), shlex.quote(Path(named).name)
    if target == "ollama":
        return [f"ollama create {title} -f {named}/Modelfile"]
    if target == "gguf":
        adapter = f" --lora_path {named}/adapter.gguf" if (folder / "adapter.gguf").exists() else ""
        models = [path.name for path in sorted(folder.glob("*.gguf")) if path.name != "adapter.gguf"]
        return [f"python -m llama_cpp.server --model {named}/{model}{adapter}" for model in models]
    if target == "merged":
        return [f"vllm serve {named}", f"transformers serve {named}"]
    config = json.loads((folder / inference.PEFT).read_text(encoding="utf-8"))
    if not_for_vllm(config):
        return []
    # Without these two, vLLM prompts the adapter by the base's template, and ends answers at the base's end token.
    beside = f"--tokenizer {named} --generation-config {named}"
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    larger = f" --max-lora-rank {next(one for one in RANKS if one >= rank)}" if rank > LARGEST_RANK else ""
    return [f"vllm serve {shlex.quote(base)} --enable-lora --lora-modules {title}={named} {beside}{larger}"]


def not_for_vllm(config: dict[str, Any]) -> str:
    """What vLLM (0.32) does not serve of an adapter, by its adapter_config.json; "": it serves it."""
    start = config.get("init_lora_weights", True)
    ranks = [config.get("r") or 0, *(config.get("rank_pattern") or {}).values()]
    found = [
        ("adapters other than LoRA", config.get("peft_type") != "LORA"),
        ("DoRA", config.get("use_dora")),
        ("biases", config.get("bias", "none") != "none" or config.get("lora_bias")),
        ("modules_to_save", config.get("modules_to_save")),
        ("trained rows of embeddings", config.get("trainable_token_indices")),
        (f"init_lora_weights={start}", isinstance(start, str) and start.lower() not in ONLY_START),
        ("invocation tokens", config.get("alora_invocation_tokens")),
        ("replicated layers", config.get("layer_replication")),
        (f"ranks above {RANKS[-1]}", max(ranks) > RANKS[-1]),
    ]
    return ", ".join(name for name, there in found if there)
