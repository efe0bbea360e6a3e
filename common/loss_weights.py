"""Weights of rows and turns: 0 is context and does not train, 1 is as without one, another multiplies the loss.

The loss of a step is Σ weight·loss / Σ weight over the tokens of all its batches, in all processes: a row of weight 2
is that row twice. A turn's weight counts times its row's.

Shapes: B rows, T positions.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from common.errors import UserError

COLUMN = "loss_weights"  # of encoded rows and of batches
Stretch = tuple[int, int, float]  # [start, end) and its weight


def of(value: dict[str, Any]) -> float:
    """The weight of a canonical row or of a turn."""
    found = value.get("weight")
    return 1.0 if found is None else float(found)


def of_turns(row: dict[str, Any]) -> list[float]:
    """The weight of each answer of a row: of a conversation's assistant turns."""
    return [of(turn) for turn in row["messages"] if turn["role"] == "assistant"] if "messages" in row else [1.0]


def told(row: dict[str, Any]) -> bool:
    """Whether single turns of a row have another weight than 1."""
    return any(of(turn) != 1 for turn in row.get("messages", []))


def of_last(row: dict[str, Any]) -> float:
    """The weight of a row's last answer."""
    return of(row) * next(reversed(of_turns(row)), 1.0)


def context(row: dict[str, Any]) -> bool:
    """Whether nothing of a row trains, by its weights alone."""
    turns = of_turns(row)
    return of(row) == 0 or (len(turns) > 0 and not any(turns))


def of_stretches(row: dict[str, Any], stretches: list[Stretch]) -> list[Stretch]:
    """The stretches of a row that train, with the row's weight times their own."""
    factor = of(row)
    return [(start, end, weight * factor) for start, end, weight in stretches if weight]


def refuse(rows: Iterable[dict[str, Any]], who: str, remedy: str) -> None:
    """Refuse weights where a loss has no place for them.

    Args:
        who: what has none, as a message begins.

    Raises:
        UserError: the first row whose last answer has another weight than 1, and the remedy.
    """
    for row in rows:
        if (weight := of_last(row)) != 1:
            raise UserError(f"{who} takes no weights, and row {row['row']} has `weight` {weight:g}. {remedy}")


def flat(stretches: Iterable[Stretch], length: int) -> list[float]:
    """The weight of each token; 0 outside the stretches."""
    found = [0.0] * length
    for start, end, weight in stretches:
        found[start:end] = [weight] * (end - start)
    return found


class Collator:
    """Another collator's batches, with what the loss of each label is multiplied by: `loss_weights`, float32 (B, T).

    It is 0 where no label trains. Rows without weights of their own have 1.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]):
        self.collate, self.one_row = collate, getattr(collate, "one_row", False)

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        import torch

        from common.masking import IGNORE

        batch = self.collate(rows)
        trains_BT = batch["labels"] != IGNORE
        weights_BT, at = trains_BT.float(), 0
        joined = len(rows) > len(weights_BT)
        for number, row in enumerate(rows):
            line, start = (0, at) if joined else (number, 0)
            at = start + len(row["input_ids"])
            if row.get(COLUMN):
                weights_BT[line, start:at] *= torch.tensor(row[COLUMN])
        batch[COLUMN] = weights_BT
        return batch


def collator(rows: Any, collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """The collator of encoded rows: one that brings their weights where they have some."""
    return Collator(collate) if COLUMN in rows.column_names else collate


def without(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as a model takes it, and as a held-out loss is computed on it."""
    return {name: value for name, value in batch.items() if name != COLUMN}


def weighed(values: Any, batch: dict[str, Any]) -> Any:
    """Values of each label (B, T - 1), or of those of virtual tokens before them, too, times the labels' weights."""
    import torch

    if COLUMN not in batch:
        return values
    weights_BT = batch[COLUMN][:, 1:]
    return values * torch.nn.functional.pad(weights_BT, (values.shape[1] - weights_BT.shape[1], 0))


def total(batch: dict[str, Any]) -> Any:
    """(): what a sum over a batch's labels is divided by: those that train, or the sum of their weights."""
    from common.masking import IGNORE

    if COLUMN in batch:
        return batch[COLUMN][:, 1:].double().sum().float()
    return (batch["labels"][:, 1:] != IGNORE).sum()


def carry(trainer: Any) -> bool:
    """Make a transformers.Trainer hand weights to its loss where its training rows have some, with the sum of the
    whole step's as the number of its items; returns whether they have."""
    if COLUMN not in trainer.train_dataset.column_names:
        return False
    import torch

    fetch, args = trainer.get_batch_samples, trainer.args

    def items(batches: list[dict[str, Any]], device: Any) -> Any:
        if not batches:
            return None
        found = torch.stack([*map(total, batches)]).sum().to(device)
        return trainer.accelerator.gather(found).sum() if args.average_tokens_across_devices else found

    def get_batch_samples(*words: Any, **named: Any) -> tuple[list[dict[str, Any]], Any]:
        batches, _ = fetch(*words, **named)
        return batches, items(batches, args.device)

    trainer._set_signature_columns_if_needed()
    trainer._signature_columns = [*trainer._signature_columns, COLUMN]
    trainer.data_collator = Collator(trainer.data_collator)
    trainer.get_batch_samples, trainer._get_num_items_in_batch = get_batch_samples, items
    trainer.model_accepts_loss_kwargs = True  # whatever the model's own loss takes: the trainer divides nothing more
    return True


def heed(trainer: Any) -> None:
    """Make an SFTTrainer multiply the loss by the weights of its training rows, where they have some.

    Its own loss knows none (Unsloth's is fused with the head), so TRL's log-probability of each label is taken, as in
    recipes/loop_alpaca.py. Held-out losses stay those of all tokens that train, each once.

    Raises:
        UserError: another loss is asked for, or adapters on the head, which that one would pass over.
    """
    if not carry(trainer):
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
    given = without(inputs)
    if not trainer.model.training:
        return plain(model, given, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
    router = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
    outputs = model(**given, **router, use_cache=False, fused_lm_head=True)
    items = total(inputs) if num_items_in_batch is None else num_items_in_batch
    loss = -weighed(outputs.log_probs, inputs).sum() / items.clamp(min=1e-30)
    if trainer.args.average_tokens_across_devices:
        loss = loss * trainer.accelerator.num_processes  # whose gradients are averaged, not added
    if router:
        loss = loss + trainer.router_aux_loss_coef * outputs.aux_loss / trainer.current_gradient_accumulation_steps
    return (loss, outputs) if return_outputs else loss
