"""Splits: sizes, seeds, groups whole, strata, folds, and a leak check that finds what is planted."""

import json
import random

import numpy as np
import pytest
from paths import DATA, needs_data

from tunebook.common.data import dedup, splitting
from tunebook.common.data.texts import normalized
from tunebook.common.errors import UserError

WORDS = ["river", "stone", "lamp", "green", "seven", "slowly", "under", "bright", "market", "window", "carry", "ocean"]


def _texts(count, copies=0, seed=0):
    """Unlike texts, then `copies` near-duplicates of some of them, shuffled."""
    chance = random.Random(seed)
    texts = ["".join(chance.choice("abcdefghijklmnopqrstuvwxyz    ") for _ in range(60)) for _ in range(count)]
    for _ in range(copies):
        texts.append(chance.choice(texts[:count]) + chance.choice(["!", ".", " ?", " x"]))
    chance.shuffle(texts)
    return texts


def test_sizes_and_seed():
    texts = _texts(4000, copies=400)
    found = splitting.assign(texts)
    assert found.dtype == np.int8
    assert np.bincount(found).tolist() == [3740, 440, 220]
    assert np.array_equal(found, splitting.assign(texts))
    other = splitting.assign(texts, seed=1)
    assert not np.array_equal(found, other)
    assert np.bincount(other).tolist() == [3740, 440, 220]


def test_no_near_duplicates_across_sides():
    texts = _texts(1500, copies=1500, seed=1)
    found = splitting.assign(texts, (50, 30, 20))
    assert splitting.leaks(texts, found) == []
    pairs = dedup.near(texts)
    assert len(pairs) > 1000
    assert all(found[i] == found[j] for i, j, _ in pairs)


def test_leaks_finds_what_a_careless_split_lets_through():
    texts = ["The green lamp stands at the window.", "Carry the stone.", "the green lamp stands at the window!", "Go."]
    texts += ["carry  the STONE.", "Carry the stone."]
    found = np.array([0, 0, 1, 2, 2, 0])
    assert [(i, j) for i, j, _ in splitting.leaks(texts, found)] == [(0, 2), (1, 4)]
    assert splitting.leaks(texts, np.zeros(6, dtype=np.int8)) == []


def test_leaks_equals_near_over_sides():
    texts = _texts(300, copies=500, seed=2)
    found = np.random.default_rng(0).integers(0, 3, len(texts))
    unique = list({normalized(text): place for place, text in enumerate(texts)}.values())
    texts, found = [texts[place] for place in unique], found[unique]
    assert splitting.leaks(texts, found) == [pair for pair in dedup.near(texts) if found[pair[0]] != found[pair[1]]]


def test_the_order_of_the_rows_does_not_matter():
    texts = _texts(500, copies=100, seed=3)
    order = np.random.default_rng(0).permutation(len(texts))
    found = splitting.assign(texts, seed=5)
    assert np.array_equal(splitting.assign([texts[place] for place in order], seed=5), found[order])


def test_strata_are_divided_alike():
    texts = _texts(3000, copies=300, seed=4)
    strata = ["rare" if place % 20 == 0 else "common" if place % 2 else "usual" for place in range(len(texts))]
    found = splitting.assign(texts, strata=strata)
    assert np.abs(np.bincount(found) / len(found) - [0.85, 0.1, 0.05]).max() < 0.005
    for name in set(strata):
        of_name = found[np.array(strata) == name]
        assert np.abs(np.bincount(of_name, minlength=3) / len(of_name) - [0.85, 0.1, 0.05]).max() < 0.04
    assert splitting.leaks(texts, found) == []


def test_length_strata():
    texts = ["a" * length for length in range(1, 101)]
    names = splitting.length_strata(texts, bins=4)
    assert {name: names.count(name) for name in sorted(set(names))} == {f"length bin {n}": 25 for n in range(1, 5)}
    assert splitting.length_strata([]) == []
    assert set(splitting.length_strata(["same"] * 5)) == {"length bin 1"}


def test_folds():
    texts = _texts(200, copies=53, seed=5)
    found = splitting.folds(texts, 5)
    assert np.bincount(found).max() - np.bincount(found).min() <= 1
    assert splitting.leaks(texts, found) == []
    with pytest.raises(UserError, match="expected 2 to 100"):
        splitting.folds(texts, 1)
    with pytest.raises(UserError, match="near-duplicates stay in one fold"):
        splitting.folds(["one", "ONE", "two"], 3)


@pytest.mark.parametrize("count", range(7))
def test_tiny_sets(count):
    found = splitting.assign(_texts(count))
    assert len(found) == count
    assert set(found.tolist()) == (set() if not count else {0, 1, 2} if count >= 3 else {0} if count == 1 else {0, 1})


def test_a_group_that_fits_nowhere_is_still_whole():
    texts = [f"Please add the numbers {n} and {n + 1} and then write the sum below." for n in range(300)]
    texts += _texts(20)
    found = splitting.assign(texts, (34, 33, 33), threshold=0.6)
    assert len(set(found[:300].tolist())) == 1
    assert set(found.tolist()) == {0, 1, 2}


def test_large_sets_group_exact_duplicates_and_say_so(monkeypatch, caplog):
    monkeypatch.setattr(splitting, "NEAR_DUPLICATE_LIMIT", 100)
    texts = _texts(150, copies=60, seed=6)
    texts[3] = texts[9].upper()
    found = splitting.assign(texts)
    assert "near-duplicates are not looked for: 210 rows are more than 100" in caplog.text
    assert found[3] == found[9]
    assert splitting.leaks(texts, found)
    assert splitting.leaks(texts, splitting.assign(texts, near=True)) == []


@pytest.mark.parametrize("sizes", [(100,), (-1, 50, 51), (0, 0, 0), (float("nan"), 1, 1)])
def test_wrong_sizes(sizes):
    with pytest.raises(UserError, match="expected at least two shares"):
        splitting.assign(["a", "b"], sizes)


def test_a_size_of_zero_stays_empty():
    assert np.bincount(splitting.assign(_texts(100), (90, 10, 0)), minlength=3).tolist() == [90, 10, 0]
    assert np.bincount(splitting.assign(_texts(100), (0, 10, 90)), minlength=3).tolist() == [0, 10, 90]


def test_wrong_strata():
    with pytest.raises(UserError, match="1 names for 2 rows"):
        splitting.assign(["a", "b"], strata=["x"])


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("count", [10_000, pytest.param(52_002, marks=pytest.mark.slow)])
def test_alpaca(count):
    rows = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))
    texts = [row["instruction"] + "\n" + row["input"] for row in rows[:count]]
    found = splitting.assign(texts)
    assert np.abs(np.bincount(found) / len(found) - [0.85, 0.1, 0.05]).max() < 0.005
    assert splitting.leaks(texts, found) == []
    assert np.array_equal(found, splitting.assign(texts))
    careless = np.random.default_rng(0).choice(3, len(texts), p=[0.85, 0.1, 0.05])
    assert splitting.leaks(texts, careless)  # there is something to find


def test_documents_in_the_system_text_are_compared(tmp_path):
    from tunebook.common import data

    same = ["Who wrote this?"] * 60
    documents = _texts(60, seed=8)
    texts = splitting.asked(same, documents)
    assert np.bincount(splitting.assign(texts)).tolist() == [51, 6, 3]
    one, stamped = ["Be kind."] * 60, [f"It is {n} o'clock. You are a kind and careful helper." for n in range(60)]
    questions = _texts(60, seed=9)
    for systems in (one, stamped, [""] * 60, documents):  # the questions are enough
        assert splitting.asked(questions, systems) is questions
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in
                      (("system", document), ("user", "Who wrote this?"), ("assistant", "I"))]}
        for document in documents
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [len(side) for side in data.load(str(tmp_path / "a.jsonl")).values()] == [51, 6, 3]


def test_an_empty_side_is_explained(tmp_path):
    from tunebook.common import data

    same = ["Who wrote this?"] * 60
    says = splitting.unfilled(same, splitting.assign(same), splitting.SIZES)
    assert says.startswith("no rows for validation and test: 60 of 60 rows ask nearly the same")
    assert splitting.unfilled(["a"], splitting.assign(["a"]), splitting.SIZES).endswith("1 rows are too few")
    texts = _texts(40)
    assert splitting.unfilled(texts, splitting.assign(texts), splitting.SIZES) == ""
    assert splitting.unfilled(texts, splitting.assign(texts, (90, 10, 0)), (90, 10, 0)) == ""
    rows = "\n".join(json.dumps({"instruction": text, "output": str(n)}) for n, text in enumerate(same))
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    assert says in data.load(str(tmp_path / "a.jsonl")).notes
