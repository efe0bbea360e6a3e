"""Progress bars at the foot of a terminal, drawn by rich; what is printed meanwhile stands above them."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.common.process import terminal

ERASE = "\r\x1b[J"  # from here down
UP = "\x1b[1A"
BETWEEN = " · "


class Bars:
    """The bars of the phases that are shown. They are written to the stream below terminal.Stream, which escapes the
    control characters of everybody else and makes room for what it writes."""

    def __init__(self) -> None:
        from rich.console import Console

        stream = sys.stderr
        self._stream = stream.below if isinstance(stream, terminal.Stream) else stream
        self._console = Console(file=self._stream, force_terminal=True, highlight=False)
        self._lock = threading.RLock()
        self._height = 0  # rows that are drawn now
        self._inside = False  # something has been printed without the end of its line

    def show(self, phases: list[Any]) -> None:
        """Draw these phases in place of those that are drawn."""
        with self._lock:
            if self._inside or not (phases or self._height):
                return
            text = self._text(phases) if phases else ""
            self._write(self._erased() + text)
            self._height = text.count("\n") + 1 if text else 0
            terminal.Stream.bars = self if text else None

    @contextmanager
    def above(self, text: str) -> Iterator[None]:
        """While a text is written by others, the bars are away; they come back at the next look."""
        with self._lock:
            self._write(self._erased())
            self._height = 0
            yield
            self._inside = not text.endswith("\n")

    def _erased(self) -> str:
        return ERASE if self._height == 1 else "\r" + UP * (self._height - 1) + "\x1b[J" if self._height else ""

    def _write(self, text: str) -> None:
        if text:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                terminal.Stream.bars = None

    def _text(self, phases: list[Any]) -> str:
        """What is drawn: no row is as wide as the terminal, which would break it."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = max(20, self._console.width - 1)
        with self._console.capture() as drawn:
            for phase in phases:
                head = Table.grid(padding=(0, 1))
                name, words = terminal.escaped(phase.name), BETWEEN.join(phase.words())
                room = width - len(name) - len(words) - 2
                bar = ProgressBar(
                    total=phase.total, completed=phase.done, width=min(40, room), pulse=phase.total is None
                )
                if room >= 8:
                    head.add_row(Text(name, "bold"), bar, Text(words, no_wrap=True))
                    self._console.print(head, width=width)
                else:
                    self._print([name, *phase.words()], width)
                if details := phase.details():
                    self._print(details, width)
        return drawn.get().rstrip("\n")

    def _print(self, words: list[str], width: int) -> None:
        """Words in rows, none of them broken."""
        from rich.text import Text

        rows = [""]
        for word in map(terminal.escaped, words):
            more = f"{rows[-1]}{BETWEEN}{word}" if rows[-1] else f"  {word}"
            if len(more) <= width or not rows[-1]:
                rows[-1] = more
            else:
                rows.append(f"  {word}")
        for row in rows:
            self._console.print(Text(row[:width], "dim", no_wrap=True))


def _forget() -> None:
    terminal.Stream.bars = None  # in a forked process nobody draws


os.register_at_fork(after_in_child=_forget)
