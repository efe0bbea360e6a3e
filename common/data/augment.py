"""Data augmentation: paraphrases, folded or dropped inputs, more answers; originals stay, marked.

Augment the training split, after splitting: a new row is a near-duplicate of its original.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunebook.common.data import categories
from tunebook.common.data.paraphrase import wordings
from tunebook.common.data.quality import NULLS
from tunebook.common.data.rows import ANSWER, Row, instruction, kind, question, with_instruction
from tunebook.common.data.texts import normalized
from tunebook.common.errors import UserError, nearest

Made = tuple[Row | None, str]  # the new row, or None and why there is none

POINTS_AT_INPUT = re.compile(
    r"\b(?:following|given|this|these|that|those|below|above|provided|text|passage|paragraph|sentences?|input|it)\b",
    re.I,
)
WORK_ON_INPUT = ("rewrite", "classify", "summarize", "calculate")
ALONE_FROM = 6  # words of an instruction that may be understood without its input
WORD = re.compile(r"\w+")
LITTLE = frozenset(("a", "an", "the", "of", "and", "to", "in", "is"))
REWRITE = "Say the following instruction in other words. Keep its meaning. Write only the new instruction.\n\n{text}"
TRANSLATE = "Translate the following text into {language}. Write only the translation.\n\n{text}"
LEAST, MOST = 0.3, 3.0  # length of a new question as a share of the old one; beyond, the model did something else


class TextModel(Protocol):
    """Anything that answers prompts."""

    def answers(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str | None]:
        """One answer a prompt, in order; None where the model gave none. A temperature of 0 is the likeliest answer."""
        ...


@dataclass
class AugmentStats:
    """What was made of what, by method, and for how many rows a method made nothing, by reason."""

    rows: int = 0
    made: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "made": dict(self.made), "skipped": {m: dict(c) for m, c in self.skipped.items()}}

    def summary(self) -> str:
        made = ", ".join(f"{count:,} by {method}" for method, count in self.made.items() if count) or "none"
        left = "; ".join(
            f"{method} left out {', '.join(f'{count:,} ({why})' for why, count in reasons.most_common())}"
            for method, reasons in self.skipped.items()
            if reasons
        )
        return f"{self.rows:,} originals kept; new rows: {made}" + (f"; {left}" if left else "")


def augment(
    rows: Iterable[Row],
    methods: Sequence[str],
    seed: int = 0,
    share: float = 1.0,
    copies: int = 1,
    model: TextModel | None = None,
    language: str = "German",
    temperature: float = 0.8,
) -> tuple[list[Row], AugmentStats]:
    """The rows and, after each, the new ones made from it.

    Every row gets `augmented` (None for an original, else the method), `from` (the number of its original) and `row`
    counted anew. The same rows, seed and model answers give the same result, whatever other methods are requested.

    Args:
        methods: names from METHODS; `paraphrase`, `responses` and `back_translation` need `model`.
        share: fraction of the rows, chosen by the seed, that each method takes.
        copies: new rows to make of a row; `fold_input` and `drop_input` make one. language: for `back_translation`.

    Raises:
        UserError: an unknown method, one that needs a model that is not given, or an invalid share.
    """
    check(methods, share, copies, model)
    originals = [{**row, "row": row.get("row", place)} for place, row in enumerate(rows, 1)]
    stats = AugmentStats(len(originals))
    new: dict[int, list[Row]] = {}
    for method in dict.fromkeys(methods):
        stats.made[method], stats.skipped[method] = 0, Counter()
        chosen = [n for n, row in enumerate(originals) if _chance(seed, method, row).random() < share]
        again = copies if method in REPEATED else 1
        for n, (row, why) in METHODS[method](originals, chosen, again, seed, model, (language, temperature)):
            if row is None:
                stats.skipped[method][why] += 1
            else:
                stats.made[method] += 1
                new.setdefault(n, []).append({**row, "augmented": method, "from": originals[n]["row"]})
    out = []
    for n, row in enumerate(originals):
        out += [{**row, "augmented": None, "from": row["row"]}, *new.get(n, ())]
    return [{**row, "row": place} for place, row in enumerate(out, 1)], stats


def check(methods: Sequence[str], share: float, copies: int, model: Any) -> None:
    """Raises UserError as `augment`; `model` is anything that stands for one, or None."""
    for method in methods:
        if method not in METHODS:
            known = f"there is {', '.join(METHODS)}{nearest(method, METHODS)}"
            raise UserError(f"--methods {method}: no such method; {known}")
        if method in NEEDS_MODEL and not model:
            raise UserError(f"--methods {method} needs a model: --model http://host:port/v1, a folder or pocket")
    if not 0 < share <= 1 or copies < 1:
        raise UserError(f"--share {share} --copies {copies}: expected a share over 0 to 1, and 1 copy or more")


def _chance(seed: int, method: str, row: Row) -> random.Random:
    return random.Random(f"{seed} {method} {row['row']}")


def _templates(rows: list[Row], chosen: list[int], copies: int, seed: int, *_: Any) -> Iterator[tuple[int, Made]]:
    for n in chosen:
        texts = wordings(instruction(rows[n]))
        if not texts:
            yield n, (None, "the instruction is none of the wordings that are known (English)")
            continue
        chance = _chance(seed, "templates wording", rows[n])
        for text in chance.sample(texts, min(copies, len(texts))):
            yield n, (with_instruction(rows[n], text), "")


def _fold_input(rows: list[Row], chosen: list[int], *_: Any) -> Iterator[tuple[int, Made]]:
    for n in chosen:
        row = rows[n]
        if not row.get("input", "").strip() or kind(row) != "instruction":
            yield n, (None, "no input")
        else:
            yield n, ({**row, "instruction": f"{row['instruction'].rstrip()}\n\n{row['input']}", "input": ""}, "")


def _drop_input(rows: list[Row], chosen: list[int], *_: Any) -> Iterator[tuple[int, Made]]:
    for n in chosen:
        row = rows[n]
        why = _needs_input(row)
        yield n, (None, why) if why else ({**row, "input": ""}, "")


def _needs_input(row: Row) -> str:
    """Why the answer may be wrong without the input, or ''. A rule of thumb that would rather make too few rows."""
    if kind(row) != "instruction" or not row.get("input", "").strip():
        return "no input"
    said = set(WORD.findall(row["input"].casefold())) - set(WORD.findall(row["instruction"].casefold())) - LITTLE
    if not said or row["input"].strip().casefold() in NULLS:
        return ""
    if POINTS_AT_INPUT.search(row["instruction"]) or categories.of(row["instruction"]) in WORK_ON_INPUT:
        return "the instruction works on the input"
    if len(row["instruction"].split()) < ALONE_FROM:
        return "the instruction is too short to stand alone"
    output = row["output"].casefold()
    if any(word.isdigit() or (len(word) > 2 and word in output) for word in said):
        return "the answer uses the input"
    return ""


def _asked(
    rows: list[Row], chosen: list[int], copies: int, model: TextModel | None, prompt: str, options: tuple, seed: int
) -> Iterator[tuple[int, str | None]]:
    """(row, answer) of the model to the prompt filled with each row's question, `copies` times."""
    places = [n for n in chosen for _ in range(copies)]
    prompts = [prompt.format(text=instruction(rows[n])) for n in places]
    assert model is not None  # check has seen to it
    yield from zip(places, model.answers(prompts, options[1], seed), strict=True)


def _renewed(rows: list[Row], answered: Iterable[tuple[int, str | None]]) -> Iterator[tuple[int, Made]]:
    """Rows with the answered question, where it is one that says the same in other words."""
    seen: set[tuple[int, str]] = set()
    for n, text in answered:
        old = instruction(rows[n])
        if text is None or not text.strip():
            yield n, (None, "no answer")
        elif normalized(text) == normalized(old) or (n, normalized(text)) in seen:
            yield n, (None, "the same words")
        elif not LEAST <= len(text) / max(len(old), 1) <= MOST:
            yield n, (None, "far longer or shorter")
        else:
            seen.add((n, normalized(text)))
            yield n, (with_instruction(rows[n], text.strip()), "")


def _paraphrase(
    rows: list[Row], chosen: list[int], copies: int, seed: int, model: TextModel | None, options: tuple
) -> Iterator[tuple[int, Made]]:
    yield from _renewed(rows, _asked(rows, chosen, copies, model, REWRITE, options, seed))


def _back_translation(
    rows: list[Row], chosen: list[int], copies: int, seed: int, model: TextModel | None, options: tuple
) -> Iterator[tuple[int, Made]]:
    assert model is not None
    there = TRANSLATE.replace("{language}", options[0])
    gone = list(_asked(rows, chosen, copies, model, there, options, seed))
    prompts = [TRANSLATE.format(language="English", text=text) for _, text in gone if text]
    back = iter(model.answers(prompts, options[1], seed + 1))
    yield from _renewed(rows, [(n, next(back) if text else None) for n, text in gone])


def _responses(
    rows: list[Row], chosen: list[int], copies: int, seed: int, model: TextModel | None, options: tuple
) -> Iterator[tuple[int, Made]]:
    """The same question with the model's own answer; not for chats, whose later turns depend on earlier answers."""
    single = [n for n in chosen if kind(rows[n]) != "chat"]
    yield from ((n, (None, "a chat")) for n in chosen if kind(rows[n]) == "chat")
    questions = [{"prompt": question(rows[n]).strip(), "completion": ""} for n in single]
    answer_fields = {n: ANSWER[kind(rows[n])] for n in single}
    seen = {(n, normalized(rows[n][name])) for n, name in answer_fields.items()}
    for place, text in _asked(questions, list(range(len(questions))), copies, model, "{text}", options, seed):
        n = single[place]
        if text is None or not text.strip():
            yield n, (None, "no answer")
        elif (n, normalized(text)) in seen:
            yield n, (None, "the same words")
        else:
            seen.add((n, normalized(text)))
            yield n, ({**rows[n], answer_fields[n]: text.strip()}, "")


METHODS: dict[str, Callable[..., Iterator[tuple[int, Made]]]] = {
    "templates": _templates,
    "fold_input": _fold_input,
    "drop_input": _drop_input,
    "paraphrase": _paraphrase,
    "responses": _responses,
    "back_translation": _back_translation,
}
NEEDS_MODEL = ("paraphrase", "responses", "back_translation")
REPEATED = ("templates", *NEEDS_MODEL)  # methods that can make several rows of one
