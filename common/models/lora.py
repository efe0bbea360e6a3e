"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685), by Unsloth and PEFT: on what was asked for, or refused."""

import warnings
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.models import device, module_kinds, moe, parameter_table


def add(model: Any, **config: Any) -> Any:
    """New LoRA adapters on a loaded model, which alone train.

    `all-linear` means what `of_text` says.

    Args:
        config: what unsloth.FastLanguageModel.get_peft_model takes: r, lora_alpha, target_modules ...

    Raises:
        UserError: a target matches nothing in the model, or PEFT does not take the values.
    """
    from unsloth import FastLanguageModel

    config = of_text(model, config)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match")  # they hold for fused experts
            checkpointing = device.current().gradient_checkpointing
            found = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=checkpointing, **config)
    except ValueError as error:
        raise UserError(f"LoRA on {type(model).__name__}: {error}") from error
    if lacking := parameter_table.unmatched(found):
        raise UserError(f"LoRA: {'; '.join(lacking)}")
    return found


def of_text(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The values of a LoRA config, where all linear layers are its targets for all those that text goes through: with
    the experts, which PEFT (0.21) finds in some architectures alone where transformers keeps those of a layer in one
    tensor, and without the towers of images and sound."""
    if config.get("target_modules") != "all-linear":
        return config
    names, more = [name for name, _ in model.named_parameters()], {}
    fused = {".".join(name.split(".")[-2:]) for name, p in model.named_parameters() if moe.fused(name, p)}
    if fused:
        more["target_parameters"] = sorted(fused)
    if any(map(module_kinds.beside_text, names)):
        more["exclude_modules"] = rf".*({'|'.join(module_kinds.BESIDE_TEXT)}).*"
    return more | config
