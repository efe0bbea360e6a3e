"""Requests to lm-eval that give the model, and score it on, the very tokens of training."""

from dataclasses import dataclass
from typing import Any

from tunebook.common.tokens.tokenization import bos_eos_ids

BACK = 32  # tokens before an answer among which a split is searched


@dataclass(frozen=True)
class Request:
    """A context and what is scored after it."""

    context: str
    scored: str
    lead: str  # beginning of `scored` that training masks, whose log-likelihood is subtracted; "": none
    exact: bool  # all tokens are those of training


class Requests:
    """Requests through one tokenizer.

    lm-eval moves white space from the end of a context to what is scored, encodes the context alone, and scores the
    tokens of the whole text beyond as many. So a text can be split where its labels begin only if no token reaches
    across and no white space stands before; else it is split earlier.

    Args:
        bare: add_bos_token=False, and the text has the beginning token.
    """

    def __init__(self, tokenizer: Any, bare: bool = False):
        self.tokenizer, self.bare = tokenizer, bare
        self.begin = bos_eos_ids(tokenizer)[0]
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.opens = tokenizer.decode(first)

    def opened(self, text: str, ids: list[int]) -> str:
        """The text with the beginning tokens of its ids, where lm-eval adds none."""
        begin = "".join(self.tokenizer.convert_ids_to_tokens(self.begin))
        missing = self.bare and begin and ids[: len(self.begin)] == self.begin and not text.startswith(begin)
        return begin + text if missing else text

    def encode(self, text: str) -> Any:
        """Ids and offsets as lm-eval encodes: to a text that starts with the beginning token it adds none."""
        options = {"add_special_tokens": False} if self.bare or text.startswith(self.opens) else {}
        return self.tokenizer(text, return_offsets_mapping=True, **options)

    def of(self, text: str, ids: list[int], start: int, prompt: str) -> Request:
        """The request for a text.

        Args:
            ids: of the text in training; `start`: the first labeled one.
            prompt: the text before the answer; used where no split gives the tokens of training.
        """
        whole = self.encode(text)
        found = self._exact(text, ids, start, whole.offset_mapping) if whole.input_ids == ids else None
        return found or self._near(text, prompt, len(whole.input_ids))

    def _exact(self, text: str, ids: list[int], start: int, offsets: list[tuple[int, int]]) -> Request | None:
        for count in range(start, max(0, start - BACK), -1):
            for at in _between(offsets, count):
                context = text[:at]
                if not context.strip() or context[-1].isspace() or self.encode(context).input_ids != ids[:count]:
                    continue
                for end in _between(offsets, start) if count < start else [at]:
                    if count == start or self.encode(text[:end]).input_ids == ids[:start]:
                        return Request(context, text[at:], text[at:end], True)
        return None

    def _near(self, text: str, prompt: str, count: int) -> Request:
        """A split before the white space at the prompt's end, or the last before it that leaves something to score."""
        at = len(prompt.rstrip())
        while at and len(self.encode(text[:at]).input_ids) >= count:
            at -= 1
        return Request(text[:at], text[at:], "", False)


def _between(offsets: list[tuple[int, int]], count: int) -> list[int]:
    """The places in a text where its first `count` tokens may end: some tokenizers leave white space out of offsets."""
    before, after = offsets[count - 1][1], offsets[count][0]
    return list(range(min(before, after), max(before, after) + 1))
