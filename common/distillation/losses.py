"""The loss of a student: alpha·T²·divergence from its teacher + (1 - alpha)·cross entropy, where labels train.

The divergence is taken of both distributions at temperature T; T² keeps its gradient's size as long as logits
are small beside T (Hinton et al. 2015). On pocket's, of standard deviation 4, the gradient's norms at T of 1, 2, 4 and
8 were 47, 69, 15 and 3.4.
`chunked_loss` projects trained positions alone, a few at a time, so that neither model's logits ever exist as a whole;
a chunk's gradient is computed while its logits are there.

Shapes: N trained positions, D width, V vocabulary, C positions of a chunk, K outcomes.
"""

from dataclasses import dataclass

import torch

from tunebook.common.errors import UserError
from tunebook.common.models.lm_head import LMHead, compute_dtype, wide

CHUNK = 2**23  # logits of one model that exist at once: 32 MiB in float32


@dataclass(frozen=True)
class DistillationLoss:
    """alpha: weight of the teacher, beside 1 - alpha of the labels. beta: 0 is KL(teacher‖student), 1 is
    KL(student‖teacher), between them beta·KL(teacher‖m) + (1 - beta)·KL(student‖m) with m = beta·teacher +
    (1 - beta)·student (generalized Jensen-Shannon, Agarwal et al. 2024).

    Raises:
        UserError: a value means nothing.
    """

    alpha: float = 0.5
    temperature: float = 2.0
    beta: float = 0.0

    def __post_init__(self):
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: it is from 0 to 1")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature {self.temperature}: it is above 0")

    def words(self) -> dict[str, str]:
        """`divergence`: what the teacher's part is called; `loss`: the whole, as a formula."""
        name = {0.0: "KL(teacher‖student)", 1.0: "KL(student‖teacher)"}.get(
            float(self.beta), f"Jensen-Shannon divergence (beta {self.beta:g})"
        )
        parts = {f"T²·{name}": self.alpha, "cross-entropy": 1 - self.alpha}
        formula = " + ".join(f"{weight:g}·{part}".removeprefix("1·") for part, weight in parts.items() if weight)
        return {"divergence": name, "loss": f"{formula}, T = {self.temperature:g}"}


@dataclass
class Online:
    """A teacher that runs beside the student: its hidden states at the positions that train, and its head."""

    hidden_ND: torch.Tensor
    head: LMHead


@dataclass
class TopK:
    """A teacher that has run: at its temperature, log-probabilities of a few tokens, and of all the others together.

    The divergence is that of K + 1 outcomes, which is at most that of the whole distributions.
    """

    ids_NK: torch.Tensor  # int64
    log_probs_NK: torch.Tensor
    log_rest_N: torch.Tensor
    size: int  # tokens that are told apart: the student may have padded ones beyond


def divergence(student_NK: torch.Tensor, teacher_NK: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence of each row (N,), and its gradient by the logits of the student's softmax (N, K).

    Args:
        student_NK, teacher_NK: log-probabilities. They may be written over.
    """
    if beta == 0:
        probs_NK = teacher_NK.exp()
        value_N = torch.linalg.vecdot(probs_NK, teacher_NK.sub_(student_NK))
        return value_N, student_NK.exp_().sub_(probs_NK)
    if beta == 1:
        return _from(student_NK, student_NK - teacher_NK)
    log_beta = torch.tensor(beta, dtype=student_NK.dtype, device=student_NK.device).log()
    log_other = torch.tensor(1 - beta, dtype=student_NK.dtype, device=student_NK.device).log()
    mixed_NK = torch.logaddexp(teacher_NK + log_beta, student_NK + log_other)
    of_teacher_N = torch.linalg.vecdot(teacher_NK.exp(), teacher_NK - mixed_NK)
    of_student_N, gradient_NK = _from(student_NK, student_NK - mixed_NK)
    return beta * of_teacher_N + (1 - beta) * of_student_N, gradient_NK.mul_(1 - beta)


def _from(log_probs_NK: torch.Tensor, above_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ p·above and p·(above - Σ p·above)."""
    probs_NK = log_probs_NK.exp()
    value_N = torch.linalg.vecdot(probs_NK, above_NK)
    return value_N, above_NK.sub_(value_N[:, None]).mul_(probs_NK)


def chunked_loss(
    hidden_ND: torch.Tensor,
    head: LMHead,
    labels_N: torch.Tensor,
    teacher: Online | TopK | None,
    blend: DistillationLoss,
    chunk: int = CHUNK,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sums over N positions of the loss, of the divergence (without T²) and of the cross entropy; the first has a
    gradient. A loss is the first divided by the labels of the whole step, or by the sum of their weights.

    Args:
        hidden_ND: the student's last hidden states before the labels.
        head: the student's; it may be frozen.
        labels_N: int64, all of them real.
        teacher: None only with alpha 0.
        chunk: logits that may exist at once.
        weights_N: what each position counts in the sums (batching/weight_collator.py); None: 1.
    """
    assert teacher is not None or blend.alpha == 0
    return _ChunkedLoss.apply(  # pyright: ignore[reportReturnType]
        hidden_ND, head.weight_VD, head.bias_V, labels_N, head, teacher, blend, chunk, weights_N
    )


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, head, teacher, blend, chunk, weights_N):
        dtype, needs = compute_dtype(hidden_ND), ctx.needs_input_grad
        head = LMHead(weight_VD.to(dtype), bias_V, head.scale, head.cap)
        sums = torch.zeros(2, dtype=torch.float64 if hidden_ND.device.type == "cpu" else wide(dtype))
        sums = sums.to(hidden_ND.device)
        gradients = [
            torch.zeros_like(value, dtype=kind) if need else None
            for value, need, kind in zip(
                (hidden_ND, weight_VD, bias_V), needs, (hidden_ND.dtype, wide(dtype), wide(dtype)), strict=False
            )
        ]
        size = max(1, chunk // weight_VD.shape[0])
        for start in range(0, len(hidden_ND), size):
            rows = slice(start, start + size)
            logits_CV = head.logits(hidden_ND[rows])
            apart_C, cross_C, gradient_CV = _chunk(logits_CV, labels_N[rows], teacher, rows, blend, any(needs))
            values_2C = torch.stack((apart_C, cross_C))
            sums += (values_2C if weights_N is None else values_2C * weights_N[rows]).sum(1)
            if gradient_CV is not None:
                if weights_N is not None:
                    gradient_CV.mul_(weights_N[rows, None])
                gradient_CV = head.backward_(gradient_CV, logits_CV)
                del logits_CV
                _collect(gradients, gradient_CV, hidden_ND[rows].to(dtype), head.weight_VD, rows)
        ctx.gradients = gradients  # no saved tensors: backward scales them where they are, once
        ctx.dtypes = [None if value is None else value.dtype for value in (hidden_ND, weight_VD, bias_V)]
        sums = sums.to(wide(dtype))
        total = blend.alpha * blend.temperature**2 * sums[0] + (1 - blend.alpha) * sums[1]
        apart, cross = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(apart, cross)
        return total, apart, cross

    @staticmethod
    def backward(ctx, *outer):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss of a student has one backward pass")
        found = [
            None if gradient is None else gradient.mul_(outer[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *found, None, None, None, None, None, None


def _chunk(logits_CV, labels_C, teacher, rows, blend, needed):
    """Divergence and cross entropy (C,) of a chunk, and the gradient by its logits where it is needed."""
    apart_C, gradient_CV = logits_CV.new_zeros(len(logits_CV)), None
    if blend.alpha:
        apart_C, of_teacher_CV = _divergence_of_chunk(logits_CV, teacher, rows, blend)
        # By the logits: 1/T from the softmax, T² from the loss.
        gradient_CV = of_teacher_CV.mul_(blend.alpha * blend.temperature) if needed else None
    log_probs_CV = torch.log_softmax(logits_CV, -1)
    cross_C = -log_probs_CV.gather(1, labels_C[:, None]).squeeze(1)
    if gradient_CV is not None and blend.alpha == 1:
        more = logits_CV.shape[1] - gradient_CV.shape[1]
        return apart_C, cross_C, torch.nn.functional.pad(gradient_CV, (0, more)) if more else gradient_CV
    if not needed:
        return apart_C, cross_C, None
    own_CV = log_probs_CV.exp_().mul_(1 - blend.alpha)
    own_CV.scatter_add_(1, labels_C[:, None], own_CV.new_full((len(labels_C), 1), blend.alpha - 1))
    if gradient_CV is not None:
        own_CV[:, : gradient_CV.shape[1]].add_(gradient_CV)
    return apart_C, cross_C, own_CV


def _divergence_of_chunk(logits_CV, teacher, rows, blend):
    """The divergence (C,), and its gradient by the scaled logits of the shared vocabulary."""
    if isinstance(teacher, Online):
        other_CV = teacher.head.logits(teacher.hidden_ND[rows]).to(logits_CV.dtype)
        shared = min(logits_CV.shape[1], other_CV.shape[1])
        student, other = (torch.log_softmax(part[:, :shared] / blend.temperature, -1) for part in (logits_CV, other_CV))
        del other_CV
        return divergence(student, other, blend.beta)
    ids_CK = teacher.ids_NK[rows]
    scaled_CV = logits_CV[:, : teacher.size] / blend.temperature
    log_top_CK = scaled_CV.gather(1, ids_CK) - scaled_CV.logsumexp(-1, keepdim=True)
    probs_CV = scaled_CV.softmax(-1)
    probs_CV.scatter_(1, ids_CK, 0.0)
    rest_C1 = probs_CV.sum(-1, keepdim=True).clamp_min_(torch.finfo(probs_CV.dtype).tiny)
    outcomes = torch.cat((log_top_CK, rest_C1.log()), 1)
    stored = torch.cat((teacher.log_probs_NK[rows], teacher.log_rest_N[rows, None]), 1).to(outcomes.dtype)
    # Half precision rounds: the K + 1 are made to sum to 1 again.
    value_C, gradient_CK = divergence(outcomes, torch.log_softmax(stored, -1), blend.beta)
    probs_CV.mul_(gradient_CK[:, -1:] / rest_C1)
    return value_C, probs_CV.scatter_(1, ids_CK, gradient_CK[:, :-1])


def _collect(gradients, gradient_CV, hidden_CD, weight_VD, rows):
    """Add a chunk to the gradients of hidden states, weight and bias, as far as they are wanted."""
    of_hidden, of_weight, of_bias = gradients
    if of_bias is not None:
        of_bias += gradient_CV.sum(0)
    gradient_CV = gradient_CV.to(hidden_CD.dtype)
    if of_hidden is not None:
        of_hidden[rows] = gradient_CV @ weight_VD
    if of_weight is not None:
        if of_weight.dtype == gradient_CV.dtype:
            of_weight.addmm_(gradient_CV.t(), hidden_CD)
        else:
            of_weight += gradient_CV.t() @ hidden_CD
