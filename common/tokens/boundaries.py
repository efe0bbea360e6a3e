"""Where a text may be cut so that its parts, encoded alone, give the ids of the whole.

Half of an Alpaca prompt is the template's constant text. Where the tokenizer proves a cut exact, that text is encoded
once, and only the row's own text for each row. Two proofs are known:

- The tokenizer splits text by regular expressions that look ahead at most (GPT-2, Llama 3, Qwen, DeepSeek, ...).
  Whether a piece ends at the cut depends on the characters around it: the pre-tokenizer is asked, once for each pair
  of neighboring characters that occurs.
- The tokenizer does not split at all (SentencePiece: Llama 2, Mistral, Phi 3), and a character stands in no token
  beside another one (the newline, there). Merges never cross it, so text may be cut before and after it.

Everything else is encoded whole.
"""

import json
import re
from functools import cached_property, lru_cache
from typing import Any

CONTEXT = 2  # characters of a row's text beside a cut that the proof is asked for
# Anchors, word boundaries and look-behind would let a match depend on text before the cut.
BACKWARD = re.compile(r"\(\?<|\\[bBAGZz]|[$^]")
CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\[^bBAGZz]")  # [...] and escaped characters mean themselves


class SafeBoundaries:
    """Cuts of a template's constant text for one tokenizer."""

    def __init__(self, backend: Any):
        self.backend = backend
        normalizer = state(backend.normalizer) or {"type": "Sequence", "normalizers": []}
        self._composes_only = normalizer["type"] in ("NFC", "NFKC") or normalizer.get("normalizers") == []
        pre = state(backend.pre_tokenizer)
        self._parts = pre.get("pretokenizers", [pre] if pre else [])
        self._known: dict[tuple[str, str, str], int | None] = {}
        self._ends = lru_cache(maxsize=1000)(self._find_ends)  # a template's constant texts come again and again

    @cached_property
    def by_regex(self) -> bool:
        """Whether the pre-tokenizer is a chain of splits that never look back."""
        splits = [part["pattern"].get("Regex") for part in self._parts if part["type"] == "Split"]
        bytewise = [part for part in self._parts if part["type"] == "ByteLevel"]
        return (
            self._composes_only
            and len(splits) + len(bytewise) == len(self._parts) > 0
            and any(splits + [part for part in bytewise if part.get("use_regex", True)])
            and all(pattern and not BACKWARD.search(CLASS.sub("x", pattern)) for pattern in splits)
            and all(part["behavior"] == "Isolated" and not part["invert"] for part in self._parts if "behavior" in part)
            and not any(part["add_prefix_space"] for part in bytewise)
        )

    @cached_property
    def newline_is_alone(self) -> bool:
        """Whether nothing splits the text, and no token of the vocabulary holds a newline beside something else."""
        kinds = {part["type"] for part in self._parts}
        whole = not self._parts or (kinds == {"Metaspace"} and not any(part["split"] for part in self._parts))
        model = self.backend.model
        if not whole or type(model).__name__ != "BPE":
            return False
        vocabulary = self.backend.get_vocab(with_added_tokens=False)
        return not any("\n" in token and token != "\n" for token in vocabulary) and (
            model.byte_fallback or "\n" in vocabulary
        )

    def after(self, text: str, constant: str) -> int | None:
        """How many characters of `constant` must stay with the `text` before it; None where no cut is proved."""
        if self.newline_is_alone:
            return constant.index("\n") if "\n" in constant else None
        if not self.by_regex or not text or text[-1].isspace():
            return None
        key = (text[-CONTEXT:], constant, "after")
        if key not in self._known:
            cuts = ((text[-CONTEXT:] + constant[:at], constant[at:]) for at in range(len(constant)))
            self._known[key] = next((at for at, halves in enumerate(cuts) if self._exact(*halves)), None)
        return self._known[key]

    def before(self, constant: str, text: str) -> int | None:
        """Where `constant` may be cut before the `text` that follows it; None where no cut is proved."""
        if self.newline_is_alone:
            return constant.rindex("\n") + 1 if "\n" in constant else None
        if not self.by_regex or not text or text[0].isspace():
            return None
        key = (text[:CONTEXT], constant, "before")
        if key not in self._known:
            exact = self._exact(constant, key[0])
            self._known[key] = len(constant) if exact else None
        return self._known[key]

    def _exact(self, left: str, right: str) -> bool:
        """Whether the pre-tokenizer's pieces of left + right are those of left and those of right."""
        joint, first, second = self._ends(left + right), self._ends(left), self._ends(right)
        if joint is None or first is None or second is None:
            return False
        return joint == first + [end + len(left) for end in second]

    def _find_ends(self, text: str) -> list[int] | None:
        """Where the pre-tokenizer's pieces of a text end; None where normalization changes the text."""
        if self.backend.normalizer is not None and self.backend.normalizer.normalize_str(text) != text:
            return None
        return [end for _, (_, end) in self.backend.pre_tokenizer.pre_tokenize_str(text)]


def state(part: Any) -> dict[str, Any]:
    """The settings of a tokenizer's normalizer or pre-tokenizer; {} where it has none."""
    return {} if part is None else json.loads(part.__getstate__())
