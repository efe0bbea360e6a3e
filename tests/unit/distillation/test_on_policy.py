"""Answers of the student as a batch: what trains is each answer, wherever the padding stands."""

import torch

from tunebook.common.distillation import on_policy
from tunebook.common.tokens.lengths import IGNORE_INDEX


def test_a_batch_of_answers():
    inputs = {
        "prompt_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[10, 2], [2, 0]]),
        "completion_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    batch = on_policy.batch_of(inputs)
    assert batch["labels"].tolist() == [
        [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 10, 2],
        [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 2, IGNORE_INDEX],
    ]
    assert batch["input_ids"].tolist() == [[0, 5, 6, 10, 2], [7, 8, 9, 2, 0]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 3]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_prompts_are_what_stands_before_the_answer():
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORE_INDEX, IGNORE_INDEX, 7, 8]}]
    assert on_policy.prompts(rows)["prompt"] == [[5, 6]]


def test_the_order_of_the_prompts_is_known_by_the_number_of_an_epoch():
    """TRL's own order, which a run that is resumed past its first epoch would begin anew."""
    from trl.trainer.utils import RepeatSampler

    def made():
        return RepeatSampler(range(11), mini_repeat_count=1, batch_size=2, seed=3)

    uninterrupted, sampler = made(), made()
    orders = [list(uninterrupted) for _ in range(3)]
    assert orders[0] != orders[1]
    for epoch in (2, 0, 1):
        on_policy.draw_orders(sampler, epoch)
        assert list(sampler) == orders[epoch]
