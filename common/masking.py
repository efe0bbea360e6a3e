"""Rows to token ids and labels: the prompt is -100, the answer and its end token train, every lost row is counted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from common.templates import Template

IGNORE = -100


@dataclass
class Counts:
    """What became of the rows of one side of a data set."""

    rows: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> rows
    tokens: int = 0
    trained_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "dropped": dict(self.dropped), "truncated": 0}

    def line(self) -> str:
        """The counts in words."""
        lost = ", ".join(f"{number} dropped as {reason}" for reason, number in self.dropped.items()) or "none dropped"
        share = f"{100 * self.trained_tokens / self.tokens:.1f} %" if self.tokens else "none"
        return f"{self.rows} rows, {self.kept} kept, {lost}; {self.tokens} tokens, {share} of them train"


def encode(rows: Iterable[dict], tokenizer: Any, template: Template, max_length: int) -> tuple[list[dict], Counts]:
    """Input ids and labels of each row that fits.

    Labels start where the ids of prompt and of prompt + completion part (what TRL calls the longest common prefix, so a
    token that spans the boundary trains), and the end token follows the completion once. Text in a row that looks
    like a special token is encoded as text.

    Returns:
        Kept rows as {"input_ids": [int], "labels": [int], "row": place in `rows`}, and the counts. A row is dropped as
        `too_long` (more than max_length tokens) or `empty_output`.
    """
    rows = list(rows)
    counts = Counts(rows=len(rows))
    prompts = [template.prompt(row) for row in rows]
    texts = [prompt + template.completion(row) for prompt, row in zip(prompts, rows, strict=True)]
    kept = []
    for place, (prompt_ids, ids) in enumerate(
        zip(tokenize(prompts, tokenizer), tokenize(texts, tokenizer), strict=True)
    ):
        if not template.completion(rows[place]).strip():
            counts.dropped["empty_output"] += 1
            continue
        ids = [*ids, tokenizer.eos_token_id]
        if len(ids) > max_length:
            counts.dropped["too_long"] += 1
            continue
        start = common_prefix(prompt_ids, ids)
        kept.append({"input_ids": ids, "labels": [IGNORE] * start + ids[start:], "row": place})
        counts.tokens += len(ids)
        counts.trained_tokens += len(ids) - start
    counts.kept = len(kept)
    return kept, counts


def tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Ids of each text, with the tokenizer's own beginning token but no end token; special-token text stays text."""
    backend = tokenizer.backend_tokenizer
    as_text, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        encoded = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=True)]
    finally:
        backend.encode_special_tokens = as_text
    closes = backend.encode("", add_special_tokens=True).ids[-1:] == [tokenizer.eos_token_id]
    if closes and tokenizer.eos_token_id != tokenizer.bos_token_id:
        encoded = [ids[:-1] for ids in encoded]  # a tokenizer that closes every text: the end is added once, by encode
    return encoded


def common_prefix(a: list[int], b: list[int]) -> int:
    """The number of leading ids that two sequences share."""
    if b[: len(a)] == a:
        return len(a)
    return next(place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def show(example: dict, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of each token and whether it trains; a character of several tokens stands at its last."""
    pieces, text = [], ""
    ids = example["input_ids"]
    for end, label in enumerate(example["labels"], 1):
        now = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not now.endswith("\ufffd") or end == len(ids):
            pieces.append((now[len(text) :], label != IGNORE))
            text = now
    return pieces
