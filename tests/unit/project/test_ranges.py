"""Numbers of flags that no recipe can train with are refused before anything is loaded."""

import dataclasses
import importlib

import pytest

from tunebook.common import catalog
from tunebook.common.errors import UserError
from tunebook.common.flags import ranges

ELSEWHERE = {"alpha", "temperature"}  # distillation.losses.DistillationLoss, made before the models are loaded
OF_POCKET = {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size",
             "long_length"}  # fmt: skip


def numbers(module):
    fields = dataclasses.fields(importlib.import_module(f"tunebook.recipes.{module}").Args)
    return {
        field.name
        for field in fields
        if {"int", "float"} & set(str(getattr(field.type, "__name__", field.type)).split(" | "))
    }


def test_every_number_of_every_recipe_has_its_range():
    known = {*ranges.AT_LEAST_ONE, *ranges.ABOVE_ZERO, *ranges.NOT_NEGATIVE, "max_steps", "eval_share"}
    found = set().union(*(numbers(name) for name in catalog.recipes()))
    assert found - known - ELSEWHERE - OF_POCKET == set()
    assert known <= found


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("lora_r", (0, -3), (1, 64)),
        ("per_device_train_batch_size", (0,), (1,)),
        ("learning_rate", (0.0, -1.0, float("nan"), float("inf")), (1e-6, None)),
        ("num_train_epochs", (0.0, -1.0), (0.5, None)),
        ("max_steps", (0, -2), (-1, 1)),
        ("seed", (-1,), (0,)),
        ("eval_share", (0, -0.1, 1.1, float("nan")), (0.01, 1)),
    ],
)
def test_ranges(name, bad, good):
    for value in good:
        ranges.check({name: value})
    for value in bad:
        with pytest.raises(UserError, match=f"--{name} {value}: "):
            ranges.check({name: value, "model": "pocket"})


def test_all_of_them_are_named_at_once():
    with pytest.raises(UserError, match=r"--lora_r 0: .*\n  --seed -1: "):
        ranges.check({"lora_r": 0, "seed": -1})
