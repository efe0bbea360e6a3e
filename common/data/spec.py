"""The --dataset syntax: sources, their shares, column mappings; and the names of splits."""

from dataclasses import dataclass, field
from pathlib import Path

from tunebook.common.data.layouts import NAMES
from tunebook.common.errors import UserError, nearest

SPLITS = ("train", "validation", "test")
SPLIT_OF = {  # as files, folders and parts of Hub datasets are called
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ANSWERS = ("chosen", "rejected")  # what a source of preference pairs may name beside NAMES


@dataclass
class SourceSpec:
    """A source of --dataset.

    Attributes:
        share: of the mix (a float up to 1), or so many rows (an int); None where not given.
        mapping: our name -> source column.
        header: False where a csv file has none.
    """

    share: float | int | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    header: bool = True


def parse(words: str | list[str]) -> tuple[dict[str, SourceSpec], str]:
    """The sources of --dataset, and what their shares count ("rows" or "tokens").

    Raises:
        UserError: a word is not understood.
    """
    wanted: dict[str, SourceSpec] = {}
    unit, last = "rows", None
    for word in words.split() if isinstance(words, str) else words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or Path(word).exists():
            source, share = _share(word)
            if not source:  # a variable of the shell, for one; it is not the folder one is in
                raise UserError("--dataset has an empty name; name a file, a folder, a Hub name or pocket")
            if source in wanted:
                raise UserError(f"--dataset {source} is named twice; give it one share")
            wanted[source] = last = SourceSpec(share)
        elif name == "shares":
            if value not in ("rows", "tokens"):
                raise UserError(f"--dataset {word}: shares count rows or tokens")
            unit = value
        elif last is None:
            raise UserError(f"--dataset {word}: name the file before what its columns mean")
        elif name == "header":
            if value not in ("yes", "no"):
                raise UserError(f"--dataset {word}: header is yes or no")
            last.header = value == "yes"
        elif name in NAMES or name in ANSWERS:
            last.mapping[name] = value
        else:
            known = sorted({*NAMES, "header", "shares"})
            raise UserError(f"--dataset {word}: {name} is none of {', '.join(known)}{nearest(name, known)}")
    if not wanted:
        raise UserError("--dataset needs a file, a folder, a Hub name or pocket")
    return wanted, unit


def _share(word: str) -> tuple[str, float | int | None]:
    name, colon, tail = word.rpartition(":")
    if not colon or Path(word).exists() or "/" in tail or "\\" in tail:
        return word, None
    try:
        share = int(tail) if tail.isdecimal() else float(tail)
    except ValueError:
        raise UserError(f"--dataset {word}: after the colon comes a share (0.7) or rows (5000), not {tail!r}") from None
    if not (share > 0 and (isinstance(share, int) or share <= 1)):
        raise UserError(f"--dataset {word}: a share is above 0 and at most 1.0, a number of rows is whole, from 1")
    return name, share
