"""Rows that a user gives to train and to a held-out side are counted at the start of a run."""

import json

import pytest

from tunebook.common import data
from tunebook.common.data import loading

ROWS = [{"instruction": f"Say {number}.", "input": "", "output": str(number)} for number in range(12)]


def write(folder, **sides):
    folder.mkdir(exist_ok=True)
    for side, rows in sides.items():
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def told(*words):
    return [note for note in data.load(list(words)).notes if "are training rows" in note]


@pytest.mark.parametrize("held", [0, 64 << 20])  # bytes that are kept in memory: none, or all of it
def test_equal_rows_are_counted_by_side(tmp_path, monkeypatch, held):
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", held)
    other = [
        {**ROWS[3], "output": "three"},
        {"id": 7, "instruction": "Say 4.", "output": "4"},
    ]  # another answer; the same
    folder = write(tmp_path / "both", train=ROWS[:8], validation=[ROWS[9], *other], test=ROWS[6:10])
    validation, test = told(folder)
    assert validation.startswith("warning: 1 of 3 validation rows are training rows, too (the first is row 3)")
    assert test.startswith("warning: 2 of 4 test rows are training rows, too (the first is row 1)")


def test_nothing_is_said_where_nothing_overlaps(tmp_path):
    assert told(write(tmp_path / "apart", train=ROWS[:8], test=ROWS[8:])) == []
    assert told("pocket") == []


def test_a_second_source_may_hold_what_the_first_keeps_out(tmp_path):
    one, two = (write(tmp_path / name, train=rows, test=ROWS[:2]) for name, rows in (("a", ROWS[4:]), ("b", ROWS[:3])))
    assert len(told(one, two)) == 1


def test_chats_and_pairs(tmp_path):
    turns = [{"role": "user", "content": "Say 1."}, {"role": "assistant", "content": "1"}]
    chats = [{"messages": turns}, {"messages": [{"role": "user", "content": "?"}, turns[1]]}]
    folder = write(tmp_path / "chats", train=chats, validation=chats[1:], test=[{"messages": [*turns, *turns]}])
    assert [note.split(" (")[0] for note in told(folder)] == ["warning: 1 of 1 validation rows are training rows, too"]

    from tunebook.common.preference import pairs

    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "d"}]
    folder = write(tmp_path / "pairs", train=rows[:1], validation=rows, test=rows[1:])
    (note,) = [note for note in pairs.load([folder]).notes if "are training rows" in note]
    assert note.startswith("warning: 1 of 2 validation rows")
