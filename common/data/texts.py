"""Texts as keys: normalized, and hashed."""

from hashlib import blake2b

NEAR_DUPLICATE_LIMIT = 200_000  # texts that are compared with each other; of more, only equal ones are found


def normalized(text: str) -> str:
    """Casefolded, with every run of white space as one space."""
    return " ".join(text.casefold().split())


def digest(text: str, size: int = 16) -> bytes:
    """`size` bytes that stand for a text; it may hold half a character."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()
