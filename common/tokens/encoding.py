"""Rows to token ids and labels: prompts are masked, answers and end tokens train, every dropped row is counted."""

import gc
import hashlib
import json
import secrets
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tunebook.common.data import rows as row_of
from tunebook.common.data import tools
from tunebook.common.data.rows import Row, answers_nothing, is_context
from tunebook.common.data.rows import weight as row_weight
from tunebook.common.errors import UserError
from tunebook.common.process import progress
from tunebook.common.tokens import (
    boundaries,
    chat_templates,
    jinja_templates,
    placeholders,
    rendering,
    templates,
    text_rendering,
    thinking,
    tokenization,
    tool_templates,
    trained_spans,
    turn_edges,
    word_cache,
)
from tunebook.common.tokens.cache import cached
from tunebook.common.tokens.encoding_stats import EncodingStats
from tunebook.common.tokens.lengths import IGNORE_INDEX, LOSS_WEIGHTS
from tunebook.common.tokens.templates import AnyTemplate
from tunebook.common.tokens.text_rendering import Encoded, WeightedSpan

# whose text is part of a dataset's key, beside this file's
CODE = (
    chat_templates, boundaries, turn_edges, jinja_templates, placeholders, rendering, row_of, trained_spans, templates,
    text_rendering, thinking, tokenization, tool_templates, tools, word_cache,
)  # fmt: skip
TOO_LONG, TRAIN_ON = ("drop", "truncate"), ("assistant", "last_assistant", "all")
CHUNK = 8192  # rows that are held as Python objects at once


def encode(
    rows: Iterable[dict],
    tokenizer: Any,
    template: AnyTemplate,
    max_length: int,
    too_long: str = "drop",
    train_on: str = "assistant",
    folder: Path | None = None,
) -> tuple[Any, EncodingStats]:
    """Input ids and labels of each row that fits.

    For a text template, labels start at the longest common prefix of the ids of prompt and of prompt + answer (as in
    TRL), and the end token follows once. For a chat template, every token of an assistant turn and of its end trains.
    Text in a row that looks like a special token is encoded as text.

    Args:
        too_long: `drop` rows of more than max_length tokens, or `truncate` them; a cut answer trains no end token.
        train_on: `assistant` (every assistant turn), `last_assistant` (the last one), or `all` (the prompt, too).
        folder: caches the result there for the next run with the same rows, tokenizer and template (tokens/cache.py).

    Returns:
        A datasets.Dataset with int32 lists `input_ids` and `labels`, `row` (its place in its source, from 1), `source`
        and, where rows have weights, float32 lists `loss_weights`, empty in a row whose tokens all have weight 1; and
        the stats. Reasons for a drop: `empty_output`, `too_long`, `nothing_trains` (truncation took all of the
        answer), `weight_0`; of rows of data.load with bad_rows="drop", `template` (it cannot render them), and those
        of reading.

    Raises:
        UserError: rows that the template cannot render, all of them in one message.
    """
    for name, value, allowed in (("too_long", too_long, TOO_LONG), ("train_on", train_on, TRAIN_ON)):
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; it can be {' or '.join(allowed)}")
    drop = getattr(rows, "drop", False)
    settings = {"max_length": max_length, "too_long": too_long, "train_on": train_on, "drop": drop}
    stats = EncodingStats()
    made = batches(_tracked(rows), tokenizer, template, stats, **settings)
    if folder is None:
        encoded = _dataset(list(made))
    else:
        key = key_of(rows, tokenizer, template, settings)
        encoded, record = cached(folder, key, schema(), made, stats.as_dict)
        stats = EncodingStats.from_dict(record)
    if not stats.weighted:
        encoded = encoded.remove_columns(LOSS_WEIGHTS)
    stats.add_dropped(Counter(getattr(rows, "dropped", ())))
    return encoded, stats


def _tracked(rows: Iterable[dict]) -> Iterator[dict]:
    return progress.track(rows, "encoding", len(rows) if isinstance(rows, Sized) else None, "rows")


def key_of(rows: Iterable[Row], tokenizer: Any, template: AnyTemplate, settings: dict[str, Any]) -> str:
    """The cache key: a hash of the rows, the tokenizer, the template, the settings and the code."""
    digest = hashlib.sha256()
    for module in CODE:
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
    digest.update(json.dumps([tokenizer.eos_token, repr(template), settings], sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":"), default=str).encode())
    return digest.hexdigest()[:32]


def batches(
    rows: Iterable[dict],
    tokenizer: Any,
    template: AnyTemplate,
    stats: EncodingStats,
    max_length: int,
    too_long: str,
    train_on: str,
    drop: bool = False,
) -> Iterator[Any]:
    """The encoded rows as Arrow record batches of at most CHUNK rows; `stats` is updated on the way."""
    render = rendering.renderer(tokenizer, template, train_on)
    remaining = iter(rows)
    problems: list[str] = []
    while chunk := list(islice(remaining, CHUNK)):
        keep = _to_learn(chunk, render, stats)
        with _no_collection():
            encoded, bad, special = render([row for _, row in keep])
            if drop and bad:
                for place, reason in bad.items():
                    stats.refuse(keep[place][0], reason)
                fine = [place for place in range(len(keep)) if place not in bad]
                keep, encoded, bad = [keep[place] for place in fine], [encoded[place] for place in fine], {}
            batch = None if bad else _batch(keep, encoded, stats, max_length, too_long == "truncate")
        stats.special_text += special
        problems += [f"row {keep[place][0]}: {reason}" for place, reason in bad.items()]
        if batch is not None:
            yield batch
    stats.noted = dict(render.noted)
    if problems:
        raise rendering.refused(template, problems)


def _to_learn(chunk: list[dict], render: Any, stats: EncodingStats) -> list[tuple[int, dict]]:
    """(number, row) of what there is to learn in a chunk of rows; what there is not is counted."""
    numbers = [row.get("row", stats.rows + place) for place, row in enumerate(chunk, 1)]
    stats.rows += len(chunk)
    trainable = []
    for number, row in zip(numbers, chunk, strict=True):
        if is_context(row):
            stats.drop("weight_0", number)
        elif answers_nothing(row):
            stats.drop("empty_output", number)
        else:
            sequences = render.sequences(row)
            stats.rows += len(sequences) - 1
            stats.by_turn += len(sequences) - 1
            trainable += [(number, sequence) for sequence in sequences]
    return trainable


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
    keep: list[tuple[int, dict]], encoded: list[Encoded], stats: EncodingStats, limit: int, truncate: bool
) -> Any:  # fmt: skip
    import numpy
    import pyarrow

    ids, ends, numbers, sources = array("i"), array("q", [0]), [], []
    turns = array("i"), array("i")  # +1 and -1 places of the trained stretches
    weights, weight_ends = array("f"), array("q", [0])
    for (number, row), (tokens, trained) in zip(keep, encoded, strict=True):
        factor = row_weight(row)
        spans = [(start, end, weight * factor) for start, end, weight in trained if weight]
        if trained and not spans:
            stats.drop("weight_0", number)
            continue
        if len(tokens) > limit:
            if not truncate:
                stats.drop("too_long", number)
                continue
            tokens = tokens[:limit]
            spans = [(start, min(end, limit), weight) for start, end, weight in spans if start < limit]
            if not spans:
                stats.drop("nothing_trains", number)
                continue
            stats.truncated += 1
        for start, end, _ in spans:
            turns[0].append(ends[-1] + start)
            turns[1].append(ends[-1] + end)
        if any(weight != 1 for *_, weight in spans):
            weights.extend(_of_tokens(spans, len(tokens)))
            stats.weighted += 1
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
    stats.kept += len(numbers)
    stats.tokens += len(values)
    stats.trained_tokens += int(trains.sum())
    offsets = pyarrow.array(numpy.asarray(ends, dtype=numpy.int32))
    labels = numpy.where(trains, values, numpy.int32(IGNORE_INDEX))
    lists = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(flat)) for flat in (values, labels)]
    columns = [*lists, pyarrow.array(numbers, pyarrow.int64()), pyarrow.array(sources, pyarrow.string())]
    edges = pyarrow.array(numpy.asarray(weight_ends, dtype=numpy.int32))
    columns.append(pyarrow.ListArray.from_arrays(edges, pyarrow.array(numpy.asarray(weights, dtype=numpy.float32))))
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema())


def _of_tokens(spans: list[WeightedSpan], length: int) -> list[float]:
    """The weight of each token; 0 outside the spans."""
    weights = [0.0] * length
    for start, end, weight in spans:
        weights[start:end] = [weight] * (end - start)
    return weights


def schema() -> Any:
    """The Arrow schema of encoded rows."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    weights = (LOSS_WEIGHTS, pyarrow.list_(pyarrow.float32()))
    named = [("input_ids", ids), ("labels", ids), ("row", pyarrow.int64()), ("source", pyarrow.string()), weights]
    return pyarrow.schema(named)


def _dataset(parts: list[Any]) -> Any:
    import datasets
    import pyarrow

    # Without a name for it, datasets would hash the whole table in a copy of it.
    return datasets.Dataset(pyarrow.Table.from_batches(parts, schema=schema()), fingerprint=secrets.token_hex(8))
