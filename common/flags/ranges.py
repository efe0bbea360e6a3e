"""The numbers that a recipe's flags take. A value outside them would end in a traceback of torch after minutes."""

import math
from typing import Any

from tunebook.common.errors import UserError

AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "max_completion_length",
    "lora_r",
    "lora_alpha",
    "bottleneck",
    "num_virtual_tokens",
    "top_k",
)
ABOVE_ZERO = ("learning_rate", "num_train_epochs")
NOT_NEGATIVE = ("seed", "debug_batches", "beta")


def check(flags: dict[str, Any]) -> None:
    """Raise UserError for all flags whose number is out of range; None stands for a value that is chosen later."""
    problems = []
    for name, value in flags.items():
        if value is None:
            continue
        if name in AT_LEAST_ONE and value < 1:
            problems.append(f"--{name} {value}: it is at least 1")
        elif name in ABOVE_ZERO and not 0 < value < math.inf:
            problems.append(f"--{name} {value}: it is a number above 0")
        elif name in NOT_NEGATIVE and not 0 <= value < 2**32:
            problems.append(f"--{name} {value}: it is from 0 to {2**32 - 1}")
        elif name == "eval_share" and not 0 < value <= 1:
            problems.append(f"--eval_share {value}: it is above 0, and 1 at most")
        elif name == "max_steps" and value < 1 and value != -1:
            problems.append(f"--max_steps {value}: it is at least 1, or -1 for what --num_train_epochs takes")
    if problems:
        raise UserError("\n  ".join(problems))
