"""What reaches the terminal: no character of data steers it, whatever the encoding, and readers may go away."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import forked
import pytest
import sample_pages
import screens
import trained_runs
from paths import ROOT

from tunebook.common.commands import COMMANDS
from tunebook.common.process import terminal

HOSTILE = "\x1b[2J\x1b[31m\x1b]0;OWNED\x07\x1b]8;;http://evil\x1b\\link\x9b31m\x08\x7f\r\u202egnp.exe\u2066\u2028"
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def python(code, *words, env=None, **how):
    how = {"capture_output": True, **how}
    return subprocess.run([sys.executable, "-c", code, *words], env={**os.environ, **(env or {})}, timeout=60, **how)


def test_characters_of_data_are_escapes():
    shown = terminal.escaped(HOSTILE)
    assert (
        not STEERS.search(shown) and shown.startswith("\\x1b[2J\\x1b[31m\\x1b]0;OWNED\\x07") and "\\u202egnp" in shown
    )
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


NAME = HOSTILE.replace("/", "")  # as a file is called
LIGHT = {"ls", "cp", "new", "inspect", "split", "augment", "runs", "rate", "doctor"}
HEAVY = {"plan", "chat", "export", "verify", "eval", "compare", "safety", "judge", "table"}  # they need a model


@pytest.fixture
def hostile(tmp_path):
    """A folder of hostile rows and answers, in files that are called so, too."""
    place = tmp_path / f"x{NAME}"
    place.mkdir()
    asked = [{"instruction": f"{n} {HOSTILE}", "input": HOSTILE, "output": f"{HOSTILE} {n}", HOSTILE: HOSTILE}
             for n in range(12)]  # fmt: skip
    for name, rows in (
        ("rows", asked), ("broken", [{"output": HOSTILE}]),
        ("roles", [{"messages": [{"role": HOSTILE, "content": "x"}]}]),
        *((side, [{"prompt": HOSTILE, "answer": f"{side} {HOSTILE}"}]) for side in ("base", "tuned")),
    ):  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}{NAME}.jsonl").write_text(text, encoding="utf-8")
    return place


def report(folder, found):
    """Write a run's report in which all that is said is hostile."""
    folder.mkdir(exist_ok=True)
    sample = dict.fromkeys(("prompt", "asked", "before", "after", "reference"), HOSTILE)
    found |= {"recipe": HOSTILE, "device": HOSTILE, "samples": [sample]}
    (folder / "report.json").write_text(json.dumps(found), encoding="utf-8")


def says_nothing_that_steers(call, calls):
    for words, code in calls:
        words = [str(word).replace("\0", "") for word in words]  # no word of a command holds it
        found, out, err = call(*words)
        assert not STEERS.search(out + err), (words[0], ascii(out + err))
        assert found == code and "Traceback" not in out + err, (words[0], (out + err)[-2000:])
    return {words[0] for words, _ in calls}


def test_every_command_on_hostile_rows_and_names(hostile, tunebook):
    """Rows, answers, names of columns, files and folders, and typed words: no command writes a character that steers,
    neither in what it says nor in messages. Those that need a model: below."""
    rows, copy = hostile / f"rows{NAME}.jsonl", hostile / f"copy{NAME}.py"
    report(hostile / f"run{NAME}", sample_pages.report())
    calls = [
        (["ls", HOSTILE], 2),
        (["cp", "lora_alpaca", copy], 0),
        (["cp", "lora_alpaca", copy], 2),
        (["new", rows, "--output", hostile / f"new{NAME}.py", "--model", "pocket", "--no-plan"], 0),
        (["inspect", rows, "--rows", "1", "2", "--near"], 0),
        (["inspect", rows, "--template", HOSTILE], 2),
        (["inspect", rows, f"--{HOSTILE}"], 2),
        (["inspect", hostile / f"broken{NAME}.jsonl"], 2),
        (["inspect", hostile / f"roles{NAME}.jsonl"], 2),
        (["inspect", f"{HOSTILE}.jsonl"], 2),
        (["split", rows, "--output_dir", hostile / f"split{NAME}"], 0),
        (["augment", rows, "--output", hostile / f"more{NAME}.jsonl"], 0),
        (["runs", hostile], 0),
        (["rate", "--report", hostile / f"run{NAME}", "--output_dir", hostile / "rate", "--summary"], 0),
        (["doctor", HOSTILE], 2),
    ]
    assert says_nothing_that_steers(tunebook, calls) == LIGHT == COMMANDS.keys() - HEAVY
    assert tunebook(HOSTILE)[0] == 2 and not STEERS.search("".join(tunebook(HOSTILE)[1:]))


@pytest.mark.slow
@pytest.mark.recipe
def test_every_command_with_a_model_on_hostile_rows_and_names(hostile):
    rows, run, merged = hostile / f"rows{NAME}.jsonl", hostile / f"run{NAME}", hostile / f"merged{NAME}"
    trained_runs.lora_run(run, dataset=str(rows), steps=1)
    report(run, json.loads((run / "report.json").read_text(encoding="utf-8")))
    scores = [hostile / f"{side}_scores{NAME}" for side in ("base", "tuned")]
    answers = [hostile / f"{side}{NAME}.jsonl" for side in ("base", "tuned")]
    recipe = shutil.copy(ROOT / "recipes" / "lora_alpaca.py", hostile / f"recipe{NAME}.py")
    evaluate = ["eval", "--adapter", run, "--dataset", rows, "--limit", "2", "--max_gen_toks", "4", "--output_dir"]
    calls = [
        (["plan", recipe, "--dataset", rows, "--no-time"], 0),
        (["chat", "--adapter", f"{NAME}={run}", "--template", "alpaca", "--max_new_tokens", "4"], 0),
        (["export", run, "--output_dir", merged, "--dtype", "float32"], 0),
        (["verify", merged, "--against", run], 0),
        ([*evaluate, scores[0], "--base"], 0),
        ([*evaluate, scores[1]], 0),
        (["compare", *scores], 0),
        (["safety", *scores], 2),
        (["judge", *answers, "--judge", "pocket", "--judge_max_new_tokens", "4", "--output_dir", hostile / "judge"], 1),
        (["table", "--recipes", recipe, "--dataset", hostile / f"broken{NAME}.jsonl", "--output_dir", merged], 2),
    ]
    typed = f"{HOSTILE}\n/{HOSTILE}\n/adapter {HOSTILE}\n/quit\n".replace("\r", "")

    def call(*words):
        done = forked.run("-m", "tunebook.common.commands", *words, cwd=hostile, input=typed)
        return done.returncode, done.stdout, done.stderr

    assert says_nothing_that_steers(call, calls) == HEAVY


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
