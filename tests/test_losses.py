"""The loss that runs against the formula in float64, for any mask, temperature, weight, divergence and vocabulary."""

import pytest
import torch
from reference_loss import reference_loss

from tunebook.common.distillation.losses import DistillationLoss, Online, TopK, chunked_loss
from tunebook.common.errors import UserError
from tunebook.common.models.lm_head import LMHead
from tunebook.common.tokens.lengths import IGNORE_INDEX

BLENDS = [
    DistillationLoss(alpha, temperature, beta)
    for alpha, temperature, beta in [
        (1, 1, 0), (0.5, 2, 0), (0.9, 8, 0), (0, 2, 0), (1, 2, 1), (0.3, 4, 1), (1, 1, 0.5), (0.5, 2, 0.1),
        (0.7, 0.5, 0.9),
    ]
]  # fmt: skip
MASKS = {"some": 0.3, "all": 1.1, "none": -1.0}


def case(seed, share, student_size=97, teacher_size=97, dtype=torch.float64, bias=False):
    """Hidden states (3, 11, ·), heads and labels; both models' widths differ."""
    torch.manual_seed(seed)
    hidden = torch.randn(3, 11, 8, dtype=dtype).requires_grad_()
    weight = (torch.randn(student_size, 8, dtype=dtype) * 0.7).requires_grad_()
    offset = torch.randn(student_size, dtype=dtype).requires_grad_() if bias else None
    other = torch.randn(3, 11, 12, dtype=dtype)
    other_head = LMHead(torch.randn(teacher_size, 12, dtype=dtype) * 0.7)
    labels = torch.randint(0, min(student_size, teacher_size), (3, 11))
    labels[torch.rand(3, 11) >= share] = IGNORE_INDEX
    return hidden, LMHead(weight, offset), other, other_head, labels


def run(hidden, head, other, other_head, labels, blend, items=7.0, chunk=300):
    """The loss that runs, of whole batches."""
    keep = labels[:, 1:] != IGNORE_INDEX
    teacher = Online(other[:, :-1][keep], other_head)
    return chunked_loss(hidden[:, :-1][keep], head, labels[:, 1:][keep], teacher, blend, chunk)[0] / items


def gradients(loss, hidden, head):
    wanted = [value for value in (hidden, head.weight_VD, head.bias_V) if value is not None and value.requires_grad]
    return torch.autograd.grad(loss, wanted, allow_unused=True)


def close(one, two, tolerance):
    """As far apart as `tolerance` times the largest value, at most."""
    scale = max(two.abs().max().item(), 1e-3)
    assert (one.double() - two.double()).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_value_and_gradient_are_those_of_float64(blend, mask):
    for seed, bias in ((0, False), (1, True)):
        hidden, head, other, other_head, labels = case(seed, MASKS[mask], bias=bias)
        loss = reference_loss(head.logits(hidden), other_head.logits(other), labels, blend, 7.0)
        expected = gradients(loss, hidden, head)
        single = [None if v is None else v.detach().float().requires_grad_() for v in (hidden, head.weight_VD)]
        offset = None if head.bias_V is None else head.bias_V.detach().float().requires_grad_()
        mine = LMHead(single[1], offset)
        found = run(single[0], mine, other.float(), LMHead(other_head.weight_VD.float()), labels, blend)
        close(found, loss, 1e-5)
        for one, two in zip(gradients(found, single[0], mine), expected, strict=True):
            close(one, torch.zeros_like(one) if two is None else two, 1e-5)


@pytest.mark.parametrize("sizes", [(97, 120), (120, 97)])
@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_padded_vocabularies_of_two_sizes(blend, sizes):
    hidden, head, other, other_head, labels = case(2, 0.5, *sizes)
    expected = reference_loss(head.logits(hidden), other_head.logits(other), labels, blend, 3.0)
    found = run(hidden, head, other, other_head, labels, blend, 3.0)
    close(found, expected, 1e-12)
    for one, two in zip(gradients(found, hidden, head), gradients(expected, hidden, head), strict=True):
        close(one, two, 1e-10)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_scale_and_cap_of_logits(blend):
    hidden, head, other, other_head, labels = case(3, 0.5)
    head.scale, head.cap, other_head.scale, other_head.cap = 0.25, 3.0, 2.0, 5.0
    expected = reference_loss(head.logits(hidden), other_head.logits(other), labels, blend, 3.0)
    found = run(hidden, head, other, other_head, labels, blend, 3.0)
    close(found, expected, 1e-12)
    for one, two in zip(gradients(found, hidden, head), gradients(expected, hidden, head), strict=True):
        close(one, two, 1e-10)


def test_a_frozen_head_gets_no_gradient():
    hidden, head, other, other_head, labels = case(4, 0.5)
    whole = gradients(run(hidden, head, other, other_head, labels, DistillationLoss()), hidden, head)[0]
    head.weight_VD.requires_grad_(False)
    run(hidden, head, other, other_head, labels, DistillationLoss()).backward()
    assert head.weight_VD.grad is None and torch.equal(hidden.grad, whole)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_teacher_that_is_the_student_gives_nothing(beta):
    hidden, head, _, _, labels = case(5, 0.5, dtype=torch.float32)
    keep = labels[:, 1:] != IGNORE_INDEX
    teacher = Online(hidden.detach()[:, :-1][keep], LMHead(head.weight_VD.detach()))
    total, apart, _ = chunked_loss(
        hidden[:, :-1][keep], head, labels[:, 1:][keep], teacher, DistillationLoss(1.0, 2.0, beta)
    )
    (gradient,) = torch.autograd.grad(total, [hidden])
    assert abs(apart.item()) <= 1e-6 and gradient.abs().max().item() <= 1e-6
    if beta == 0:
        assert apart.item() == 0.0 and gradient.abs().max().item() == 0.0


def test_alpha_0_is_the_cross_entropy_of_transformers():
    hidden, head, other, other_head, labels = case(6, 0.5)
    from transformers.loss.loss_utils import ForCausalLMLoss

    expected = ForCausalLMLoss(head.logits(hidden), labels, 97)
    found = run(
        hidden, head, other, other_head, labels, DistillationLoss(alpha=0), items=(labels[:, 1:] != IGNORE_INDEX).sum()
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_squared_temperature_keeps_the_gradients_size(beta):
    """For logits of standard deviation 0.4 and a vocabulary of 1,000: within 20 % from T = 1 to 8."""
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 40, 1000) * 0.4, torch.randn(1, 40, 1000) * 0.4
    labels, sizes = torch.zeros(1, 40, dtype=torch.long), []
    for temperature in (1, 2, 4, 8):
        logits = student.clone().requires_grad_()
        reference_loss(logits, teacher, labels, DistillationLoss(1, temperature, beta), 39).backward()
        sizes.append(logits.grad.norm().item())
    assert max(sizes) <= 1.2 * min(sizes), sizes


@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.parametrize("kept", [1, 5, 96])
def test_top_k_is_the_divergence_of_k_tokens_and_the_rest(kept, beta):
    hidden, head, other, other_head, labels = case(7, 0.6)
    blend, keep = DistillationLoss(0.6, 2.0, beta), labels[:, 1:] != IGNORE_INDEX
    log_t = torch.log_softmax(other_head.logits(other[:, :-1][keep]) / 2, -1)
    top = log_t.topk(kept)
    others = torch.ones_like(log_t).scatter_(1, top.indices, 0.0)
    rest = (log_t.exp() * others).sum(-1).log()
    teacher = TopK(top.indices, top.values, rest, 97)
    found = chunked_loss(hidden[:, :-1][keep], head, labels[:, 1:][keep], teacher, blend, 300)[0]

    logits = head.logits(hidden[:, :-1][keep])
    log_s = torch.log_softmax(logits / 2, -1)
    s = torch.cat((log_s.gather(1, top.indices), (log_s.exp() * others).sum(-1, keepdim=True).log()), 1)
    t = torch.cat((top.values, rest[:, None]), 1)
    m = (beta * t.exp() + (1 - beta) * s.exp()).log()
    of = {0: t.exp() * (t - s), 1: s.exp() * (s - t)}
    apart = of.get(beta, beta * t.exp() * (t - m) + (1 - beta) * s.exp() * (s - m)).sum()
    cross = torch.nn.functional.cross_entropy(logits, labels[:, 1:][keep], reduction="sum")
    expected = 0.6 * 4 * apart + 0.4 * cross
    close(found, expected, 1e-12)
    for one, two in zip(gradients(found, hidden, head), gradients(expected, hidden, head), strict=True):
        close(one, two, 1e-10)


def test_no_logits_of_all_positions_exist():
    """The largest tensor made anywhere is a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self.found = max(self.found, value.numel())
            return result

    hidden, head, other, other_head, labels = case(8, 0.9, 1000, 1000)
    with Largest() as largest:
        run(hidden, head, other, other_head, labels, DistillationLoss(), chunk=4000).backward()
    assert largest.found <= 1000 * 12  # the teacher's head; all positions would be 27 x 1,000


@pytest.mark.parametrize("values", [{"alpha": 1.5}, {"beta": -0.1}, {"temperature": 0}])
def test_values_that_mean_nothing(values):
    with pytest.raises(UserError, match=f"--{next(iter(values))}"):
        DistillationLoss(**values)
