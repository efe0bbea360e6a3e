"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685), by Unsloth and PEFT: on what was asked for, or refused."""

import warnings
from typing import Any

from common import mixtures, models, parameter_table
from common.cli import UserError


def add(model: Any, **config: Any) -> Any:
    """New LoRA adapters on a loaded model, which alone train.

    `all-linear` takes in the experts of a mixture, also where transformers keeps those of a layer in one tensor.

    Args:
        config: what unsloth.FastLanguageModel.get_peft_model takes: r, lora_alpha, target_modules ...

    Raises:
        UserError: a target matches nothing in the model, or PEFT does not take the values.
    """
    from unsloth import FastLanguageModel

    experts = sorted(
        {".".join(name.split(".")[-2:]) for name, p in model.named_parameters() if mixtures.fused(name, p)}
    )
    if experts and config.get("target_modules") == "all-linear":
        config = {"target_parameters": experts, **config}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match")  # they hold for fused experts
            found = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=models.checkpointing(), **config)
    except ValueError as error:
        raise UserError(f"LoRA on {type(model).__name__}: {error}") from error
    if lacking := parameter_table.unmatched(found):
        raise UserError(f"LoRA: {'; '.join(lacking)}")
    return found
