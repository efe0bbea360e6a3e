"""HTML pages: one file each, which opens offline, in the dark, on a phone and on paper. May import `format` alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunebook.common import format

# How a verdict is colored, by its words; any other has no color.
TONES = {
    "better": ("better", "won", "retained", "finished", "best", "fits"),
    "worse": ("worse", "lost", "regressed", "killed", "refused"),
    "mixed": ("degraded", "inconclusive", "stopped", "mixed"),
}
HEADING = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>', re.DOTALL)


@dataclass(frozen=True)
class Span:
    """An interval and its middle in a drawing 150 wide, with where nothing would have changed."""

    low: float
    middle: float
    high: float
    zero: float
    label: str
    tone: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and what else stands in it.

    Attributes:
        sort: what the table is sorted by, where that is not the text.
        below: a smaller second line.
        verdict: shown with its sign and color.
    """

    text: str = ""
    below: str = ""
    sort: float | str | None = None
    verdict: str = ""
    link: str = ""
    classes: str = ""
    span: Span | None = None


def link(path: str) -> str:
    """A relative path as it stands in a link: nothing in it is read as a scheme, a query or a fragment."""
    return quote(path) and f"./{quote(path)}"


def tone(verdict: str) -> str:
    """better, worse, mixed or "": how a verdict is colored."""
    return next((name for name, words in TONES.items() if verdict in words), "")


def contents(page: str) -> list[tuple[str, Any]]:
    """(name, words) of the sections of a page's HTML."""
    from markupsafe import Markup

    return [(name, Markup(words)) for name, words in HEADING.findall(page)]


def spans(rows: Sequence[tuple[float, float, float] | None], unit: str, tones: Sequence[str]) -> list[Span | None]:
    """Drawings of (low, middle, high) of after less before, on one scale with zero in it; None where there is none."""
    known = [row for row in rows if row is not None]
    least, most = min([0.0, *(row[0] for row in known)]), max([0.0, *(row[2] for row in known)])

    def at(number: float) -> float:
        return round(6 + 138 * (number - least) / ((most - least) or 1.0), 1)

    return [
        row
        and Span(
            at(row[0]), at(row[1]), at(row[2]), at(0.0), f"{row[1]:+.3g}, {row[0]:+.3g} to {row[2]:+.3g} {unit}", kind
        )
        for row, kind in zip(rows, tones, strict=True)
    ]


def render(template: Path, /, **values: Any) -> str:
    """A page of HTML or Markdown from a Jinja template, which may extend page.html.jinja; formats are its filters."""
    import jinja2

    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(
        loader=loader, autoescape=".html" in template.suffixes, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({one.__name__: one for one in (*format.FORMATS, tone, contents)})
    return environment.get_template(template.name).render(**values)
