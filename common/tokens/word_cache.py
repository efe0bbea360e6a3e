"""Each distinct word is encoded once, for tokenizers that split text into words by one pattern.

The pattern of a byte-level tokenizer (GPT-2, Llama 3, Qwen, ...) is run by Python's `re` for ASCII, accented Latin
letters and common typographic signs, where its Unicode classes are plain sets of characters. Other text, and other
tokenizers, are left to the tokenizer.
"""

import re
from collections.abc import Callable
from itertools import chain
from typing import Any

from tunebook.common.tokens.boundaries import state

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel splits by
ASCII = {"L": "A-Za-z", "N": "0-9", "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<=>\^`|~", "M": ""}
MORE = {
    "L": "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff",
    "P": "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u2022",
    "S": "\u00a3\u00b0\u20ac",
}
SETS = {name: chars + MORE.get(name, "") for name, chars in ASCII.items()}
# All characters of a text that is encoded by words: no control, no unusual space, nothing that NFC would change.
PLAIN_ASCII = re.compile(r"[\t\n\r -~]*")
PLAIN = re.compile(rf"[\t\n\r -~{''.join(MORE.values())}]*")
MOST = 500_000  # words that are kept at once, so that memory does not grow with the data
CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]")
PROPERTY = re.compile(r"\\p\{(\w+)\}")


class PretokenCache(dict[str, tuple[int, ...]]):
    """Word -> ids, filled as words are met."""

    def __init__(self, ascii_pattern: str, pattern: str, tokenize: Callable[[str], list[Any]]):
        self._split_ascii, self._split = (re.compile(each, re.ASCII).findall for each in (ascii_pattern, pattern))
        self._tokenize = tokenize
        self._byte = byte_characters()

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= MOST:
            self.clear()
        ids = tuple(token.id for token in self._tokenize("".join(self._byte[byte] for byte in word.encode())))
        self[word] = ids
        return ids

    def encode(self, text: str) -> list[int] | None:
        """Ids of a text, or None where it is left to the tokenizer."""
        # Small sets are quicker to match, and most texts are ASCII.
        plain, split = (PLAIN_ASCII, self._split_ascii) if text.isascii() else (PLAIN, self._split)
        if not plain.fullmatch(text):
            return None
        return list(chain.from_iterable(map(self.__getitem__, split(text))))


def of(backend: Any) -> PretokenCache | None:
    """A tokenizer's cache, or None where it does not split by one pattern, or the pattern is not understood."""
    pattern = _pattern(backend)
    if pattern is None or type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return None
    if backend.normalizer is not None and state(backend.normalizer)["type"] != "NFC":
        return None
    patterns = in_sets(pattern, ASCII), in_sets(pattern, SETS)
    return PretokenCache(patterns[0], patterns[1], backend.model.tokenize) if patterns[0] and patterns[1] else None


def _pattern(backend: Any) -> str | None:
    if backend.pre_tokenizer is None:
        return None
    settings = state(backend.pre_tokenizer)
    parts = settings.get("pretokenizers", [settings])
    kinds = [part["type"] for part in parts]
    if any(part.get("add_prefix_space") for part in parts):
        return None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return GPT2
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        plain = parts[0]["behavior"] == "Isolated" and not parts[0]["invert"]
        return parts[0]["pattern"].get("Regex") if plain else None
    return None


def in_sets(pattern: str, sets: dict[str, str]) -> str | None:
    """The pattern for `re` and plain text: \\p{L} and its like as sets of characters. None where that is not known."""
    odd = r"\\[GXRKhHbBAzZ]|\(\?[^:!=i]|&&|\[\[|[^\\][*+?}]\+"  # anchors, look-behind, set algebra, possessives
    if re.search(odd, PROPERTY.sub("L", pattern)):
        return None
    if set(PROPERTY.findall(pattern)) - sets.keys() or r"\P" in pattern:
        return None
    inside = CLASS.sub(lambda found: PROPERTY.sub(lambda p: sets[p.group(1)], found.group()), pattern)
    whole = PROPERTY.sub(lambda p: f"[{sets[p.group(1)]}]" if sets[p.group(1)] else "(?!)", inside)
    try:
        found = re.compile(whole, re.ASCII)
    except re.error:
        return None
    plain = PLAIN_ASCII if sets is ASCII else PLAIN
    # Capturing groups would change what findall gives; a character without a match would be lost.
    complete = all(found.match(char) for char in map(chr, range(0x2100)) if plain.fullmatch(char))
    return whole if not found.groups and complete else None


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers write each byte as: itself where it prints, else one from U+0100 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]
