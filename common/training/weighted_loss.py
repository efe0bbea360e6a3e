"""Trainers that weight their loss by row (batching/weight_collator.py)."""

import functools
from collections.abc import Callable
from typing import Any

from tunebook.common.batching.weight_collator import Collator, apply_weights, total_weight, without_weights
from tunebook.common.errors import UserError
from tunebook.common.tokens.lengths import LOSS_WEIGHTS


def pass_weights(trainer: Any) -> bool:
    """Where training rows have weights, pass them to a Trainer's loss, with the sum of a step's as its number of items.
    Returns whether they have."""
    if LOSS_WEIGHTS not in trainer.train_dataset.column_names:
        return False
    import torch

    fetch, args = trainer.get_batch_samples, trainer.args

    def items(batches: list[dict[str, Any]], device: Any) -> Any:
        if not batches:
            return None
        total = torch.stack([*map(total_weight, batches)]).sum().to(device)
        return trainer.accelerator.gather(total).sum() if args.average_tokens_across_devices else total

    def get_batch_samples(*words: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        batches, _ = fetch(*words, **kwargs)
        return batches, items(batches, args.device)

    trainer._set_signature_columns_if_needed()
    trainer._signature_columns = [*trainer._signature_columns, LOSS_WEIGHTS]
    trainer.data_collator = Collator(trainer.data_collator)
    trainer.get_batch_samples, trainer._get_num_items_in_batch = get_batch_samples, items
    trainer.model_accepts_loss_kwargs = True  # whatever the model's own loss takes: the trainer divides nothing more
    return True


def weigh_loss(trainer: Any) -> None:
    """Make an SFTTrainer multiply the loss by the weights of its training rows, where they have some.

    Its own loss knows none (Unsloth's is fused with the head), so TRL's log-probability of each label is taken, as in
    recipes/loop_alpaca.py. Held-out losses stay those of all tokens that train, each once.

    Raises:
        UserError: another loss is asked for, or adapters on the head, which that one would pass over.
    """
    if not pass_weights(trainer):
        return
    if trainer.args.label_smoothing_factor or trainer.args.loss_type != "nll":
        raise UserError(
            "--set label_smoothing_factor and loss_type: rows with a `weight` train by plain cross entropy. Leave them "
            "out, or the weights"
        )
    if hasattr(trainer.model.get_output_embeddings(), "base_layer"):
        raise UserError("rows with a `weight` do not go with adapters on the head: leave lm_head out of target_modules")
    trainer.compute_loss = functools.partial(_loss, trainer, trainer.compute_loss)
    if trainer.is_world_process_zero():
        print("weights: each token's loss counts by its weight (Σ weight·loss / Σ weight), by TRL's log-probabilities")


def _loss(
    trainer: Any, plain: Callable[..., Any], model: Any, inputs: dict[str, Any], return_outputs: bool = False,
    num_items_in_batch: Any = None,
) -> Any:  # fmt: skip
    """compute_loss of a trainer; `plain` is its own, for evaluations."""
    given = without_weights(inputs)
    if not trainer.model.training:
        return plain(model, given, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
    router = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
    outputs = model(**given, **router, use_cache=False, fused_lm_head=True)
    items = total_weight(inputs) if num_items_in_batch is None else num_items_in_batch
    loss = -apply_weights(outputs.log_probs, inputs).sum() / items.clamp(min=1e-30)
    if trainer.args.average_tokens_across_devices:
        loss = loss * trainer.accelerator.num_processes  # whose gradients are averaged, not added
    if router:
        loss = loss + trainer.router_aux_loss_coef * outputs.aux_loss / trainer.current_gradient_accumulation_steps
    return (loss, outputs) if return_outputs else loss
