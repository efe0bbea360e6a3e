"""The loss of a student as its formula is written, over all logits; autograd makes the gradient."""

import torch

from tunebook.common.distillation.losses import DistillationLoss
from tunebook.common.tokens.lengths import IGNORE_INDEX


def reference_loss(student_BTV, teacher_BTV, labels_BT, blend: DistillationLoss, items) -> torch.Tensor:
    """The formula as it is written, over all logits; autograd makes the gradient.

    Args:
        student_BTV, teacher_BTV: logits. Where one vocabulary is longer, the divergence is of the part that both have.
        labels_BT: IGNORE_INDEX where nothing trains; the logits before a label are compared.
        items: labels of the whole step.
    """
    student_BTV, teacher_BTV, labels_BT = student_BTV[:, :-1], teacher_BTV[:, :-1], labels_BT[:, 1:]
    shared, keep, beta = min(student_BTV.shape[-1], teacher_BTV.shape[-1]), labels_BT != IGNORE_INDEX, blend.beta
    log_s = torch.log_softmax(student_BTV[..., :shared] / blend.temperature, -1)
    log_t = torch.log_softmax(teacher_BTV[..., :shared] / blend.temperature, -1)
    if beta == 0:
        apart_BT = (log_t.exp() * (log_t - log_s)).sum(-1)
    elif beta == 1:
        apart_BT = (log_s.exp() * (log_s - log_t)).sum(-1)
    else:
        log_m = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log()
        apart_BT = beta * (log_t.exp() * (log_t - log_m)).sum(-1) + (1 - beta) * (log_s.exp() * (log_s - log_m)).sum(-1)
    cross = torch.nn.functional.cross_entropy(student_BTV[keep], labels_BT[keep], reduction="sum")
    return (blend.alpha * blend.temperature**2 * apart_BT[keep].sum() + (1 - blend.alpha) * cross) / items
