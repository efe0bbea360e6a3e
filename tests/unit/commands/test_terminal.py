"""What reaches the terminal: no character of data steers it, whatever the encoding, and readers may go away."""

import io
import json
import os
import re
import subprocess
import sys

import forked
import pytest
import screens
import trained_runs

from tunebook.common.commands import COMMANDS
from tunebook.common.process import terminal

HOSTILE = "\x1b[2J\x1b[31m\x1b]0;OWNED\x07\x1b]8;;http://evil\x1b\\link\x9b31m\x08\x7f\r\u202egnp.exe\u2066\u2028"
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def python(code, *words, env=None, **how):
    how = {"capture_output": True, **how}
    return subprocess.run([sys.executable, "-c", code, *words], env={**os.environ, **(env or {})}, timeout=60, **how)


def test_characters_of_data_are_escapes():
    shown = terminal.escaped(HOSTILE)
    assert not STEERS.search(shown) and shown.startswith("\\x1b[2J\\x1b[31m\\x1b]0;OWNED\\x07") and "\\u202egnp" in shown
    for text in (
        "a\n\tc é 漢字 🤷",
        "\u0645\u0631\u062d\u0628\u0627 \u200f",
        "👩\u200d👩\u200d👧",
    ):  # marks and joiners are text
        assert terminal.escaped(text) == text


WRITES = f"""
import sys, logging, warnings
from tunebook.common.process import terminal
terminal.protect(True)
text = {HOSTILE!r}
print(text)
print(text, file=sys.stderr)
sys.stdout.writelines([text])
logging.warning(text)
warnings.warn(text)
terminal.printer().print("[bold]" + text + "[/]")
raise ValueError(text)
"""


def test_all_ways_to_write_are_escaped():
    done = python(WRITES)
    for said in (done.stdout, done.stderr):
        assert not STEERS.search(said.decode()), said
    assert done.stdout.count(b"\\x1b[2J") == 3 and done.stderr.count(b"OWNED") >= 3


def test_bars_and_colors_of_libraries_still_draw():
    code = f"""
from tunebook.common.process import terminal
terminal.protect(True)
from tqdm import tqdm
for _ in tqdm(range(2), desc="bar{chr(7)}"): pass
terminal.printer().print("[bold]strong[/]")
print({HOSTILE!r})
"""
    said = screens.written(code)
    assert "\rbar\\x07: 100%" in said and "\x1b[1mstrong\x1b[0m" in said
    assert "\\x1b[2J\\x1b[31m\\x1b]0;OWNED" in said and "\x1b[2J" not in said and "\x07" not in said


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"},
                                 {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])  # fmt: skip
def test_output_that_is_not_utf8(env):
    code = "from tunebook.common.process import terminal; terminal.protect(True); print(chr(0x6f22) * 2); "
    done = python(code + "terminal.printer().print(chr(0x6f22))", env=env)
    assert done.returncode == 0 and done.stdout == b"\\u6f22\\u6f22\n\\u6f22\n", done.stderr


BUSY = """
import sys
from dataclasses import dataclass
from tunebook.common import cli
@dataclass
class Args:
    pass
def main(args):
    for _ in range(2000):
        print("x" * 100)
    sys.stdout.flush()
    open(sys.argv[1], "w").write("done")
cli.run(main, Args, [], goes_on=sys.argv[2] == "run")
"""


@pytest.mark.parametrize(("kind", "code"), [("run", 0), ("command", terminal.BROKEN_PIPE)])
def test_a_reader_that_goes_away_ends_a_command_and_no_run(kind, code, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = python(BUSY, tmp_path / "done", kind, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == code and done.stderr == b"" and (tmp_path / "done").exists() == (kind == "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(("kind", "code"), [("run", 0), ("command", 2)])
def test_output_to_a_full_disk(kind, code, tmp_path):
    with open("/dev/full", "wb") as full:
        done = python(BUSY, tmp_path / "done", kind, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == code
    assert done.stderr.decode() == "error: standard output cannot be written: No space left on device\n"


def test_closed_streams_are_no_file_of_ours(tmp_path):
    """A closed descriptor is given to the next file that is opened, and would hold what is printed."""
    code = """
import os, sys
from tunebook.common.process import terminal
terminal.protect(True)
with open(sys.argv[1], "w") as file:
    for descriptor in (1, 2):
        os.write(descriptor, b"of a library")
    print("said")
    print("said", file=sys.stderr)
    file.write("done")
"""
    line = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", line, sys.executable, code, tmp_path / "done"], timeout=60)
    assert done.returncode == 0 and (tmp_path / "done").read_text() == "done"


def test_files_are_utf8_in_every_locale(tmp_path):
    """Libraries open theirs without naming an encoding."""
    (tmp_path / "file").write_text("é", encoding="utf-8")
    code = "from tunebook.common import cli; cli._environment(); import sys; print(ascii(open(sys.argv[1]).read()))"
    done = python(code, tmp_path / "file", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.stdout == b"'\\xe9'\n", done.stderr


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.recipe
def test_every_command_on_hostile_rows_and_names(tmp_path):
    """Rows, answers, tasks, tags, names of columns, files and folders, and typed words: no command writes a character
    that steers, neither in what it says nor in messages."""
    name = HOSTILE.replace("/", "")
    place = tmp_path / f"x{name}"
    place.mkdir()
    rows = [{"instruction": f"{n} {HOSTILE}", "input": HOSTILE, "output": f"{HOSTILE} {n}", HOSTILE: HOSTILE}
            for n in range(12)]  # fmt: skip
    rows, broken = lines(place / f"rows{name}.jsonl", rows), lines(place / "broken.jsonl", [{"output": HOSTILE}])
    roles = lines(place / "roles.jsonl", [{"messages": [{"role": HOSTILE, "content": "x"}]}])
    answers = [lines(place / f"{side}{name}.jsonl", [{"prompt": HOSTILE, "answer": f"{side} {HOSTILE}"}])
               for side in ("base", "tuned")]  # fmt: skip
    run = trained_runs.lora_run(place / f"run{name}", dataset=str(rows), steps=1)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    report["samples"] = [dict.fromkeys(("prompt", "asked", "before", "after", "reference"), HOSTILE)]
    (run / "report.json").write_text(json.dumps(report | {"recipe": HOSTILE, "device": HOSTILE}), encoding="utf-8")
    merged, scores = place / f"merged{name}", [place / f"{side}_scores{name}" for side in ("base", "tuned")]
    small = ["--max_new_tokens", "4"]
    eval_words = ["--adapter", run, "--dataset", rows, "--limit", "2", "--max_gen_toks", "4", "--output_dir"]
    calls = [
        ([HOSTILE], 2),
        (["ls", HOSTILE], 2),
        (["cp", "lora_alpaca", place / f"copy{name}.py"], 0),
        (["cp", HOSTILE, place / "copy.py"], 2),
        (["new", rows, "--output", place / f"new{name}.py", "--model", "pocket", "--no-plan"], 0),
        (["inspect", rows, "--rows", "1", "2", "--near"], 0),
        (["inspect", rows, "--template", HOSTILE], 2),
        (["inspect", rows, f"--{HOSTILE}"], 2),
        (["inspect", broken], 2),
        (["inspect", roles], 2),
        (["inspect", f"{HOSTILE}.jsonl"], 2),
        (["split", rows, "--output_dir", place / f"split{name}"], 0),
        (["augment", rows, "--output", place / f"more{name}.jsonl"], 0),
        (["plan", place / f"copy{name}.py", "--dataset", rows, "--no-time"], 0),
        (["chat", "--adapter", f"{name}={run}", "--template", "alpaca", *small], 0),
        (["export", run, "--output_dir", merged], 0),
        (["verify", merged, "--against", run], 0),
        (["runs", place], 0),
        (["eval", "--base", *eval_words, scores[0]], 0),
        (["eval", *eval_words, scores[1]], 0),
        (["compare", *scores], 0),
        (["safety", *scores], 2),
        (["judge", *answers, "--judge", "pocket", "--judge_max_new_tokens", "4", "--output_dir", place / "judge"], 1),
        (["rate", "--report", run, "--output_dir", place / "rate", "--summary"], 0),
        (["table", "--recipes", place / f"copy{name}.py", "--dataset", broken, "--output_dir", place / "table"], 2),
        (["doctor", "--json", place / name / "found.json"], 2),
    ]  # fmt: skip
    typed = f"{HOSTILE}\n/{HOSTILE}\n/adapter {HOSTILE}\n/quit\n".replace("\r", "")
    for words, code in calls:
        words = [str(word).replace("\0", "") for word in words]
        done = forked.run("-m", "tunebook.common.commands", *words, cwd=place, input=typed)
        said = done.stdout + done.stderr
        assert not STEERS.search(said), (words[0], ascii(said))
        assert done.returncode == code and "Traceback" not in said, (words[0], said[-2000:])
    assert {words[0] for words, _ in calls[1:]} == COMMANDS.keys()


def test_words_that_tyro_quotes_on_a_terminal(tmp_path):
    """It draws in colors of its own; a typed word, or a default of a file, has none."""
    (tmp_path / "hostile.yaml").write_text('model: "\\e[2J\\e[31mX"', encoding="utf-8")
    code = f"""
from tunebook.common import commands
for words in (["ls", {HOSTILE!r}], ["inspect", "--" + {HOSTILE!r}],
              ["chat", "--help", "--config", {str(tmp_path / "hostile.yaml")!r}]):
    try:
        commands.main(words)
    except SystemExit:
        pass
"""
    said = screens.written(code).replace("\r\n", "")
    assert not STEERS.search(said) and said.count("\\x1b[2J") == 3, ascii(said)


@pytest.mark.parametrize(("writers", "drawn"), [
    (["tqdm.utils"], True), (["tqdm.std", "unsloth.import_fixes"], True), (["tunebook.data"], False),
    (["tunebook.data", "unsloth.import_fixes"], False),
])  # fmt: skip
def test_bars_draw_through_a_stream_that_unsloth_puts_before_this_one(writers, drawn):
    written = io.StringIO()
    write = terminal.Stream(written, True).write
    for name in reversed(writers):  # the innermost calls this stream
        scope = {"__name__": name, "inner": write}
        exec("def write(text):\n    return inner(text)", scope)
        write = scope["write"]
    write("\r 50%")
    assert written.getvalue() == ("\r 50%" if drawn else "\\r 50%")
