"""`tunebook table`: what its words mean, what it writes, and that it goes on where it stopped."""

import csv
import json
import re

import browser
import few
import pandas
import pytest

from tunebook.common.errors import UserError
from tunebook.common.report import methods_table
from tunebook.evals.commands import table as command


def test_a_word_sets_flags():
    one = command.method("lora_alpaca:use_dora=True,learning_rate=1e-4,resume=false")
    assert one.flags == ["--use_dora", "--learning_rate", "1e-4", "--no-resume"]
    assert one.name == "lora_alpaca use_dora=True learning_rate=1e-4 resume=false"
    assert command.method("soft_prompts_alpaca").file.stem == "prompt_tuning_alpaca"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lora_alpac", "no such recipe or file; .*the nearest is lora_alpaca"),
        ("lora_alpaca:use_dorra=True", "no flag of lora_alpaca.py; the nearest is use_dora"),
        ("lora_alpaca:use_dora=1", "use_dora is true or false"),
        ("lora_alpaca:model=x,dtype", "expected NAME=VALUE"),
        ("lora_alpaca:seed_=1", "no flag of lora_alpaca.py"),
    ],
)
def test_bad_words(word, says):
    with pytest.raises(UserError, match=says):
        command.method(word)


def report(loss, trained):
    return {
        "train": {"trainable_parameters": 1000, "all_parameters": 100_000, "evaluations": [[0, 3.0], [5, loss]]},
        "measured": {"peak_bytes": 2**30, "seconds": 10.0, "trained_tokens_per_second": 5.0, "trained_tokens": trained},
        "eval": {"loss": loss},
        "scores": {"after": {"task": {"acc": 0.5}}},
    }


def test_rows_and_pages(tmp_path):
    rows = [
        methods_table.row("lora_alpaca", "lora_alpaca", report(1.0, 50)),
        methods_table.row("mine", "mine", report(None, 50)),
    ]
    assert rows[0]["share"] == 1.0 and rows[0]["task acc"] == 50.0 and rows[0]["quoted_quality"] == "95-98"
    command.write(tmp_path, rows, {}, [])
    text = re.sub(" +", " ", (tmp_path / "table.md").read_text())
    assert "| mine | 1,000 | 1.00 |" in text and "| – |" in text
    read = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert read[0]["task acc"] == "50.0" and read[1]["loss"] == ""
    page = methods_table.page(rows, {"lora_alpaca": [[0, 3.0], [5, 1.0]]}, ["a note"], {"flags": "<none>"})
    said = browser.own(page)
    assert said.count("<svg") == 4 and "a note" in said and "&lt;none&gt;" in said and "<script" not in said
    (tmp_path / "table.html").write_text(page, encoding="utf-8")
    browser.look(tmp_path / "table.html")


@pytest.mark.recipe
def test_two_methods_and_again(tmp_path, forks, tunebook):
    words = ["--recipes", "lora_alpaca", "lora_alpaca:use_dora=True", "--output_dir", str(tmp_path / "t")]
    words += ["--max_steps", "4", "--eval_suite", "none", "--dataset", str(few.rows(tmp_path / "few"))]
    code, out, err = tunebook("table", *words)
    assert code == 0, err[-2000:] + out[-2000:]
    rows = list(csv.DictReader((tmp_path / "t" / "table.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["lora_alpaca", "lora_alpaca use_dora=True"]
    assert int(rows[1]["trainable"]) > int(rows[0]["trainable"])  # DoRA's magnitudes
    assert rows[0]["trained_tokens"] == rows[1]["trained_tokens"]
    assert tunebook("table", *words)[1].count("finished before") == 2
    assert json.loads((tmp_path / "t" / "lora_alpaca" / "report.json").read_text())["train"]["steps"] == 4


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_no_terminal_is_too_narrow_for_a_value(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["method", "learning rate", "trainable parameters", "peak memory, GiB", "held-out loss", "share of all, %"]
    row = ["lora_alpaca use_dora=True", "0.002", "1,233,472", "0.867", "4.93", ""]
    command.show(pandas.DataFrame([row], columns=names))
    said = capsys.readouterr().out
    assert "…" not in said and all(value in said for value in ("0.002", "1,233,472", "0.867", "4.93"))
