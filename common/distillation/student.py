"""A student's step: hidden states of both models at the trained positions, and the loss over them."""

import os
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tunebook.common import models
from tunebook.common.distillation import losses, vocabulary
from tunebook.common.distillation.losses import DistillationLoss, Online
from tunebook.common.errors import UserError
from tunebook.common.models import attention, lm_head
from tunebook.common.tokens.lengths import IGNORE_INDEX, LOSS_WEIGHTS
from tunebook.common.training import checks

# Of --set, in recipes that distil on fixed rows.
UNUSED_FIELDS = dict.fromkeys(
    ("loss_type", "label_smoothing_factor"), "a student's loss is that of its teacher and labels"
)
INPUTS = ("input_ids", "attention_mask", "position_ids")  # what a body is given of a batch


def resolve_teacher(name: str) -> str:
    """The folder or Hub name behind `--teacher`."""
    try:
        return models.resolve(name)
    except UserError as error:
        raise UserError(str(error).replace("--model", "--teacher").replace("or pocket", "or pocket_teacher")) from None


class Teacher:
    """A frozen model that runs beside the student, in its own precision."""

    def __init__(self, model: Any, name: str):
        self.model, self.name = model.requires_grad_(False).eval(), name
        lm_head.expose_hidden_states(model)
        lm_head.check(model, name)

    def hidden(self, batch: dict[str, Any]) -> torch.Tensor:
        """(B, T, D): last hidden states of a batch."""
        inputs = {name: batch[name].to(self.model.device) for name in INPUTS if name in batch}
        # MemoryRecorder must not see this: a teacher's memory is no activation of the student.
        with torch.no_grad(), _disable_current_modes():
            return self.model(**inputs, head=False)

    def targets(self, batch: dict[str, Any], keep_BT: torch.Tensor) -> Online:
        """Its predictions at the positions before those labels that `keep_BT` (B, T - 1) keeps."""
        hidden_BTD = self.hidden(batch)[:, :-1].to(keep_BT.device)
        return Online(hidden_BTD[keep_BT], lm_head.of(self.model))


def load_teacher(name: str, max_length: int, four_bit: bool, student_tokenizer: Any) -> Teacher:
    """A teacher, loaded as the student's base is, after it. What Unsloth notes of a load in the environment, and
    asks when it puts adapters on any model, stays what it has noted of the student.

    Raises:
        UserError: as models.load; or its tokenizer is not the student's.
    """
    with patch.dict(os.environ):
        model, tokenizer = models.load(resolve_teacher(name), max_length, four_bit=four_bit)
    vocabulary.require_same(student_tokenizer, tokenizer, name)
    return Teacher(model, name)


def prepare(model: Any, name: str) -> None:
    """Make a student ready for `loss`, once its adapters are on it.

    Raises:
        UserError: its head is not understood or has adapters of its own, or it learns virtual tokens.
    """
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise UserError(f"--model {name}: adapters on its head would not be seen by the loss; leave lm_head out")
    if hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning:
        raise UserError(f"--model {name}: virtual tokens cannot be distilled here; take LoRA or all weights")
    lm_head.expose_hidden_states(model)
    lm_head.check(model, name)


def isolate_documents(trainer: Any, *others: Any) -> None:
    """The trainer's model and other ones attend inside the documents of packed rows; proved on its first batch.

    Raises:
        CheckFailed: documents see each other.
    """
    student = trainer.model
    try:
        for model in (*others, student):
            attention.use_document_attention(model)
            trainer.model = model
            checks.check_document_isolation(trainer)
    finally:
        trainer.model = student


def loss(
    trainer: Any, model: Any, batch: dict[str, Any], items: Any, teacher: Any, blend: DistillationLoss
) -> torch.Tensor:
    """The loss of a batch for a transformers.Trainer's compute_loss; `divergence` and `cross_entropy` go to its log.

    In an evaluation it is the cross entropy alone, the held-out loss of all other recipes.

    Args:
        items: trained labels of the whole step, or the sum of their weights, over accumulation and processes, as the
            trainer counts them; None: of this batch.
        teacher: gives `targets(batch, keep_BT)`; not asked with alpha 0.
    """
    whole = trainer.accelerator.unwrap_model(model)  # of several processes
    _understood(trainer.args, whole)
    mode = "train" if model.training else "eval"
    blend = blend if model.training else DistillationLoss(alpha=0.0)
    labels_BT = batch["labels"][:, 1:]
    keep_BT = labels_BT != IGNORE_INDEX
    weights_N = batch[LOSS_WEIGHTS][:, 1:][keep_BT] if LOSS_WEIGHTS in batch and model.training else None
    targets = teacher.targets(batch, keep_BT) if blend.alpha else None  # first: its activations are gone then
    hidden_BTD = model(**{name: batch[name] for name in INPUTS if name in batch}, head=False)
    head = lm_head.of(whole)
    hidden_ND, labels_N = hidden_BTD[:, :-1][keep_BT], labels_BT[keep_BT]
    total, apart, cross = losses.chunked_loss(hidden_ND, head, labels_N, targets, blend, weights_N=weights_N)
    here = keep_BT.sum().clamp(min=1) if weights_N is None else weights_N.sum().clamp(min=1e-30)
    for name, value in (("divergence", apart), ("cross_entropy", cross)):
        if name == "cross_entropy" or blend.alpha:
            trainer._metrics[mode][name].append((value / here).item())
    if items is None:
        return total / here
    # The gradients of several processes are averaged, and `items` counts the labels of all.
    return total / items * (trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1)


def _understood(args: Any, model: Any) -> None:
    """Refuse what would be asked for and not be done."""
    if args.label_smoothing_factor or getattr(args, "loss_type", "nll") != "nll":
        raise UserError(
            "--set label_smoothing_factor and loss_type: a student's loss is that of its teacher and labels"
        )
    if getattr(model.config, "output_router_logits", False):
        raise UserError("the student's config asks for output_router_logits: its router's loss is not known here")
