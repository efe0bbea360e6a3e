"""How far work has come: on terminals of 80 and 120 columns, in a log file, in a notebook."""

import re
import sys
import threading
import types

import pytest
from screens import on_a_screen

from tunebook.common.process import progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so, for a service of its own without its thread."""
    found, service = Clock(), progress._Service()
    monkeypatch.setattr(progress, "monotonic", found)
    service._thread = threading.current_thread()
    monkeypatch.setattr(progress, "_service", service)
    monkeypatch.delenv("RANK", raising=False)
    return found


def pass_by(clock, seconds):
    """Let the service look at the clock as its thread would."""
    for _ in range(round(seconds / progress.TICK)):
        clock.now += progress.TICK
        progress._service.look()


def test_a_line_each_half_minute_and_one_at_the_end(clock, capsys):
    with progress.start("encoding", 200, "rows", lambda: ["loss 1.25"]) as phase:
        pass_by(clock, 29)
        assert capsys.readouterr().err == ""
        phase.advance(50)
        pass_by(clock, 2)
        assert capsys.readouterr().err == "encoding: 50/200 rows, 25 %, 0:30, 1:30 left, loss 1.25\n"
        pass_by(clock, 28)
        assert capsys.readouterr().err == ""
        phase.advance(50)
        pass_by(clock, 62)
        lines = capsys.readouterr().err.splitlines()
        assert [re.findall(r"\d:\d\d", line) for line in lines] == [
            ["1:00", "1:00"],
            ["1:30", "1:30"],
            ["2:00", "2:00"],
        ]
    assert re.fullmatch(r"encoding: 100 rows in 2:0\d, loss 1.25\n", capsys.readouterr().err)
    assert progress.spent("encoding") == pytest.approx(121, abs=1)


def test_short_phases_are_silent_and_those_over_two_seconds_are_not(clock, capsys):
    for seconds, lines in ((0.1, 0), (1.9, 0), (2.1, 1)):
        with progress.start("reading"):
            clock.now += seconds
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_phases_inside_one_another_are_one_line(clock, capsys):
    with progress.start("training", 4, "steps") as training:
        training.advance(2)
        for _ in progress.track(range(2), "held-out rows", 2, "batches"):
            pass_by(clock, 16)
    text = capsys.readouterr().err
    assert text.startswith(
        "training: 2/4 steps, 50 %, 0:30, 0:30 left; held-out rows: 1/2 batches, 50 %, 0:30, 0:30 left\n"
    )
    assert "\nheld-out rows: 2 batches in 0:32\ntraining: 2 steps in 0:32\n" in text


def test_recipes_write_lines_where_a_log_file_has_them(clock, capsys):
    progress.to_stdout()
    with progress.start("scoring \x1b[2J"):
        clock.now += 3
    said = capsys.readouterr()
    assert said.out == "scoring \\x1b[2J: 0:03\n" and not said.err


def test_an_error_ends_all_phases_without_a_word(clock, capsys):
    with pytest.raises(ValueError), progress.start("outer"):
        progress.start("inner")
        clock.now += 5
        raise ValueError
    late = progress.start("never closed")
    progress.stop()
    with progress.start("another"):
        late.close()
        progress._service.drop(late)
        assert [phase.name for phase in progress._service.phases] == ["another"]
    assert not progress._service.phases and capsys.readouterr().err == ""


def test_only_the_first_process_says_anything(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with progress.start("training"):
        clock.now += 100
    assert capsys.readouterr() == ("", "")


def test_bars_of_lm_eval_are_phases(clock, capsys):
    class Named(progress.Bar):
        names = {"Running loglikelihood requests": "likelihood of answers"}  # noqa: RUF012

    with_total = Named(total=3, disable=False, desc="Running loglikelihood requests")
    clock.now += 3
    with_total.update(3)
    with_total.close()
    assert list(Named([1, 2], disable=True)) == [1, 2]
    assert capsys.readouterr().err == "likelihood of answers: 3 requests in 0:03\n"


def test_a_notebook_has_one_bar_and_no_lines(clock, capsys, monkeypatch):
    Shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=Shell))
    with progress.start("training", 10, "steps", lambda: ["loss 1.25"], done=2) as phase:
        phase.advance()
        assert phase.bar is None  # not yet: it may be over at once
        pass_by(clock, 40)
        phase.advance(3)
        for _ in progress.track(range(3), "held-out rows", 3, "batches"):
            pass_by(clock, 5)
            assert [one.name for one in progress._service.phases if one.bar] == ["training"]
        assert (phase.bar.n, phase.bar.total, phase.bar.desc, phase.bar.postfix) == (6, 10, "training", "loss 1.25")
    assert capsys.readouterr().out == ""


CELL = """
import time
from tunebook.common.process import progress
progress.SHOWN = progress.LONG = progress.LINE = 0.1
with progress.start("training", 10, "steps", lambda: ["loss 1.25", "221 trained tokens/s"]) as phase:
    for step in range(10):
        time.sleep(0.05)
        phase.advance()
        if step == 5:
            for _ in progress.track(range(4), "held-out rows", 4, "batches"):
                time.sleep(0.05)
            print("step 5/10  held-out loss 1.5")
"""


def test_an_executed_notebook_shows_each_thing_once():
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    outputs = book.cells[0].outputs
    text = {
        name: "".join(one.get("text", "") for one in outputs if one.get("name") == name)
        for name in ("stdout", "stderr")
    }
    assert text["stdout"] == "step 5/10  held-out loss 1.5\n"  # no lines beside the bar
    bars = text["stderr"] or "".join(str(one.get("data")) for one in outputs)
    assert "training: 100%" in bars and "loss 1.25, 221 trained tokens/s" in bars
    assert "held-out rows" not in bars and "\x1b[A" not in bars


# A training of 40 steps, as TrainingMetrics shows it, with prints between and an evaluation; all of it in 4 seconds.
TRAINING = """
import pathlib, sys, tempfile, time, types
from tunebook.common.process import progress, terminal
terminal.protect(True)
progress.SHOWN = progress.LONG = 0.1
progress.TICK = 0.05
import tunebook.common.training.metrics as metrics
metrics.Peak = lambda: types.SimpleNamespace(bytes=3 << 30, stop=lambda: 3 << 30)
one = metrics.TrainingMetrics(pathlib.Path(tempfile.mkdtemp()) / "log.jsonl")
one.batches = lambda batches, waited: None
progress._service.spent["scoring"] = 300
one.begin(0, 40)
one.trained = 51234
print("a line before")
for step in range(1, 25):
    time.sleep(0.02)
    one._began = time.monotonic() - 0.02
    one.step(step)
    one.log(step, {"loss": 1.5 / step, "learning_rate": 1.9e-4})
print("a line", "in two parts \\x1b[2J", sep=" ", file=sys.stderr)
for _ in progress.track(range(15), "held-out rows", 15, "batches"):
    time.sleep(0.03)
time.sleep(0.2)
"""
NEEDED = (r"training ", r"24/40 steps", r"60 %", r"0:0\d", r"0:0\d left", r"5:0\d with what follows", r"loss 0\.062",
          r"learning rate 1\.9e-04", r"\d+ trained tokens/s", r"3 GiB", r"evaluation at step 32")  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_fit_a_terminal_and_leave_what_is_printed(columns):
    frames, rows = on_a_screen(TRAINING, columns)
    last = [frame for frame in frames if "24/40" in frame][-1]
    for pattern in NEEDED:
        assert re.search(pattern, last), (pattern, last)
    assert len(last.splitlines()) == (3 if columns == 80 else 2), last
    assert any("held-out rows" in frame and "batches" in frame and "24/40" in frame for frame in frames)
    assert all(len(row) <= columns for frame in frames for row in frame.splitlines())
    text = "\n".join(rows)
    assert text.count("a line before") == text.count("a line in two parts \\x1b[2J") == 1  # not drawn over
    assert text.count("24/40") == 1  # each drawing took the place of the one before


PLAIN = """
import time
from tunebook.common.process import progress, terminal
terminal.protect(True)
progress.SHOWN = progress.LONG = 0.05
progress.TICK = 0.02
for _ in progress.track(range(10), "held-out rows", 10, "batches"):
    time.sleep(0.03)
"""


def test_no_bars_on_a_dumb_terminal_and_no_colors_where_none_are_wanted():
    frames, rows = on_a_screen(PLAIN, 80, TERM="dumb")
    assert not frames and re.search(r"held-out rows: 10 batches in 0:0\d", "\n".join(rows))
    text = on_a_screen(PLAIN, 80, NO_COLOR="1", raw=True)
    assert "━" in text and not re.search(r"\x1b\[[0-9;]*(3|4)\d[;m]", text)
