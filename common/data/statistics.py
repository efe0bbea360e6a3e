"""Dataset statistics: rows, lengths, repeats, categories, problems, in one pass."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tunebook.common.data import categories
from tunebook.common.data import rows as row_of
from tunebook.common.data.texts import digest

SHOWN = 10  # row numbers that are listed for a problem; the rest are counted
# Quoted for Alpaca in lectures, beside what is counted here. The carrier of a file may have edited some rows.
ALPACA_ROWS = 52_002
ALPACA_QUOTED = {
    "rows": "52,002",
    "unique instructions": "39,825",
    "rows with input": "17,858",
    "characters of an instruction, mean": "85",
    "categories": "28/18/22/15/8/9 %, without names or method",
}

Examine = Callable[[dict], Iterable[str]]


def survey(rows: Iterable[dict], examine: Examine | None = None) -> dict[str, Any]:
    """Statistics of canonical rows.

    Args:
        examine: names of the problems of one row; they are counted beside empty outputs and repeats.

    Returns:
        rows, kinds, sources, unique_instructions, with_input, empty_outputs, exact_duplicates, categories
        (name -> rows), characters (field -> spread), turns (spread, chats only),
        problems (name -> {"rows", "first": [{"row", "source"}]}), looks_like_alpaca.
    """
    found = _Survey(examine)
    for row in rows:
        found.add(row)
    return found.result()


class _Survey:
    def __init__(self, examine: Examine | None):
        self.examine = examine
        self.tally, self.kinds, self.sources, self.groups = Counter(), Counter(), Counter(), Counter()
        self.lengths = {name: array("q") for name in ("instruction", "input", "output", "turns")}
        self.problems: dict[str, dict[str, Any]] = {}
        self.asked: set[bytes] = set()
        self.seen: set[bytes] = set()

    def add(self, row: dict) -> None:
        question, reply, what = row_of.instruction(row), row_of.answers(row), row_of.kind(row)
        self.tally["rows"] += 1
        self.kinds[what] += 1
        self.sources[row.get("source", "")] += 1
        self.groups[categories.of(question)] += 1
        self.asked.add(digest(question))
        self.lengths["instruction"].append(len(question))
        self.lengths["output"].append(len(reply))
        if what == "chat":
            self.lengths["turns"].append(len(row["messages"]))
        elif what == "instruction" and row.get("input"):
            self.tally["with_input"] += 1
            self.lengths["input"].append(len(row["input"]))
        self._judge(row, reply)

    def _judge(self, row: dict, reply: str) -> None:
        names = list(self.examine(row)) if self.examine else []
        whole = digest(row_of.content(row))
        if whole in self.seen:
            self.tally["exact_duplicates"] += 1
            names.append("repeated_row")
        self.seen.add(whole)
        if not reply.strip():
            self.tally["empty_outputs"] += 1
            names.append("empty_output")
        for name in dict.fromkeys(names):
            entry = self.problems.setdefault(name, {"rows": 0, "first": []})
            entry["rows"] += 1
            if len(entry["first"]) < SHOWN:
                entry["first"].append({"row": row.get("row"), "source": row.get("source", "")})

    def result(self) -> dict[str, Any]:
        rows, common = self.tally["rows"], {name: spread(values) for name, values in self.lengths.items() if values}
        alpaca = set(self.kinds) == {"instruction"} and abs(rows - ALPACA_ROWS) <= ALPACA_ROWS // 100
        return {
            "rows": rows,
            "kinds": dict(self.kinds),
            "sources": dict(self.sources),
            "unique_instructions": len(self.asked),
            "with_input": self.tally["with_input"],
            "empty_outputs": self.tally["empty_outputs"],
            "exact_duplicates": self.tally["exact_duplicates"],
            "categories": {name: self.groups[name] for name in categories.NAMES if self.groups[name]},
            "turns": common.pop("turns", None),
            "characters": common,
            "problems": dict(sorted(self.problems.items(), key=lambda item: -item[1]["rows"])),
            "looks_like_alpaca": alpaca,
        }


def spread(values: Any) -> dict[str, float | int]:
    """mean, median, p95 (linear interpolation), shortest, longest and sum of numbers; zeros for none."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.int64)
    if not numbers.size:
        return dict.fromkeys(("mean", "median", "p95", "shortest", "longest", "sum"), 0)
    median, high = np.percentile(numbers, (50, 95))
    return {
        "mean": round(float(numbers.mean()), 2),
        "median": float(median),
        "p95": float(high),
        "shortest": int(numbers.min()),
        "longest": int(numbers.max()),
        "sum": int(numbers.sum()),
    }


def short_names(sources: Iterable[str]) -> dict[str, str]:
    """Each source's last part as its name, or the whole where two would be called the same."""
    last = {name: name.rstrip("/").rpartition("/")[2] for name in sources}
    return {name: short if list(last.values()).count(short) == 1 else name for name, short in last.items()}
