"""Numbers and texts as people read them, in messages, tables and pages. What is None is a dash."""

from collections.abc import Iterable, Sequence

DASH = "–"


def number(value: float | None, digits: int = 3) -> str:
    """12345 -> 12,345; 0.04217 -> 0.042; 0.00004 -> 4.00e-05."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def byte_size(value: float | None) -> str:
    """900 B, 12.5 KiB, 85.3 MiB, 2.13 GiB."""
    if value is None:
        return DASH
    size = float(value)
    unit = next((unit for unit in (4, 3, 2, 1) if size >= 1024**unit), 0)
    size /= 1024**unit
    return f"{size:{'.3g' if size < 999.5 else '.0f'}} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def duration(seconds: float | None) -> str:
    """3.2 s, 35 s, 14 min 5 s, 2 h 5 min."""
    if seconds is None:
        return DASH
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def percent(share: float | None) -> str:
    """0.5432 -> 54.3 %; small shares keep two digits."""
    if share is None:
        return DASH
    if 0 < share < 0.0001:
        return "<0.01 %"
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.2g} %"


def points(difference: float | None) -> str:
    """The difference of two shares, with its sign: 0.0123 -> +1.2."""
    return DASH if difference is None else f"{100 * difference:+.1f}"


def interval(low: float | None, high: float | None, form: str = ".1f", scale: float = 100) -> str:
    """Both ends: 45.1 to 55.2; in percent where `scale` is not 1, with signs where `form` has a +."""
    return DASH if low is None or high is None else f"{scale * low:{form}} to {scale * high:{form}}"


def p_value(value: float | None) -> str:
    """0.0123 -> 0.012; < 0.0001."""
    return DASH if value is None else "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def visible(text: str) -> str:
    """A text with white space and control characters made visible."""
    for plain, sign in ((" ", "·"), ("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        text = text.replace(plain, sign)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A table for a terminal. `left`: the columns of words; the others are numbers, and stand to the right."""
    from tabulate import tabulate

    alignment = ["left" if place in left else "right" for place in range(max(map(len, rows), default=0))]
    text = tabulate(rows, heads, "plain", disable_numparse=True, colalign=alignment)
    return "\n".join(line.rstrip() for line in text.splitlines())


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A table for a README, and notes as a list below it; a | in a cell is escaped."""
    from tabulate import tabulate

    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    text = tabulate(cells, heads, "github", disable_numparse=True)
    return "\n".join([text, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


FORMATS = (number, byte_size, duration, percent, points, interval, p_value, visible)
