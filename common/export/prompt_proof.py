"""Points 1 and 2: prompts, turns and ends are those of training, token for token."""

from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export.checks import Check
from tunebook.common.export.conversations import HeldOut, three_turns
from tunebook.common.tokens.templates import AnyTemplate

SHOWN = 60  # characters of two prompts that a message shows


def check(served: Any, found: list[HeldOut], tokenizer: Any, template: AnyTemplate, ends: list[int]) -> list[Check]:
    """
    Args:
        served: see served.py.
        tokenizer, template, ends: of the training.
    """
    return [
        _prompts(served, found, tokenizer),
        _answers(served, found, tokenizer),
        _turns(served, found, tokenizer, template),
        _ends(served, tokenizer, ends),
    ]


def _prompts(served: Any, found: list[HeldOut], tokenizer: Any) -> Check:
    equal, failure = 0, ""
    for place, one in enumerate(found, 1):
        trained = one.ids[: one.start]
        try:
            ids = served.prompt(one.messages, one.tools, one.options)
        except Exception as error:  # a template may raise anything
            failure = failure or f"{served.name} cannot render conversation {place}: {error}"
            continue
        equal += ids == trained
        if ids != trained:
            failure = failure or f"prompt {place} is another than in training: {_difference(trained, ids, tokenizer)}"
    return Check(1, "prompt ids equal training's", f"{equal} of {len(found)}", "all", failure)


def _difference(trained: list[int], ids: list[int], tokenizer: Any) -> str:
    at = next((n for n, (a, b) in enumerate(zip(trained, ids, strict=False)) if a != b), min(len(trained), len(ids)))
    texts = [tokenizer.decode(one[max(0, at - 4) : at + 12]) for one in (trained, ids)]
    return f"from token {at + 1} on, {texts[0][:SHOWN]!r} in training, {texts[1][:SHOWN]!r} here"


def _answers(served: Any, found: list[HeldOut], tokenizer: Any) -> Check:
    plain = [one for one in found if one.said is not None]
    equal, failure = 0, ""
    for one in plain:
        text = served.text(one.ids[one.start :])
        # What a template strips or a normalizer changes, training has changed, too.
        trained = tokenizer.decode(one.ids[one.start :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        same = text.strip() in (str(one.said).strip(), trained.strip())
        equal += same
        if not same:
            failure = failure or f"the answer {str(one.said)[:SHOWN]!r} is read back as {text[:SHOWN]!r}"
    return Check(2, "answers are read back", f"{equal} of {len(plain)}", "all", failure)


def _turns(served: Any, found: list[HeldOut], tokenizer: Any, template: AnyTemplate) -> Check:
    name, bound = "three turns equal training's", "all"
    try:
        sent, prompts, answers = three_turns(found, tokenizer, template)
    except UserError as error:
        return Check(2, name, f"none: {error}", bound)
    if not sent:
        return Check(2, name, "none: no plain conversation among them", bound)
    try:
        ids = [served.prompt(messages, None, {}) for messages in sent]
    except Exception as error:  # a template may raise anything
        return Check(2, name, "refused", bound, f"{served.name} cannot render a chat of three turns: {error}")
    extends = _extends(ids, answers)
    equal = sum(a == b for a, b in zip(ids, prompts, strict=True))
    value = f"{equal} of 3; each {'extends' if extends else 'rewrites'} the last"
    for place, (one, trained) in enumerate(zip(ids, prompts, strict=True), 1):
        if one != trained:
            return Check(2, name, value, bound, f"turn {place} of a chat: {_difference(trained, one, tokenizer)}")
    if extends != _extends(prompts, answers):
        return Check(2, name, value, bound, "the next turn does not extend the last one, as it does in training")
    return Check(2, name, value, bound)


def _extends(prompts: list[list[int]], answers: list[list[int]]) -> bool:
    return all(
        later[: len(before) + len(answer)] == before + answer
        for before, answer, later in zip(prompts, answers, prompts[1:], strict=False)
    )


def _ends(served: Any, tokenizer: Any, ends: list[int]) -> Check:
    said = ", ".join(_token(tokenizer, one) for one in sorted(served.ends)) or "none"
    failure = ""
    if ends[0] not in served.ends:
        wanted = _token(tokenizer, ends[0])
        failure = (
            f"answers end with {wanted} in training, and {served.name} does not stop there: its end tokens are {said}"
        )
    elif served.pad is not None and served.pad in ends:
        failure = f"the padding token of {served.name} is {_token(tokenizer, served.pad)}, an end token"
    elif served.pad is not None and _token(tokenizer, served.pad).startswith("id "):
        failure = f"{served.name} pads with {_token(tokenizer, served.pad)}, which is no token"
    return Check(2, "end tokens", said, f"with {_token(tokenizer, ends[0])}, none of them pads", failure)


def _token(tokenizer: Any, number: Any) -> str:
    """A token's text; of what is none, its number."""
    known = isinstance(number, int) and 0 <= number < len(tokenizer)
    return (tokenizer.convert_ids_to_tokens(number) if known else None) or f"id {number}"
