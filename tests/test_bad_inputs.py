"""Malformed inputs, each a file in bad_inputs: a message that names the place, and never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunebook.common import data
from tunebook.common.data import loading
from tunebook.common.data.rows import kind
from tunebook.common.errors import UserError

FOLDER = Path(__file__).parent / "bad_inputs"
EXPECTED = yaml.safe_load((FOLDER / "expected.yaml").read_text(encoding="utf-8"))
LOADING = [name for name, expected in EXPECTED.items() if expected["exit"] == 2]
RIGHT = [name for name, expected in EXPECTED.items() if expected["exit"] == 0]  # it only looks bad
AS_PROCESS = ["broken_lines.jsonl", "cut.jsonl.gz", "missing_output.jsonl", "every_output_empty.jsonl"]


@pytest.mark.parametrize("name", LOADING)
def test_the_message_names_the_place(name):
    expected = EXPECTED[name]
    with pytest.raises(UserError) as error:
        data.load([str(FOLDER / name), *expected.get("words", [])])
    message = str(error.value)
    for words in (*expected["says"], name.rpartition(":")[0] or name):
        assert words in message
    assert len(message) < 4000 and "Traceback" not in message


@pytest.mark.parametrize("name", LOADING)
def test_streaming_says_the_same(name, monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    test_the_message_names_the_place(name)


def test_every_file_is_expected_and_there_are_enough():
    there = {path.name for path in FOLDER.iterdir()} - {"expected.yaml"}
    assert there <= EXPECTED.keys() and len(EXPECTED) >= 60
    assert {name for name in EXPECTED if name not in LOADING + RIGHT} <= set(AS_PROCESS)


@pytest.mark.parametrize("name", RIGHT)
def test_rows_of_several_layouts_are_read(name):
    rows = [row for side in data.load(str(FOLDER / name)).values() for row in side]
    assert len({kind(row) for row in rows}) > 1
    assert sorted(row["row"] for row in rows) == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("name", AS_PROCESS)
def test_inspect_ends_with_the_exit_code(name):
    command = [sys.executable, "-m", "tunebook.common.commands", "inspect", str(FOLDER / name)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=FOLDER.parent.parent)
    assert found.returncode == EXPECTED[name]["exit"], found.stderr
    assert "Traceback" not in found.stderr and all(words in found.stderr for words in EXPECTED[name]["says"])
