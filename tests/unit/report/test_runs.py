"""`tunebook runs`: what it says of whole, stopped, running, killed, damaged and foreign folders, and how fast."""

import json
import os
import re
import subprocess
import sys
import time

import browser
import pytest
import sample_pages

from tunebook.common import commands
from tunebook.common.report import runs, runs_view
from tunebook.common.run_folder import lock


def lock_of(folder, pid, started):
    content = {"host": os.uname().nodename, "pid": pid, "process_started": started, "time": "2026-01-01"}
    (folder / lock.FILE).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    made = sample_pages.runs_folder(tmp_path / "all")
    lock_of(made / "running", os.getpid(), lock.process_started(os.getpid()))
    lock_of(made / "killed", os.getpid(), (lock.process_started(os.getpid()) or "").partition(" ")[0] + " 1")
    (made / "empty").mkdir()
    return made


def test_states_and_figures(folder):
    found, left_out = runs.collect(folder)
    by = {run.name: run for run in found}
    assert {name: run.state for name, run in by.items()} == {
        "run 0#": "finished", "run 1#": "finished", "run 2#": "finished", "deep/stopped": "stopped",
        "killed": "killed", "running": "running"}  # fmt: skip
    assert sorted(left_out) == [
        "damaged: its report.json is damaged",
        "foreign: its files are not those of a run of tunebook",
    ]
    whole, stopped = by["run 1#"], by["deep/stopped"]
    assert (whole.recipe, whole.steps, whole.loss_before, whole.loss_after) == ("lora_alpaca", 100, 7.0, 0.33)
    assert (whole.date, whole.seconds, whole.trained_tokens) == ("2026-01-01 10:05", 75.5, 9000)
    score = whole.scores["pocket_seen"]
    assert score["value"] == 0.75 and score["verdict"] == "better" and 0.68 < score["low"] < 0.69 < 0.8 < score["high"]
    assert (stopped.steps, stopped.seconds, stopped.loss_before, stopped.loss_after) == (40, 9.0, 7.0, 4.5)
    assert found[0].date >= found[-1].date
    assert not any((folder / "killed").glob("*.stale"))  # nothing was touched


def test_a_lock_of_another_machine_lives_while_it_is_touched(folder):
    path = folder / "killed" / lock.FILE
    path.write_text(json.dumps({"host": "far", "pid": 1, "process_started": "x 1"}), encoding="utf-8")
    assert lock.holder(path.parent) == "running on far"
    os.utime(path, (time.time() - lock.SILENT - 1,) * 2)
    assert lock.holder(path.parent) == "killed"
    path.write_text("{", encoding="utf-8")
    assert lock.holder(path.parent) == "killed" and lock.holder(folder) is None


def test_arguments_that_differ_alone(folder):
    found, _ = runs.collect(folder)
    assert runs.differences(found) == {"lora_r": [str(run.args.get("lora_r", "")) for run in found]}


def test_the_command(folder, tmp_path, capsys):
    page = tmp_path / "of all.html"
    commands.main(["runs", str(folder), "--html", str(page)])
    out = capsys.readouterr().out
    assert re.search(r"run 1#\s+finished\s+lora_alpaca\s+pocket\s", out) and "75.0 % (68.6 to 80.5)" in out
    assert "Left out: damaged: its report.json is damaged; foreign:" in out and "Arguments that differ" in out
    text = browser.own(page.read_text(encoding="utf-8"))
    assert 'href="./all/run%201%23/report.html"' in text and "✕ killed" in text and "▶ running" in text
    lines = runs_view.terminal(runs.collect(folder)[0], [], 80).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 80 and "held-out loss" in lines[0] and "data" not in lines[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/none"], "does not exist"),
        (["{tmp}/file"], "is a file; name a folder"),
        (["{tmp}/empty"], "holds no run of tunebook; a run's folder has"),
        (["{tmp}/bad"], r"holds no run of tunebook \(x: its run.json is damaged\)"),
        (["{tmp}/all", "--html", "{tmp}/no/a.html"], "there is no folder"),
    ],
)
def test_bad_input(words, says, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "bad" / "x").mkdir(parents=True)
    (tmp_path / "bad" / "x" / "run.json").write_bytes(b"\xff{")
    with pytest.raises(SystemExit) as ended:
        commands.main(["runs", *(word.replace("{tmp}", str(tmp_path)) for word in words)])
    assert ended.value.code == 2 and re.search(says, capsys.readouterr().err)


def test_a_run_whose_values_are_of_other_kinds_is_left_out(tmp_path):
    whole = sample_pages.report()
    odd = {
        "list": [],
        "args": {"recipe": "x", "args": 3},
        "text": {**whole, "train": "x"},
        "loss": {**whole, "eval": {"loss": "low", "loss_name": ""}},
        "curve": {**whole, "train": {**whole["train"], "evaluations": [[0, 7.0], [1, "x"]]}},
        "date": {**whole, "run": {"parts": [3]}},
    }
    for name, report in odd.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
    found, left_out = runs.collect(tmp_path)
    assert not found and len(left_out) == len(odd), left_out


def test_two_hundred_runs_in_two_seconds_without_torch(tmp_path):
    code = "import sys, tunebook.common.report.runs_view; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    sample_pages.runs_folder(tmp_path / "many", 200)
    start = time.process_time()
    found, _ = runs.collect(tmp_path / "many")
    runs_view.terminal(found, [], 200)
    assert len(found) == 203 and time.process_time() - start < 2
