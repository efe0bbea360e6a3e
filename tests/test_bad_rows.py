"""Rows that are wrong: refused with the flag that drops them, or dropped and counted by reason, to the report."""

import gzip
import json
import random
import re
from collections import Counter

import pytest
from paths import SHARED

from tunebook.common import data, generation, preference
from tunebook.common.data import loading
from tunebook.common.errors import REMEDY, UserError
from tunebook.common.preference import pairs
from tunebook.common.tokens import encoding, encoding_stats, templates, tokenization

CHANCE = random.Random(1)


def words(count=8):
    return "".join(CHANCE.choice("abcdefghijklmnopqrst    ") for _ in range(6 * count))


def chat(*roles):
    return {"messages": [{"role": role, "content": words()} for role in roles]}


GOOD = [chat("user", "assistant") for _ in range(40)]
LATE = chat("user", "assistant", "user")
FIRST = chat("assistant", "user", "assistant")


@pytest.fixture(scope="module")
def pocket():
    return tokenization.load("pocket")[0]


def write(path, rows, broken=()):
    lines = [json.dumps(row) for row in rows]
    for place, text in broken:
        lines.insert(place, text)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("held", [True, False])
def test_they_are_dropped_and_counted_to_the_report(tmp_path, monkeypatch, pocket, held):
    if not held:
        monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    broken = ((3, '{"messages": '), (9, "\ufeff{}"))
    name = write(tmp_path / "a.jsonl", [*GOOD, LATE, FIRST, {"images": [1], **GOOD[0]}], broken)
    with pytest.raises(UserError) as error:
        data.load(name)
    assert str(error.value).endswith(REMEDY) and "line 4: not JSON" in str(error.value)
    assert "expected `messages`" not in str(error.value)  # that is not what is wrong
    sides = data.load(name, bad_rows="drop")
    assert sum(map(len, sides.values())) == 40
    wanted = {"unreadable": 2, "turn_order": 2, "media": 1}
    assert sides["train"].dropped == wanted and any("5 rows dropped: 2 as unreadable" in note for note in sides.notes)
    _, counts = encoding.encode(sides["train"], pocket, templates.get("tokenizer", pocket), 512)
    assert counts.as_dict()["dropped"] == wanted and counts.rows == len(sides["train"]) + 5
    assert [row["row"] for row in sides["train"][:2]] == [row["row"] for row in sides["train"]][:2]


def test_a_file_that_ends_early_is_refused_all_the_same(tmp_path):
    whole = gzip.compress("\n".join(map(json.dumps, GOOD)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "cut.json").write_text(json.dumps(GOOD)[:-9], encoding="utf-8")
    for name in ("cut.jsonl.gz", "cut.json"):
        with pytest.raises(UserError, match=re.escape(name)) as error:
            data.load(str(tmp_path / name), bad_rows="drop")
        assert REMEDY not in str(error.value)


def test_a_csv_loses_the_rows_that_hold_damage(tmp_path):
    rows = "".join(f"{words()},{words()}\n" for _ in range(30))
    text = f'question,answer\n{rows}one cell\n"two\nlin\xe9s",b\n\ufeffquestion,answer\n{words()},c\n'
    mixed = text.encode("utf-8").replace("\xe9".encode(), b"\xe9")
    (tmp_path / "a.csv").write_bytes(mixed)
    sides = data.load(str(tmp_path / "a.csv"), bad_rows="drop")
    assert sum(map(len, sides.values())) == 31 and sides["train"].dropped == {"unreadable": 3}
    assert not any("\ufffd" in row["prompt"] for side in sides.values() for row in side)


def test_sides_of_a_folder_count_their_own(tmp_path, pocket):
    write(tmp_path / "train.jsonl", [*GOOD, LATE])
    write(tmp_path / "validation.jsonl", [GOOD[0], FIRST, FIRST])
    write(tmp_path / "test.jsonl", [GOOD[0]])
    sides = data.load(str(tmp_path), bad_rows="drop")
    assert [side.dropped.total() for side in sides.values()] == [1, 2, 0]
    _, counts = encoding.encode(sides["validation"], pocket, templates.get("tokenizer", pocket), 512)
    assert (counts.rows, counts.kept) == (3, 1)


@pytest.mark.parametrize("cached", [False, True])
def test_rows_that_a_template_refuses_are_dropped_too(tmp_path, pocket, cached):
    orders = [{"instruction": words(), "output": words()} for _ in range(40)]
    name = write(tmp_path / "a.jsonl", [*orders, *GOOD[:10]])
    with pytest.raises(UserError, match=r"row 4\d: these rows are conversations.*\n(?s:.*)--bad_rows drop"):
        encoding.encode(data.load(name)["train"], pocket, templates.ALPACA, 512)
    sides = data.load(name, bad_rows="drop")
    folder = tmp_path / "tokens" if cached else None
    for _ in range(2):  # made, and read
        encoded, counts = encoding.encode(sides["train"], pocket, templates.ALPACA, 512, folder=folder)
        lost = sum("messages" in row for row in sides["train"])
        assert counts.dropped == {"template": lost} and counts.kept == len(encoded) == len(sides["train"]) - lost
        assert "template: row 4" in counts.summary()
    samples = generation.Samples(pocket, templates.ALPACA, sides["train"][-12:], count=4)
    assert samples.rows and all(row["prompt"].startswith("Below") for row in samples.rows)


def test_pairs(tmp_path, pocket):
    asked = [{"prompt": [turn := {"role": "user", "content": words()}]} for _ in range(30)]
    said = {"role": "assistant", "content": "Yes."}
    rows = [{**ask, "chosen": [said], "rejected": [{**said, "content": "No."}]} for ask in asked]
    name = write(tmp_path / "a.jsonl", [*rows, {**rows[0], "rejected": []}, {**rows[1], "chosen": [turn]}])
    with pytest.raises(UserError) as error:
        pairs.load(name)
    assert "row 31: `rejected` is empty" in str(error.value) and str(error.value).count("row 31") == 1
    sides = pairs.load(name, bad_rows="drop")
    _, counts = preference.encode(sides["train"], pocket, templates.get("tokenizer", pocket), 512)
    assert counts.dropped == {"incomplete": 1, "turn_order": 1} and counts.rows == len(sides["train"]) + 2
    assert "asked in prompt" in sides.notes[-2]


def test_large_losses_are_said_loudly(capsys):
    counts = encoding_stats.EncodingStats(
        rows=255, kept=149, dropped=Counter(too_long=106, empty_output=2), trained_tokens=9
    )
    counts.require_trainable(512)
    said = capsys.readouterr().out
    assert said.startswith("WARNING: 42 % of the rows (106 of 255) are dropped as too_long") and said.count("\n") == 1
    encoding_stats.EncodingStats(rows=255, kept=250, dropped=Counter(too_long=5), trained_tokens=9).require_trainable(
        512
    )
    assert not capsys.readouterr().out


PLACE = SHARED / "cases" / "data"
CASES = {  # file -> rows that are read, a column that became what, or the words of the refusal
    "20-context-question-answer/d.jsonl": (3, "input=context"),
    "21-null-union-columns/d.parquet": (6, "messages (1 row)"),
    "21-null-union-columns/nullcol.parquet": (5, "instruction, output"),
    "22-two-key-styles/d.parquet": (2, "messages"),
    "23-save-to-disk/saved": (40, "instruction, output"),
    "23-save-to-disk/hub": (40, "instruction, output"),
    "19-images-beside-text/d.jsonl": (0, "`images` holds what a text model does not see"),
}


@pytest.mark.real_data
@pytest.mark.skipif(not PLACE.exists(), reason="no shared/cases beside the checkout (or in TUNEBOOK_SHARED)")
@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    count, says = CASES[name]
    try:
        sides = data.load(str(PLACE / name))
        assert sum(map(len, sides.values())) == count and says in sides.notes[-1]
    except UserError as error:
        assert not count and says in str(error)
