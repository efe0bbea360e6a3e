"""What reaches the terminal: standard output and error in which no character of data steers it."""

import contextlib
import errno
import inspect
import os
import re
import sys
from types import FrameType
from typing import Any, TextIO

BROKEN_PIPE = 141  # what a shell reports for a command whose reader went away
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)  # nobody reads any more: the reader or the terminal has ended
# Control characters but line break and tab; line separators; characters that change the direction of text.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What progress bars and colors write: carriage return, color, cursor up or down, erase.
DRAWING = re.compile("\r|\x1b\\[[0-9;]*[mABJK]")
DRAWS = ("tqdm", "rich", "tyro")  # libraries that write it
WRAPS = ("unsloth", "unsloth_zoo", "wandb")  # those that put streams of their own before this one


def escaped(text: str) -> str:
    """The text with characters that steer a terminal written as escapes: \\x1b, \\u202e."""
    return STEERING.sub(lambda found: ascii(found.group())[1:-1], text)


class Stream:
    """A text stream through which only progress bars and colors, of the libraries that draw them, steer a terminal.

    A character that its encoding lacks is written as an escape. Where nobody reads it any more, what follows is
    dropped (`goes_on`), or the process ends. Bars at the foot of the terminal (process/bars.py) make room for it.
    """

    bars: Any = None  # those that are drawn now

    def __init__(self, stream: TextIO, goes_on: bool):
        self._stream, self._goes_on, self._dropped = stream, goes_on, False
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if STEERING.search(text):
            text = _drawn(text) if _writer(inspect.currentframe()) in DRAWS else escaped(text)
        return self._put(text)

    def draw(self, text: str) -> int:
        """Write a text that a library has drawn."""
        return self._put(_drawn(text))

    def _put(self, text: str) -> int:
        try:
            if not self._dropped:
                with Stream.bars.above(text) if Stream.bars and self._stream.isatty() else contextlib.nullcontext():
                    self._stream.write(text)
                    if Stream.bars:
                        self._stream.flush()  # before they are drawn on another stream
        except OSError as error:
            self._lost(error)
        return len(text)

    @property
    def below(self) -> TextIO:
        """The stream that it writes to."""
        return self._stream

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            if not self._dropped:
                self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """Nothing more can be written. Its buffer goes to the null device, or Python would try again at its end."""
        self._dropped = True
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if error.errno in GONE:
            if not self._goes_on:
                raise SystemExit(BROKEN_PIPE)  # an error that `except OSError` on the way would take for its own
            return
        other = sys.stderr if self is sys.stdout else sys.stdout
        name = "standard output" if self is sys.stdout else "standard error"
        print(f"error: {name} cannot be written: {error.strerror}", file=other, flush=True)
        if not self._goes_on:
            raise SystemExit(2)


def _writer(frame: FrameType | None) -> str:
    """The package whose code has called the function of this frame, other than by a stream of its own."""
    name = WRAPS[0]
    while name in WRAPS and frame and (frame := frame.f_back):
        name = frame.f_globals.get("__name__", "").partition(".")[0]
    return name


def _drawn(text: str) -> str:
    """A text of a library that draws, with everything else that steers escaped."""
    kept, at = [], 0
    for found in DRAWING.finditer(text):
        kept += [escaped(text[at : found.start()]), found.group()]
        at = found.end()
    return "".join([*kept, escaped(text[at:])])


def protect(goes_on: bool) -> None:
    """Put a Stream in the place of standard output and error.

    Args:
        goes_on: a reader who goes away (`| head`, a closed terminal) does not end the command: it has more to do than
            to print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one of the three was closed: else the next file that is opened would get what is printed
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        original = stream._stream if isinstance(stream, Stream) else stream
        setattr(sys, name, Stream(original, goes_on))


def printer() -> Any:
    """A rich console that prints in color where the terminal has it, and no control character of what it is given."""
    from rich.console import Console
    from rich.segment import Segment

    class Printer(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else escaped(text), style, control)

    return Printer(highlight=False, soft_wrap=True)
