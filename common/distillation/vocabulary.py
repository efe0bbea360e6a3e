"""Whether two tokenizers are one: only then do two models' probabilities mean the same tokens."""

import json
from typing import Any

from tunebook.common.errors import UserError

STAGES = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")  # of a tokenizers file
NO_MATTER = {"decoder", "post_processor"}  # ids are made without them here


def difference(one: Any, other: Any) -> str | None:
    """The first difference of two tokenizers, in words; None where every text gets the same ids from both.

    Tokens that only one of them has, with ids after all of the other's, are no difference: no text of data becomes
    one, and models of one family often have a few more.
    """
    mine, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (one, other))
    shared = min(max(mine), max(theirs)) + 1
    for number in range(shared):
        if mine.get(number) != theirs.get(number):
            return f"token {number} is {mine.get(number)!r} for one and {theirs.get(number)!r} for the other"
    ours, others = (json.loads(each.backend_tokenizer.to_str()) for each in (one, other))
    for stage in STAGES:
        if stage in NO_MATTER or ours[stage] == others[stage]:
            continue
        if stage != "model":
            return _within(f"the {stage}", ours[stage], others[stage])
        for name in sorted({*ours[stage], *others[stage]} - {"vocab"}):
            if ours[stage].get(name) != others[stage].get(name):
                return _within(name, ours[stage].get(name), others[stage].get(name))
    if one.eos_token_id != other.eos_token_id:
        return f"the end token is {one.eos_token!r} for one and {other.eos_token!r} for the other"
    return None


def _within(name: str, one: Any, other: Any) -> str:
    if isinstance(one, list) and isinstance(other, list):
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        parts = [repr(each[place]) if place < len(each) else "none" for each in (one, other)]
        return f"{name} number {place} is {parts[0]} for one and {parts[1]} for the other"
    return f"{name} is {str(one)[:200]} for one and {str(other)[:200]} for the other"


def require_same(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher whose tokenizer is not the student's.

    Raises:
        UserError: with the first difference.
    """
    found = difference(student, teacher)
    if found:
        raise UserError(
            f"--teacher {name} does not read the student's tokens: {found} (one: the student, the other: the teacher). "
            "Take a teacher of the student's family; TRL's GOLDTrainer (trl.experimental.gold) compares models across "
            "tokenizers"
        )
