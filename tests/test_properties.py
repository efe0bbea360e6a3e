"""What holds for all data, on data that hypothesis makes: reading, packing, splitting and encoding lose nothing."""

import json
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunebook.common import data
from tunebook.common.batching import packing
from tunebook.common.data import json_array, readers, splitting
from tunebook.common.errors import RowErrors
from tunebook.common.preference import pairs
from tunebook.common.tokens import encoding, lengths
from tunebook.common.tokens.templates import ALPACA

some = settings(
    max_examples=50, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
words = st.text(min_size=1).filter(str.strip)
values = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text()
nested = st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- reading


@some
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), nested, max_size=3), min_size=1, max_size=4),
    ascii=st.booleans(),
    indent=st.none() | st.just(1),
    chunk=st.integers(1, 40),
)
def test_a_json_list_is_read_as_by_the_json_module(monkeypatch, folder, rows, ascii, indent, chunk):
    """However its pieces fall: a chunk of the file ends within characters, escapes and numbers."""
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=ascii, indent=indent), encoding="utf-8")
    problems = RowErrors("rows.json")
    found = [value for _, value in readers.read(folder / "rows.json").rows(problems)]
    problems.stop()
    assert found == json.loads((folder / "rows.json").read_text(encoding="utf-8")) == rows


def turns(last):
    """User and assistant in turn, from a system text or none."""
    turn = st.tuples(words, words).map(
        lambda two: [{"role": role, "content": text} for role, text in zip(("user", "assistant"), two, strict=True)]
    )
    talks = st.lists(turn, min_size=1, max_size=3).map(lambda found: list(chain.from_iterable(found)))
    system = st.just([]) | words.map(lambda text: [{"role": "system", "content": text}])
    return st.tuples(system, talks).map(lambda found: found[0] + (found[1] if last else found[1][:-1]))


instructions = st.fixed_dictionaries({"instruction": words, "input": st.text(), "output": words})
rejected = st.fixed_dictionaries({"prompt": turns(False), "chosen": words, "rejected": words}).map(
    lambda row: row | {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
)


def kept(folder, rows, reads=data.SchemaReader):
    """The rows of a folder's train side, without what tells where they are from."""
    for name in ("train", "validation", "test"):
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = data.load(str(folder), reads=reads)["train"]
    return [{name: value for name, value in row.items() if name not in ("row", "source")} for row in found]


@some
@given(rows=st.lists(instructions, min_size=1, max_size=5))
def test_instructions_come_back(folder, rows):
    assert kept(folder, rows) == rows


@some
@given(rows=st.lists(turns(True).map(lambda found: {"messages": found}), min_size=1, max_size=4))
def test_conversations_come_back_from_either_names(folder, rows):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [
        {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in row["messages"]]}
        for row in rows
    ]
    assert kept(folder, rows) == kept(folder, shared) == rows


@some
@given(rows=st.lists(rejected, min_size=1, max_size=4))
def test_pairs_come_back(folder, rows):
    for found, row in zip(kept(folder, rows, pairs.PairReader), rows, strict=True):
        assert found["messages"] == row["prompt"] + row["chosen"]
        assert found["rejected"]["messages"] == row["prompt"] + row["rejected"]


# --- packing


@some
@given(limit=st.integers(1, 64), data=st.data())
def test_packing_is_a_partition(limit, data):
    lengths = data.draw(st.lists(st.integers(1, limit), max_size=60))
    bins = packing.pack(lengths, limit)
    assert sorted(chain.from_iterable(bins)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[place] for place in members) <= limit for members in bins)


@settings(some, max_examples=15)
@given(limit=st.integers(1, 32), data=st.data())
def test_packing_is_that_of_trl(limit, data):
    """As many sequences, filled alike; which of two rows of one length comes first is TRL's own."""
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    lengths = data.draw(st.lists(st.integers(1, limit), min_size=1, max_size=30))
    rows = Dataset.from_dict({"input_ids": [[place] * length for place, length in enumerate(lengths)]})
    theirs = sorted(map(len, pack_dataset(rows, limit, "bfd")["input_ids"]))
    mine = sorted(sum(lengths[place] for place in members) for members in packing.pack(lengths, limit))
    assert mine == theirs


# --- splitting


@some
@given(texts=st.lists(st.text("abc ", max_size=12), max_size=40), seed=st.integers(0, 5),
       sizes=st.lists(st.integers(1, 9), min_size=2, max_size=3))  # fmt: skip
def test_a_split_is_a_partition_without_leaks(texts, seed, sizes):
    found = splitting.assign(texts, sizes, seed=seed)
    assert len(found) == len(texts) and set(found.tolist()) <= set(range(len(sizes)))
    assert not len(splitting.leaks(texts, found))
    alike = {}
    for text, side in zip(texts, found.tolist(), strict=True):
        assert alike.setdefault(" ".join(text.casefold().split()), side) == side


# --- encoding


@some
@given(rows=st.lists(instructions, min_size=1, max_size=4))
def test_parts_are_encoded_as_the_whole(tokenizer, rows):
    rows = [row | {"row": place, "source": ""} for place, row in enumerate(rows, 1)]
    encoded, counts = encoding.encode(rows, tokenizer, ALPACA, 100_000)
    assert counts.kept == len(rows)
    for row, found in zip(rows, encoded, strict=True):
        whole = tokenizer(ALPACA.prompt(row) + ALPACA.completion(row), split_special_tokens=True).input_ids
        assert found["input_ids"] == [*whole, tokenizer.eos_token_id]
        trained = [label for label in found["labels"] if label != lengths.IGNORE_INDEX]
        assert trained == found["input_ids"][len(whole) + 1 - len(trained) :]
