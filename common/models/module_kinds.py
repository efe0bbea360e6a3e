"""What kind of module holds each parameter of a model: attention, MLP, experts, norms ..., and adapters on these.

Names and classes tell, as transformers and PEFT give them; what they do not tell is "other".
"""

from typing import Any

TOWERS = {"vision tower": ("vision", "visual", "image"), "audio tower": ("audio", "speech")}
BESIDE_TEXT = ("vision", "visual", "image", "audio", "speech", "projector")  # words in names of what text does not use
RECURRENT = ("Mamba", "DeltaNet", "Mixer", "ShortConv", "Rwkv", "RecurrentBlock", "SSM")


def of(model: Any) -> dict[str, str]:
    """Name of each parameter -> the kind of module that holds it, and for adapters what they are on."""
    modules, found = dict(model.named_modules()), {}
    head = model.get_output_embeddings()
    heads = {id(head), id(vars(head).get("_modules", {}).get("base_layer"))} if head is not None else set()
    words = {id(weight) for weight in model.get_input_embeddings().parameters()}
    tied = head is not None and any(id(weight) in words for weight in head.parameters())
    configs = getattr(model, "peft_config", {})  # a plain model has none
    method = next(iter(configs.values())).peft_type.value if configs else ""
    prefix = getattr(model.base_model, "prefix", None) if configs else None
    for name, _ in model.named_parameters():
        parts = name.split(".")
        what, parts = adapter(parts, method, prefix)
        chain = [modules[".".join(parts[:end])] for end in range(1, len(parts)) if ".".join(parts[:end]) in modules]
        kind = base_kind(parts, chain, heads) if parts else ""
        kind = "embeddings, tied head" if tied and kind == "embeddings" and not what else kind
        found[name] = f"{what} {kind}".strip()
    return found


def beside_text(name: str) -> bool:
    """Whether a module or parameter is for images or sound, which text alone does not go through."""
    return any(word in name for word in BESIDE_TEXT)


def adapter(parts: list[str], method: str, prefix: str | None) -> tuple[str, list[str]]:
    """What a parameter's name says of an adapter ("" for the model's own), and the name of what it is on."""
    for place, part in enumerate(parts):
        if part == "prompt_encoder":
            return "prefix" if method == "PREFIX_TUNING" else "soft prompt", []
        if part == "bottlenecks":
            return "bottleneck adapters on", [*parts[:place], ""]
        if part == "modules_to_save":
            return "trained copy of", [*parts[:place], "original_module", parts[-1]]
        if part.startswith("trainable_tokens_"):
            return "single tokens", []
        if prefix and part.startswith(prefix):
            return f"{'LoRA' if method == 'LORA' else method} on", [*parts[:place], ""]
    return "", parts


def base_kind(parts: list[str], chain: list[Any], heads: set[int]) -> str:
    """The kind of a module from the names and the classes on the way to it, outermost first."""
    classes = [type(module).__name__ for module in chain]
    last = next((name for name in reversed(classes) if "Wrapper" not in name), "")
    for tower, words in TOWERS.items():
        if any(word in part for part in parts for word in words) and "projector" not in " ".join(parts):
            return tower
    if any("projector" in part for part in parts):
        return "projector"
    if "Norm" in last:
        return "norms"
    if any(id(module) in heads for module in chain):
        return "lm_head"
    if "Embedding" in last:
        return "embeddings"
    if any("Attention" in name or "Attn" in name for name in classes):
        return "attention"
    if any(part in ("gate", "router", "shared_expert_gate") for part in parts) or any("Router" in c for c in classes):
        return "router"
    if any("shared_expert" in part for part in parts):
        return "shared experts"
    if "experts" in parts:
        return "experts"
    if any(word in name for name in classes for word in RECURRENT):
        return "recurrent mixers"
    if any("MLP" in c or "FeedForward" in c for c in classes) or {"mlp", "feed_forward", "fc1", "fc2"} & {*parts}:
        return "MLP"
    return "other"
