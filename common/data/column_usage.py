"""Which columns of a source were used as what, and which are unused."""

from collections import Counter
from typing import Any

from tunebook.common.data.layouts import Schema
from tunebook.common.errors import counted, first_names

# Columns that are read elsewhere, or that this collection wrote.
TOLD = {"weight", "tools", "chat_template_kwargs", "thinking", "reasoning_content", "row", "from", "augmented"}
SHOWN = 12  # names of columns that are not used


class Uses:
    """Counts the rows of a source by schema, and gathers the columns that are filled and mean nothing."""

    def __init__(self) -> None:
        self.layouts: Counter[tuple[Schema, tuple[str, ...]]] = Counter()
        self.unused: dict[str, None] = {}

    def add(self, schema: Schema, filled: tuple[str, ...], others: dict[str, Any]) -> None:
        """Count a row: our names of the columns that it fills, and its other columns."""
        self.layouts[schema, filled] += 1
        if others and others.keys() - self.unused.keys():
            self.unused.update({name: None for name, value in others.items() if value not in (None, "", [], {})})

    def summary(self) -> str:
        """Such as: columns prompt=question, completion=answer; not used: id, date."""
        rows: Counter[str] = Counter()
        for schema in dict.fromkeys(schema for schema, _ in self.layouts):
            counts = {names: count for (of, names), count in self.layouts.items() if of is schema}
            used = [ours for ours in schema.columns if any(ours in names for names in counts)]
            rows[", ".join(_word(ours, schema.columns[ours]) for ours in used)] += sum(counts.values())
        several = len(rows) > 1
        listed = "; ".join(f"{words} ({counted(count)})" if several else words for words, count in rows.most_common())
        return f"columns {listed}" + self._rest()

    def _rest(self) -> str:
        names = [name for name in self.unused if name not in TOLD and not name.startswith("their_")]
        if not names:
            return ""
        used = {ours for _, filled in self.layouts for ours in filled}
        text = next((name for name in ("context", "input") if name in names and "input" not in used), None)
        hint = f"; input={text} after the file makes it part of the prompt" if text else ""
        return f"; not used: {first_names(names, SHOWN)}{hint}"


def _word(ours: str, theirs: str) -> str:
    return theirs if ours == theirs else f"{ours}={theirs}"
