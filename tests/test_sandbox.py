"""Programs that a model wrote: what runs, what is refused, and that nothing is left behind."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from paths import DATA, LACKING, ROOT

from tunebook.common.errors import UserError
from tunebook.evals import sandbox
from tunebook.evals.sandbox import seccomp

if sys.platform != "linux":
    pytest.skip("programs are run on Linux alone", allow_module_level=True)

HUMANEVAL = DATA / "benchmarks/hub/openai/openai_humaneval/test.jsonl"
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}

# Writes to every descriptor until it is full.
FILL = "import os\nfor fd in range(3, 64):\n  try:\n    while True: os.write(fd, b'x' * 999)\n  except OSError: pass"


def running(place: Path) -> set[str]:
    """Numbers of the processes that run contained programs below a folder; other tests may run theirs beside it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if seccomp.__file__.encode() in words and any(word.startswith(f"{place}/".encode()) for word in words):
            found.add(path.parent.name)
    return found


@pytest.mark.parametrize(
    "program",
    [
        "import math, hashlib, re, typing, collections, itertools, string, copy\nassert math.gcd(12, 18) == 6",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "import threading\nx = []\nt = threading.Thread(target=lambda: x.append(1))\nt.start()\nt.join()\nassert x",
        "import os\nassert os.listdir('.') == []  # a folder of its own, and nothing in it",
        "import os\nassert set(os.environ) <= {'HOME', 'OPENBLAS_NUM_THREADS', 'LC_CTYPE'}  # no keys of the user's",
        "import sys\nassert sys.stdin.read() == ''",
    ],
)
def test_a_right_program_passes(program):
    assert sandbox.run(program) == sandbox.PASSED


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("assert 1 == 2", "failed: AssertionError"),
        ("def f(:", "failed: SyntaxError"),
        ("raise SystemExit(0)", "failed: SystemExit"),
        ("import os\nos._exit(0)", "ended by itself"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "ended by itself"),
        ("while True: pass", "timed out"),
        ("import time\ntime.sleep(60)", "timed out"),
        ("import sys\nwhile True: print('x' * 10000)\n", "timed out"),
        (FILL, "timed out"),
        ("x = bytearray(2 << 30)", "failed: MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "failed: MemoryError"),
        ("import os\nwhile True: os.fork()", "failed: PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "failed: PermissionError"),
        ("import os\nos.execv('/bin/true', ['true'])", "failed: PermissionError"),
        ("import socket\nsocket.socket()", "failed: PermissionError"),
        ("import socket\nsocket.socketpair()", "failed: PermissionError"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "failed: ValueError"),
        ("import os\nos.kill(os.getppid(), 9)", "failed: PermissionError"),
        ("import os\nos.kill(-1, 0)", "failed: PermissionError"),
        ("import os\nos.memfd_create('x')", "failed: PermissionError"),
    ],
)  # fmt: skip
def test_a_program_that_would_do_harm_fails(program, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert sandbox.run(program, 2 if verdict == "timed out" else 60) == verdict
    assert not running(tmp_path)


@pytest.mark.parametrize(
    "write",
    [
        "open(place / 'kept', 'w')",
        "open(place / 'new', 'x')",
        "open(place / 'kept', 'a')",
        "(place / 'kept').unlink()",
        "(place / 'kept').rename(place / 'moved')",
        "(place / 'new').mkdir()",
        "(place / 'kept').chmod(0)",
        "os.truncate(place / 'kept', 0)",
        "os.symlink('/', place / 'link')",
        "os.link(place / 'kept', place / 'link')",
        "os.utime(place / 'kept', (1, 1))",
        "os.mkfifo(place / 'pipe')",
        "shutil.rmtree(place)",
        "sqlite3.connect(place / 'base').execute('create table a (b)')",
    ],
)
def test_a_program_writes_nowhere(write, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    before = kept.stat()
    lines = "import os, shutil, sqlite3\nfrom pathlib import Path"
    verdict = sandbox.run(f"{lines}\nplace = Path({str(tmp_path)!r})\n{write}")
    assert verdict.startswith("failed: ")
    assert os.listdir(tmp_path) == ["kept"] and kept.read_text() == "as it was"
    after = kept.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, before.st_nlink)


def test_a_program_reaches_no_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        assert (
            sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))") == "failed: PermissionError"
        )
        with pytest.raises(TimeoutError):
            server.accept()


def test_what_is_refused_stays_refused_where_python_is_gone_around(tmp_path):
    """System calls by ctypes, which no check inside Python could see: each is refused with EPERM (1)."""
    target = str(tmp_path / "written")
    program = f"""
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
def refused(*words):
    ctypes.set_errno(0)
    return libc.syscall(*words) == -1 and ctypes.get_errno() in (1, 38)
x86 = platform.machine() == "x86_64"
assert refused(41 if x86 else 198, 2, 1, 0)  # socket
assert refused(425, 8, 0)  # io_uring_setup, which can open and connect
assert refused(437, -100, {target!r}.encode(), 0, 0)  # openat2
assert refused(257 if x86 else 56, -100, {target!r}.encode(), 0o101, 0o644)  # openat, to write
assert refused(435, 0, 0)  # clone3
assert refused(56 if x86 else 220, 17, 0, 0, 0, 0)  # clone, of a process
assert refused(272 if x86 else 97, 0x10000000)  # unshare
assert refused(101 if x86 else 117, 0, 0, 0, 0)  # ptrace
"""
    assert sandbox.run(program) == sandbox.PASSED
    assert not Path(target).exists()


def test_a_verdict_cannot_be_guessed():
    program = "import os, contextlib\nfor fd in range(3, 64):\n  with contextlib.suppress(OSError): os.write(fd, b'{}')"
    for guess in ("passed", f"{'0' * 16} passed"):
        assert sandbox.run(program.format(guess)) == "ended by itself"


def test_nothing_runs_where_it_cannot_be_contained(monkeypatch):
    monkeypatch.setattr(seccomp, "__file__", str(Path(__file__).parent / "nothing.py"))
    sandbox.check.cache_clear()
    with pytest.raises(UserError, match="safely"):
        sandbox.run_all(["x = 1"])
    sandbox.check.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UserError, match="Linux"):
        sandbox.run_all(["x = 1"])
    sandbox.check.cache_clear()


@pytest.mark.parametrize(("machine", "header"), HEADERS.items())
def test_the_numbers_are_the_kernels(machine, header):
    if not Path(header).exists():
        pytest.skip(f"no {header}")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    defined |= {"newfstatat": defined.get("newfstatat") or defined.get("fstatat", "")}
    column = seccomp.MACHINES[machine][0]
    for name, numbers in (seccomp.PLAIN | seccomp.CHECKED).items():
        if numbers[column] is not None:
            assert defined[name] == str(numbers[column]), name


def humaneval():
    path = ROOT / "evals/tasks/humaneval/utils.py"
    spec = importlib.util.spec_from_file_location("humaneval_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_humaneval_item_is_judged():
    doc = {
        "prompt": 'def double(x):\n    """Twice x."""\n', "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 6\n",
    }  # fmt: skip
    utils = humaneval()
    answers = [
        "    return 2 * x\n",
        "    return x + 2\n",
        "    return\n",
        "    return 4\n",
    ]
    verdicts = utils.verdicts([answers, answers[:1]], [doc, doc])
    assert verdicts == [["passed", *["failed: AssertionError"] * 3], ["passed"]]
    assert [utils.score(doc, [found])["pass@1"] for found in verdicts] == [0.25, 1.0]


@pytest.mark.real_data
def test_every_canonical_solution_passes():
    if not HUMANEVAL.exists():
        pytest.skip(LACKING)
    docs = [json.loads(line) for line in HUMANEVAL.read_text(encoding="utf-8").splitlines()]
    assert len(docs) == 164
    utils = humaneval()
    right = utils.verdicts([[doc["canonical_solution"]] for doc in docs], docs)
    assert [doc["task_id"] for doc, found in zip(docs, right, strict=True) if found != ["passed"]] == []
    empty = utils.verdicts([["    return None\n"] for doc in docs], docs)
    assert not any(found == ["passed"] for found in empty)


def test_the_contained_side_needs_the_standard_library_alone():
    """It is a script: the filter is on before anything of a program is imported."""
    code = "import runpy, sys\nrunpy.run_path(sys.argv[1])"  # -S: no site-packages
    subprocess.run([sys.executable, "-I", "-S", "-c", code, seccomp.__file__], check=True)
