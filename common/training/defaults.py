"""Defaults of a recipe that depend on the size of the model."""

from typing import Any

from tunebook.common.models import parameters
from tunebook.common.tokens import sandbox

SMALL = 50_000_000  # parameters; below, a model needs a far larger learning rate and more epochs, as pocket does


def choose(
    args: Any,
    model: Any,
    tokenizer: Any,
    template: Any,
    epochs: tuple[float, float],
    rate: tuple[float, float] | None = None,
) -> None:
    """Fill `learning_rate` and `num_train_epochs` where they are None, and note where a chat-tuned model is trained on
    another prompt than its own.

    The rates that recipes give for larger models are the usual ones: 2e-4 for LoRA (QLoRA, Dettmers et al. 2023, table
    9, 7B and 13B; TRL's own scripts/sft.py) and 2e-5 where all weights train (Stanford Alpaca, three epochs; TRL's
    scripts/sft.py); LoRA's best rate is about ten times that of full fine-tuning whatever the size (LoRA Without
    Regret, Schulman et al. 2025). For preferences 5e-6 and one epoch (TRL's scripts/dpo.py, with LoRA).

    Args:
        epochs, rate: for a model below SMALL, and from there up.
    """
    count = parameters(model)[1]
    large, chosen = count >= SMALL, []
    for name, pair in (("learning_rate", rate), ("num_train_epochs", epochs)):
        if pair and getattr(args, name) is None:
            setattr(args, name, pair[large])
            chosen.append(f"--{name} {pair[large]:g}")
    if chosen:
        size = f"a model of {count / 1e6:,.0f} M parameters" if large else "a model as small as pocket"
        print(f"chosen for {size}: {' '.join(chosen)}")
    end = end_of_turn(model, tokenizer)
    if large and end and getattr(template, "jinja", None) != tokenizer.chat_template:
        print(
            f"note: {args.model} is tuned to chat (its chat template ends an answer with {end}), and this recipe "
            f"trains another prompt, {template.name}: ask the result in that one, or take recipes/chat_sharegpt.py, "
            "which keeps the model's own"
        )


def end_of_turn(model: Any, tokenizer: Any) -> str | None:
    """The token that ends an answer in the tokenizer's chat template, where the model stops at it; None for a base
    model, whose template was never trained."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "answer"}]
    try:
        text = sandbox.apply_chat_template(tokenizer, turns, tokenize=False)
    except Exception:  # a template may refuse any conversation, and this is only a note
        return None
    ids = tokenizer(text.rpartition("answer")[2].lstrip(), add_special_tokens=False).input_ids
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])}
    return tokenizer.convert_ids_to_tokens(ids[0]) if ids and ids[0] in stops else None
