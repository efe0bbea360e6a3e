"""What a set holds: rows, lengths, repeats, categories, problems. One pass over the rows; what it keeps is numbers."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from common import categories
from common.columns import kind

SHOWN = 10  # row numbers that are listed for a problem; the rest are counted
CANDIDATES = (256, 512, 1024, 2048, 4096)  # lengths people train at
IGNORE = -100

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


def instruction(row: dict) -> str:
    """What a row asks: its instruction, its prompt, or the first user turn of a chat."""
    if "messages" in row:
        return next((_text(turn) for turn in row["messages"] if turn["role"] == "user"), "")
    return row["prompt"] if "prompt" in row else row["instruction"]


def answer(row: dict) -> str:
    """What a row's answer is: its output, its completion, or all assistant turns of a chat (tool calls count)."""
    if "messages" in row:
        said = (turn for turn in row["messages"] if turn["role"] == "assistant")
        return "\n".join(
            _text(turn) + (json.dumps(turn["tool_calls"]) if turn.get("tool_calls") else "") for turn in said
        )
    return row["completion"] if "completion" in row else row["output"]


def _text(turn: dict) -> str:
    content = turn.get("content")
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)


def survey(rows: Iterable[dict], examine: Examine | None = None) -> dict[str, Any]:
    """Count what canonical rows hold.

    Args:
        rows: canonical rows with `row` and `source`.
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
        question, reply, what = instruction(row), answer(row), kind(row)
        self.tally["rows"] += 1
        self.kinds[what] += 1
        self.sources[row.get("source", "")] += 1
        self.groups[categories.of(question)] += 1
        self.asked.add(_digest(question))
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
        whole = _digest(_content(row))
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


def _content(row: dict) -> str:
    """All of a row that training sees, as one text that no other row can share."""
    if "messages" in row:
        return json.dumps([row["messages"], row.get("tools")], sort_keys=True, ensure_ascii=False)
    names = ("system", "prompt", "completion") if "prompt" in row else ("system", "instruction", "input", "output")
    return json.dumps([row.get(name) or "" for name in names], ensure_ascii=False)


def _digest(text: str) -> bytes:
    """16 bytes that stand for a text, so that a million of them fit in memory."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def spread(values: Any) -> dict[str, float | int]:
    """mean, median, p95 (linear between neighbours), shortest, longest and sum of numbers; zeros for none."""
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


def lengths(dataset: Any) -> tuple[Any, Any]:
    """Tokens of each encoded row and how many of them train, as two int64 arrays in the rows' order.

    Args:
        dataset: what masking.encode gives: lists input_ids and labels.
    """
    import numpy as np

    total, trained = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in dataset.with_format("arrow").iter(batch_size=10_000):
        labels = batch["labels"].combine_chunks()
        starts = labels.offsets.to_numpy().astype(np.int64)
        flat = labels.values.to_numpy()[: starts[-1]] != IGNORE
        before = np.concatenate(([0], np.cumsum(flat)))
        total.append(np.diff(starts))
        trained.append(before[starts[1:]] - before[starts[:-1]])
    return np.concatenate(total), np.concatenate(trained)


def tokens(total: Any, trained: Any) -> dict[str, Any]:
    """Token counts of encoded rows: spreads, the share that trains, and what each candidate length would cost.

    Args:
        total, trained: int arrays as `lengths` gives them.

    Returns:
        rows, tokens, trained_tokens, trained_share, spread, trained_spread, and cuts: a list of
        {"max_length", "rows_over", "rows_share", "dropped_share", "cut_share"}; the last two are shares of all tokens
        lost where the longer rows are dropped whole, or cut.
    """
    import numpy as np

    every = int(total.sum())
    cuts = []
    for limit in CANDIDATES:
        over = total[total > limit]
        share = 1 / (every or 1)
        cuts.append(
            {
                "max_length": limit,
                "rows_over": int(over.size),
                "rows_share": over.size / (total.size or 1),
                "dropped_share": float(over.sum() * share),
                "cut_share": float((over - limit).sum() * share),
            }
        )
    return {
        "rows": int(total.size),
        "tokens": every,
        "trained_tokens": int(trained.sum()),
        "trained_share": float(np.sum(trained) / (every or 1)),
        "spread": spread(total),
        "trained_spread": spread(trained),
        "cuts": cuts,
    }


def histogram(values: Any, bins: int = 40) -> dict[str, Any]:
    """Counts in equal steps up to the 99.5th percentile; what lies above is in the last bar.

    Returns:
        {"step": width of a bar, "counts": [int], "beyond": how many of the last bar lie above it}.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=np.int64)
    if not numbers.size:
        return {"step": 1, "counts": [], "beyond": 0}
    top = max(float(np.percentile(numbers, 99.5)), 1.0)
    step = int(top) // bins + 1
    places = np.minimum(numbers // step, bins - 1)
    counts = np.bincount(places, minlength=1)
    return {"step": step, "counts": counts.tolist(), "beyond": int((numbers >= step * bins).sum())}
