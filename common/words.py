"""Encoding by words: a tokenizer that splits text into words by one pattern encodes each distinct word once.

The word pattern of a byte-level tokenizer (GPT-2, Llama 3, Qwen, ...) is run by Python's own `re` for text that is
ASCII alone, where the Unicode classes of the pattern are plain sets of characters; the tokenizer's model is asked for
the ids of each word that was not seen before. Other text, and other tokenizers, are left to the tokenizer.
"""

import re
from collections.abc import Callable
from itertools import chain
from typing import Any

from common.cuts import state

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel splits by
ASCII = {
    "L": "A-Za-z",
    "N": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "S": r"$+<=>\^`|~",
    "M": "",
}
# Control characters that two engines might class differently, and white space that is rare enough to leave alone.
RARE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]")
PROPERTY = re.compile(r"\\p\{(\w+)\}")


class Words(dict[str, tuple[int, ...]]):
    """Word -> ids, filled as words are met."""

    def __init__(self, pattern: str, tokenize: Callable[[str], list[Any]]):
        self.split = re.compile(pattern, re.ASCII).findall
        self._tokenize = tokenize
        self._byte = {chr(byte): char for byte, char in enumerate(byte_characters())}

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(token.id for token in self._tokenize("".join(self._byte[char] for char in word)))
        self[word] = ids
        return ids

    def encode(self, text: str) -> list[int] | None:
        """Ids of a text, or None where it is left to the tokenizer."""
        if not text.isascii() or RARE.search(text):
            return None
        return list(chain.from_iterable(map(self.__getitem__, self.split(text))))


def of(backend: Any) -> Words | None:
    """The Words of a tokenizer, or None where it does not split by one pattern, or the pattern is not understood."""
    pattern = _pattern(backend)
    if pattern is None or type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return None
    if backend.normalizer is not None and state(backend.normalizer)["type"] not in ("NFC", "NFKC"):
        return None
    return Words(pattern, backend.model.tokenize)


def _pattern(backend: Any) -> str | None:
    if backend.pre_tokenizer is None:
        return None
    settings = state(backend.pre_tokenizer)
    parts = settings.get("pretokenizers", [settings])
    kinds = [part["type"] for part in parts]
    if any(part.get("add_prefix_space") for part in parts):
        return None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return in_ascii(GPT2)
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        plain = parts[0]["behavior"] == "Isolated" and not parts[0]["invert"]
        return in_ascii(parts[0]["pattern"].get("Regex", "")) if plain else None
    return None


def in_ascii(pattern: str) -> str | None:
    """The pattern for `re` and ASCII text: \\p{L} and its like as sets of characters. None where that is not known.

    A last alternative takes single characters that the pattern leaves, as the tokenizer keeps them, too.
    """
    odd = r"\\[GXRKhHbBAzZ]|\(\?[^:!=i]|&&|\[\[|[^\\][*+?}]\+"  # anchors, look-behind, set algebra, possessives
    if not pattern or re.search(odd, PROPERTY.sub("L", pattern)):
        return None
    if set(PROPERTY.findall(pattern)) - ASCII.keys() or r"\P" in pattern:
        return None
    inside = CLASS.sub(lambda found: PROPERTY.sub(lambda p: ASCII[p.group(1)], found.group()), pattern)
    whole = PROPERTY.sub(lambda p: f"[{ASCII[p.group(1)]}]" if ASCII[p.group(1)] else "(?!)", inside)
    try:
        found = re.compile(whole, re.ASCII)
    except re.error:
        return None
    # Capturing groups would change what findall gives; a character without a match would be lost.
    complete = all(found.match(chr(code)) for code in (9, 10, 13, *range(32, 127)))
    return whole if not found.groups and complete else None


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers write each byte as: itself where it prints, else one from U+0100 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]
