"""Loading and splitting: every problem with its place, nothing lost, nothing on two sides."""

import gzip
import json

import pytest

from common import data
from common.cli import UserError

GOOD = {"instruction": "Say hello.", "input": "", "output": "hello"}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction": \n', ["line 2", "not JSON"]),
        ("a.json", '[{"instruction": "a", "output": "b"},]', ["line 1", "column"]),
        ("a.json", '{"instruction": "a", "output": "b"}', ["expected a list", "an object"]),
        ("a.json", '{"a": 1}\n{"a": 2}', ["line 2", "rename the file"]),
        ("a.json", '[{"input": "x", "output": "y"}]', ["row 1", "`instruction`"]),
        ("a.json", '[{"instruction": "a", "output": null}]', ["row 1", "`output` is null"]),
        ("a.json", '[{"instruction": "a", "output": 3}, 7]', ["row 1", "a number", "row 2", "expected an object"]),
        ("a.json", "[]", ["no rows"]),
        ("a.txt", "x", [".json or .jsonl"]),
        ("a.jsonl.gz", "not compressed", ["cannot be read"]),
    ],
)
def test_bad_files_name_the_place(tmp_path, name, text, says):
    with pytest.raises(UserError) as error:
        data.load(write(tmp_path / name, text))
    for words in [*says, name]:
        assert words in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        data.load(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="is a folder"):
        data.load(str(tmp_path))


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"instruction": "caf\xe9"}]')
    with pytest.raises(UserError, match="byte 21 is 0xe9"):
        data.load(str(tmp_path / "a.json"))


def test_many_problems_are_counted(tmp_path):
    rows = [{"instruction": "a"}] * 25
    with pytest.raises(UserError, match="row 10") as error:
        data.load(write(tmp_path / "a.json", json.dumps(rows)))
    assert "15 more" in str(error.value) and "row 11" not in str(error.value)


def test_formats_agree(tmp_path):
    rows = [{**GOOD, "instruction": f"Say {n}.", "extra": n} for n in range(50)]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n"
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    loaded = [
        data.load(write(tmp_path / "a.json", json.dumps(rows))),
        data.load(write(tmp_path / "b.jsonl", lines)),
        data.load(str(tmp_path / "c.jsonl.gz")),
    ]
    assert loaded[0] == loaded[1] == loaded[2]
    assert sorted(row["extra"] for side in loaded[0].values() for row in side) == list(range(50))


def test_split_keeps_the_same_question_on_one_side():
    rows = [{**GOOD, "instruction": f"Say {n % 700}. "[: 8 + n % 2], "output": str(n)} for n in range(2000)]
    parts = data.split(rows, seed=3)
    questions = [{row["instruction"].strip() for row in part} for part in parts.values()]
    assert not (questions[0] & questions[1] or questions[0] & questions[2] or questions[1] & questions[2])
    assert data.split(rows, seed=3) == parts != data.split(rows, seed=4)


def test_split_sizes():
    parts = data.split([{**GOOD, "instruction": str(n)} for n in range(20000)])
    assert [round(len(part) / 200) for part in parts.values()] == [85, 10, 5]
