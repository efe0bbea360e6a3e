"""Mixing: shares hold, no row comes twice, and every number is in the report."""

import datasets
import numpy as np
import pytest

from tunebook.common.batching import mixing
from tunebook.common.errors import UserError


def encoded(**sources):
    """source -> (rows, mean tokens); the first id of each row is unlike all others."""
    generator, ids, names = np.random.default_rng(0), [], []
    for source, (count, mean) in sources.items():
        for _ in range(count):
            ids.append([len(ids)] + [0] * int(generator.integers(0, 2 * mean - 1)))
            names.append(source)
    order = generator.permutation(len(ids))
    return datasets.Dataset.from_dict(
        {"input_ids": [ids[place] for place in order], "source": [names[place] for place in order]},
        features=datasets.Features(
            {"input_ids": datasets.List(datasets.Value("int32")), "source": datasets.Value("string")}
        ),
    )


def check(before, after, report):
    """What the report says is what is there, and no row twice. Returns {source: (rows, tokens)}."""
    firsts = [ids[0] for ids in after["input_ids"]]
    assert len(set(firsts)) == len(firsts)
    known = {ids[0]: (ids, source) for ids, source in zip(before["input_ids"], before["source"], strict=True)}
    assert all(known[row["input_ids"][0]] == (row["input_ids"], row["source"]) for row in after)
    for source, entry in report.items():
        mine = [row["input_ids"] for row in after if row["source"] == source]
        assert entry["rows"] == len(mine) and entry["tokens"] == sum(map(len, mine))
        assert entry["of_rows"] == sum(name == source for name in before["source"])
    return {source: (entry["rows"], entry["tokens"]) for source, entry in report.items()}


def test_one_source_without_a_share_is_unchanged():
    rows = encoded(a=(20, 5))
    same, report = mixing.mix(rows, {"a": None})
    assert same is rows and report["a"]["rows"] == report["a"]["of_rows"] == 20
    check(rows, same, report)


def test_shares_by_rows():
    rows = encoded(a=(1000, 10), b=(1000, 40))
    found = check(rows, *mixing.mix(rows, {"a": 0.7, "b": 0.3}))
    assert found["a"][0] == 1000  # the scarcest gives all it has
    assert abs(found["b"][0] - 1000 * 0.3 / 0.7) <= 1


def test_shares_by_tokens():
    rows = encoded(a=(800, 10), b=(500, 40), c=(900, 25))
    found = check(rows, *mixing.mix(rows, {"a": 0.2, "b": 0.5, "c": 0.3}, unit="tokens"))
    total = sum(tokens for _, tokens in found.values())
    for source, share in {"a": 0.2, "b": 0.5, "c": 0.3}.items():
        assert abs(found[source][1] - share * total) < 80  # a row
    assert any(found[source][0] == count for source, count in {"a": 800, "b": 500, "c": 900}.items())


def test_counts_are_rows_and_too_few_is_reported():
    rows = encoded(a=(100, 5), b=(30, 5))
    after, report = mixing.mix(rows, {"a": 40, "b": 50})
    assert check(rows, after, report)["a"][0] == 40 and report["b"] | {"tokens": 0} == {
        "rows": 30, "tokens": 0, "of_rows": 30, "asked": 50}  # fmt: skip
    assert "30 of 30 rows, 50 were asked for" in mixing.summary(report)


def test_counts_beside_shares_and_sources_without():
    rows = encoded(a=(200, 5), b=(100, 5), c=(300, 5))
    assert [n for n, _ in check(rows, *mixing.mix(rows, {"a": 10, "b": 0.5, "c": 0.5})).values()] == [10, 100, 100]
    assert [n for n, _ in check(rows, *mixing.mix(rows, {"a": 10, "b": 0.5, "c": 20})).values()] == [10, 50, 20]
    assert [n for n, _ in check(rows, *mixing.mix(rows, {"a": 10, "b": None, "c": None})).values()] == [10, 100, 300]
    assert [n for n, _ in check(rows, *mixing.mix(rows, {"a": 0.5, "b": None, "c": None})).values()] == [200, 100, 100]


def test_a_share_of_one_source():
    rows = encoded(a=(200, 5))
    assert check(rows, *mixing.mix(rows, {"a": 0.25}))["a"][0] == 50
    assert check(rows, *mixing.mix(rows, {"a": 1.0}))["a"][0] == 200


def test_seeded():
    rows = encoded(a=(200, 5), b=(200, 5))
    first, again, other = (mixing.mix(rows, {"a": 0.5, "b": 0.1}, seed=seed)[0]["input_ids"][:] for seed in (1, 1, 2))
    assert first == again != other
    assert len({row["source"] for row in mixing.mix(rows, {"a": 0.5, "b": 0.5})[0].select(range(20))}) == 2  # shuffled


def test_rows_that_were_selected_before_are_counted_right():
    rows = encoded(a=(50, 5), b=(50, 9)).select(range(10, 90, 2))
    check(rows, *mixing.mix(rows, {"a": 0.5, "b": 0.5}, unit="tokens"))


def test_what_cannot_be_mixed():
    rows = encoded(a=(20, 5))
    with pytest.raises(UserError, match="b: no row is left"):
        mixing.mix(rows, {"a": 0.5, "b": 0.5})
    with pytest.raises(UserError, match="leave nothing for b"):
        mixing.mix(encoded(a=(5, 5), b=(5, 5)), {"a": 1.0, "b": None})
    with pytest.raises(UserError, match="rows or tokens"):
        mixing.mix(rows, {"a": 0.5}, unit="bytes")
    with pytest.raises(ValueError, match="rows of a"):
        mixing.mix(rows, {"b": None})
