"""Rows to token ids and labels: the prompt is -100, the answer and its end token train, every lost row is counted."""

import gc
import secrets
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from common import loss_weights, rendering
from common.errors import UserError
from common.templates import AnyTemplate

IGNORE = -100
TOO_LONG, TRAIN_ON = ("drop", "truncate"), ("answers", "last", "all")
CHUNK = 8192  # rows that are held as Python objects at once
SHOWN = 10  # rows named for each reason of a drop


@dataclass
class Counts:
    """What became of the rows of one side of a data set."""

    rows: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> rows
    truncated: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    by_turn: int = 0  # rows added for earlier turns, which the template writes in another way in the whole conversation
    noted: dict[str, int] = field(default_factory=dict)  # what else was done to rows' thinking -> rows
    special_text: int = 0  # rows whose text holds what looks like a special token; it was encoded as text
    weighted: int = 0  # rows kept of which tokens train with another weight than 1
    sources: dict[str, dict] = field(default_factory=dict)  # what each source gives to a mix, set by mix.mix
    dropped_rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # the first of each reason
    refused: list[str] = field(
        default_factory=list
    )  # why the template cannot take the first rows dropped as `template`

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "dropped": dict(self.dropped), "dropped_rows": dict(self.dropped_rows)}

    def line(self) -> str:
        """The counts in words."""
        lost = ", ".join(f"{number} dropped as {reason}" for reason, number in self.dropped.items()) or "none dropped"
        share = f"{100 * self.trained_tokens / self.tokens:.1f} %" if self.tokens else "none"
        cut = f", {self.truncated} truncated" if self.truncated else ""
        special = f"; special-token text in {self.special_text} rows, kept as text" if self.special_text else ""
        special += f"; template: {self.refused[0]}" if self.refused else ""
        special += f"; {self.weighted} rows have weights" if self.weighted else ""
        special += "".join(f"; {remark} in {rows} rows" for remark, rows in self.noted.items())
        if self.by_turn:
            special += f"; {self.by_turn} rows added for earlier turns, which the template changes once they go on"
        return f"{self.rows} rows, {self.kept} kept{cut}, {lost}; {self.tokens} tokens, {share} of them train{special}"

    def drop(self, reason: str, number: int) -> None:
        self.dropped[reason] += 1
        if len(self.dropped_rows[reason]) < SHOWN:
            self.dropped_rows[reason].append(number)

    def refuse(self, number: int, why: str) -> None:
        """Drop a row that the template cannot take."""
        self.drop("template", number)
        if len(self.refused) < SHOWN:
            self.refused.append(f"row {number}: {why}")

    def before(self, dropped: Counter) -> None:
        """Count rows that were dropped when their source was read: reason -> rows."""
        self.rows += dropped.total()
        self.dropped += dropped


def encode(
    rows: Iterable[dict],
    tokenizer: Any,
    template: AnyTemplate,
    max_length: int,
    too_long: str = "drop",
    train_on: str = "answers",
    folder: Path | None = None,
) -> tuple[Any, Counts]:
    """Input ids and labels of each row that fits.

    For a text template, labels start where the ids of prompt and of prompt + answer part (what TRL calls the longest
    common prefix, so a token that spans the boundary trains), and the end token follows once. For a chat template,
    every token of an assistant turn and of its end trains. Text in a row that looks like a special token is encoded as
    text.

    Args:
        too_long: `drop` rows of more than max_length tokens, or `truncate` them; a cut answer trains no end token.
        train_on: `answers` (every assistant turn), `last` (the last one), or `all` (the prompt, too).
        folder: keeps the result there for the next run with the same rows, tokenizer and template (common/cache.py).

    Returns:
        A datasets.Dataset with int32 lists `input_ids` and `labels`, `row` (its place in its source, from 1) and
        `source`; where rows have weights, `loss_weights`, too: float32 lists, one of each token, empty in a row whose
        tokens train with 1; and the counts. Reasons for a drop: `empty_output`, `too_long`, `nothing_trains` (the cut
        took all of the answer), `weight_0` (its weights say that nothing trains); of rows of data.load with
        bad_rows="drop", `template` (it cannot render them), too, and those for which rows were dropped on reading.

    Raises:
        UserError: rows that the template cannot render, all of them in one message.
    """
    for name, value, allowed in (("too_long", too_long, TOO_LONG), ("train_on", train_on, TRAIN_ON)):
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; it can be {' or '.join(allowed)}")
    drop = getattr(rows, "drop", False)
    settings = {"max_length": max_length, "too_long": too_long, "train_on": train_on, "drop": drop}
    if folder is not None:
        from common import cache

        encoded, counts = cache.encode(rows, tokenizer, template, settings, folder)
    else:
        counts = Counts()
        encoded = needed(_dataset(list(batches(rows, tokenizer, template, counts, **settings))), counts)
    counts.before(Counter(getattr(rows, "dropped", ())))
    return encoded, counts


def batches(
    rows: Iterable[dict],
    tokenizer: Any,
    template: AnyTemplate,
    counts: Counts,
    max_length: int,
    too_long: str,
    train_on: str,
    drop: bool = False,
) -> Iterator[Any]:
    """The encoded rows as Arrow record batches of at most CHUNK rows; `counts` grows on the way.

    Args:
        drop: leave out and count rows that the template cannot render.
    """
    render = rendering.renderer(tokenizer, template, train_on)
    remaining = iter(rows)
    problems: list[str] = []
    while chunk := list(islice(remaining, CHUNK)):
        keep = _to_learn(chunk, render, counts)
        with _no_collection():
            encoded, bad, special = render([row for _, row in keep])
            if drop and bad:
                for place, reason in bad.items():
                    counts.refuse(keep[place][0], reason)
                fine = [place for place in range(len(keep)) if place not in bad]
                keep, encoded, bad = [keep[place] for place in fine], [encoded[place] for place in fine], {}
            batch = None if bad else _batch(keep, encoded, counts, max_length, too_long == "truncate")
        counts.special_text += special
        problems += [f"row {keep[place][0]}: {reason}" for place, reason in bad.items()]
        if batch is not None:
            yield batch
    counts.noted = dict(render.noted)
    if problems:
        raise rendering.refused(template, problems)


def _to_learn(chunk: list[dict], render: Any, counts: Counts) -> list[tuple[int, dict]]:
    """(number, row) of what there is to learn in a chunk of rows; what there is not is counted."""
    numbers = [row.get("row", counts.rows + place) for place, row in enumerate(chunk, 1)]
    counts.rows += len(chunk)
    found = []
    for number, row in zip(numbers, chunk, strict=True):
        if loss_weights.context(row):
            counts.drop("weight_0", number)
        elif rendering.answers_nothing(row):
            counts.drop("empty_output", number)
        else:
            sequences = render.sequences(row)
            counts.rows += len(sequences) - 1
            counts.by_turn += len(sequences) - 1
            found += [(number, one) for one in sequences]
    return found


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage collection off: a chunk makes lists by the hundred thousand, and each collection walks all rows held."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _batch(
    keep: list[tuple[int, dict]], encoded: list[rendering.Encoded], counts: Counts, limit: int, truncate: bool
) -> Any:  # fmt: skip
    import numpy
    import pyarrow

    ids, ends, numbers, sources = array("i"), array("q", [0]), [], []
    turns = array("i"), array("i")  # +1 and -1 places of the trained stretches
    weights, weight_ends = array("f"), array("q", [0])
    for (number, row), (tokens, stretches) in zip(keep, encoded, strict=True):
        spans = loss_weights.of_stretches(row, stretches)
        if stretches and not spans:
            counts.drop("weight_0", number)
            continue
        if len(tokens) > limit:
            if not truncate:
                counts.drop("too_long", number)
                continue
            tokens = tokens[:limit]
            spans = [(start, min(end, limit), weight) for start, end, weight in spans if start < limit]
            if not spans:
                counts.drop("nothing_trains", number)
                continue
            counts.truncated += 1
        for start, end, _ in spans:
            turns[0].append(ends[-1] + start)
            turns[1].append(ends[-1] + end)
        if any(weight != 1 for *_, weight in spans):
            weights.extend(loss_weights.flat(spans, len(tokens)))
            counts.weighted += 1
        weight_ends.append(len(weights))
        ids.extend(tokens)
        ends.append(len(ids))
        numbers.append(number)
        sources.append(str(row.get("source", "")))
    values = numpy.frombuffer(ids, dtype=numpy.int32) if ids else numpy.empty(0, numpy.int32)
    edges = numpy.zeros(len(values) + 1, numpy.int8)
    numpy.add.at(edges, numpy.asarray(turns[0], dtype=numpy.int64), 1)
    numpy.add.at(edges, numpy.asarray(turns[1], dtype=numpy.int64), -1)
    trains = numpy.cumsum(edges[:-1], dtype=numpy.int8) > 0
    counts.kept += len(numbers)
    counts.tokens += len(values)
    counts.trained_tokens += int(trains.sum())
    offsets = pyarrow.array(numpy.asarray(ends, dtype=numpy.int32))
    labels = numpy.where(trains, values, numpy.int32(IGNORE))
    lists = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(flat)) for flat in (values, labels)]
    columns = [*lists, pyarrow.array(numbers, pyarrow.int64()), pyarrow.array(sources, pyarrow.string())]
    edges = pyarrow.array(numpy.asarray(weight_ends, dtype=numpy.int32))
    columns.append(pyarrow.ListArray.from_arrays(edges, pyarrow.array(numpy.asarray(weights, dtype=numpy.float32))))
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema())


def schema() -> Any:
    """The Arrow schema of encoded rows."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    weights = (loss_weights.COLUMN, pyarrow.list_(pyarrow.float32()))
    named = [("input_ids", ids), ("labels", ids), ("row", pyarrow.int64()), ("source", pyarrow.string()), weights]
    return pyarrow.schema(named)


def needed(dataset: Any, counts: Counts) -> Any:
    """The encoded rows without the column of weights where none has any."""
    return dataset if counts.weighted else dataset.remove_columns(loss_weights.COLUMN)


def _dataset(parts: list[Any]) -> Any:
    import datasets
    import pyarrow

    # Without a name for it, datasets would hash the whole table in a copy of it.
    return datasets.Dataset(pyarrow.Table.from_batches(parts, schema=schema()), fingerprint=secrets.token_hex(8))


def tokens(example: dict, tokenizer: Any) -> list[tuple[int, str, bool]]:
    """Id, text and whether it trains of each token; a character of several tokens stands at its last."""
    found, text = [], ""
    ids = example["input_ids"]
    for end, label in enumerate(example["labels"], 1):
        begin = max(0, end - 24)  # a window is enough to know the last token's text, and keeps long rows quick
        now = tokenizer.decode(ids[begin:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        before = tokenizer.decode(ids[begin : end - 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = now[len(before.rstrip("\ufffd")) :] if not now.endswith("\ufffd") or end == len(ids) else ""
        found.append((ids[end - 1], text, label != IGNORE))
    return found


def show(example: dict, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of each token and whether it trains, without the tokens that only begin a character."""
    return [(text, trains) for _, text, trains in tokens(example, tokenizer) if text]
