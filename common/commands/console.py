"""Printing in color where the terminal has it."""

from typing import Any


def printer() -> Any:
    """A rich console that lets a reader who goes away (`| head`) be handled in one place."""
    from rich.console import Console

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Printer(highlight=False, soft_wrap=True)
