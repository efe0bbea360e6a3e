"""What --help prints: tyro's text with flags as README writes them, and without the defaults that say nothing."""

import contextlib
import io
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, TextIO

WIDEST = 100  # columns of a text that reads well
BOX = ("╭", "+-", "┌")
COLOR = re.compile(r"\x1b\[[0-9;]*m")
WORD = re.compile(r"[^\s│|]")
EMPTY = re.compile(r"\(default: ?(?:''|None)?\)")  # no default, or one that the text beside it explains


def registry() -> Any:
    """How lists and optional values are shown: STR ... and STR, in place of [STR [STR ...]] and {None}|STR."""
    from tyro import constructors

    found = constructors.ConstructorRegistry()

    @found.primitive_rule
    def lists(info: constructors.PrimitiveTypeInfo) -> Any:
        if info.type != list[str]:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="STR ...",
            instance_from_str=list,
            is_instance=lambda value: isinstance(value, list),
            str_from_instance=list,
        )

    @found.primitive_rule
    def optional(info: constructors.PrimitiveTypeInfo) -> Any:
        kinds: dict[Any, Any] = {str | None: str, int | None: int, float | None: float}
        kind = kinds.get(info.type)
        if kind is None:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: None if words[0] == "None" else kind(words[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: [str(value)],
        )

    return found


@contextlib.contextmanager
def uncolored() -> Iterator[None]:
    """What tyro says without its colors, and escaped: it quotes words, whose escape sequences would pass for colors."""
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            yield
    finally:
        sys.stdout.write(out.getvalue())
        sys.stderr.write(error.getvalue())


class _Kept(io.StringIO):
    """Text for a terminal, where there is one: tyro asks whether it may draw boxes and colors."""

    def __init__(self, stream: TextIO):
        super().__init__()
        self.stream = stream

    def isatty(self) -> bool:
        return self.stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


@contextlib.contextmanager
def cleaned(stream: TextIO) -> Iterator[_Kept]:
    """Inside, standard output is kept; what was kept is `text` of the result, cleaned."""
    kept = _Kept(stream)
    with contextlib.redirect_stdout(kept):
        yield kept


def clean(text: str) -> str:
    """The text with empty defaults blanked, which keeps boxes straight, and no two empty lines; its paragraphs are set
    in the width of the terminal, at most WIDEST."""
    lines = []
    for line in _set(text.split("\n"), min(shutil.get_terminal_size().columns, WIDEST)):
        blanked = EMPTY.sub(lambda found: " " * len(found[0]), line)
        if blanked == line or WORD.search(COLOR.sub("", blanked)):
            lines.append(blanked.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _set(lines: list[str], width: int) -> Iterator[str]:
    """Lines with the paragraphs above the first box set anew: tyro leaves some as they stand in a docstring, and makes
    one line of others. What is indented, as commands are, stays."""
    boxes = next((n for n, line in enumerate(lines) if line.startswith(BOX)), len(lines))
    paragraphs = itertools.groupby(lines[:boxes], lambda line: bool(line) and not line.startswith((" ", "usage:")))
    for is_text, found in paragraphs:
        yield from textwrap.wrap(" ".join(found), width, break_on_hyphens=False) if is_text else found
    yield from lines[boxes:]
