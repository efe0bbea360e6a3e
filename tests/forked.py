"""A Python that has the training libraries already: commands as forks of one process, which imported them once.

`run(script, *words)` gives what `subprocess.run([sys.executable, script, *words], ...)` gives, without 8-12 seconds of
imports. A fork differs from a process in two things: what the command imports is there before it asks, in the
order of the recipes, and the seed of str hashes is that of all forks. So a test of these two starts a process.
"""

import atexit
import functools
import gc
import importlib
import io
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

from paths import ROOT, TESTS

STARTED = dict(os.environ)


class Server:
    """A process that runs `script`, which calls `next_child`."""

    def __init__(self, script, **environment):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **environment}, cwd=ROOT,
        )  # fmt: skip
        atexit.register(self.close)

    def run(self, *words, cwd=None, env=None, timeout=600, input="", **more):
        """What `python words` gives: its exit code, standard output and error, as a CompletedProcess.

        Args:
            env: all variables of the command, by default those of this process, as they are now. What a library reads
                when it is imported was read before.
            timeout: seconds.
            input: what it reads from standard input.
            more: for the server's script.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        with tempfile.TemporaryDirectory() as out:
            words = list(map(str, words))
            (Path(out) / "stdin").write_text(input, encoding="utf-8")
            job = {"words": words, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
            self.process.stdin.write(json.dumps({**job, "out": out, "timeout": timeout, **more}) + "\n")
            self.process.stdin.flush()
            code = self.process.stdout.readline()
            assert code, self.said()
            if code == "late\n":
                raise subprocess.TimeoutExpired(words, timeout)
            said = [(Path(out) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
            return subprocess.CompletedProcess(words, int(code), *said)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def said(self):
        self.log.seek(0)
        return self.log.read()[-3000:]


def next_child(load):
    """In the server: call `load`, fork a child for each job that is read, and end where there are no more.

    Returns:
        In each child, its job: "words", and what else was given. Its folder, variables and files are in place.
    """
    jobs, answers = (os.fdopen(os.dup(number), mode) for number, mode in ((0, "r"), (1, "w")))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what imports print is for the log
    load()
    gc.collect()
    gc.freeze()  # children leave these objects alone, which keeps them shared and their own collections short
    assert threading.active_count() == 1, threading.enumerate()  # no other thread lives in a child
    for line in jobs:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            become(job)
            return job
        print(outcome(child, job["timeout"]), file=answers, flush=True)
    sys.exit()


def outcome(child, timeout):
    """Exit code of a child, as subprocess counts it, or "late"."""
    end = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "late"
        time.sleep(0.02)


def become(job):
    """Put in place what a new process would have been given, and new seeds where one is drawn at an import."""
    import numpy
    import torch

    for number, name, how in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        os.dup2(os.open(Path(job["out"]) / name, how | os.O_CREAT), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  as long as the process
    os.chdir(job["cwd"])
    for name in STARTED.keys() - job["env"].keys():
        os.environ.pop(name, None)
    os.environ.update(job["env"].items() - STARTED.items())  # what an import has set stays, as in a new process
    random.seed()
    numpy.random.seed()
    torch.default_generator.seed()


def execute(words):
    """What `python words` does, for a file, `-m` and a module, or `-c` and code."""
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        folder = os.path.dirname(os.path.abspath(words[0]))
        helpers = [str(TESTS)] if Path(folder).is_relative_to(TESTS) else []
        sys.argv, sys.path[:1] = words, [folder, *helpers]
        runpy.run_path(words[0], run_name="__main__")


class Popen:
    """As much of subprocess.Popen as its callers here ask of a Python: a fork, which runs when it is waited for."""

    def __init__(self, command, cwd=None, env=None, stdin=None, stdout=None, stderr=None, text=True, **_):
        assert command[0] == sys.executable, command
        self.args, self.how, self.returncode = command, {"cwd": cwd, "env": env}, None
        self.stdin, self.to = io.StringIO(), (stdout, stderr)
        self.stdin.close = lambda: None
        self.stderr = None

    @functools.cached_property
    def stdout(self):
        self.wait()
        return io.StringIO(self.said[0])

    def wait(self, timeout=None):
        if self.returncode is None:
            done = run(*self.args[1:], input=self.stdin.getvalue(), timeout=timeout or 600, **self.how)
            self.returncode, self.said = done.returncode, (done.stdout, done.stderr)
            if self.to[1] == subprocess.STDOUT:
                self.said = (done.stdout + done.stderr, "")
            for place, text in zip(self.to, self.said, strict=True):
                if hasattr(place, "write"):  # the caller may have closed it
                    with open(place.name, "a", encoding="utf-8") as file:
                        file.write(text)
        return self.returncode

    def communicate(self, input=None, timeout=None):
        self.stdin.write(input or "")
        self.wait(timeout)
        return self.said

    def poll(self):
        return self.returncode

    def kill(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@functools.cache
def server():
    return Server(__file__)


def run(*words, **how):
    """Server.run of this test process's own server, with the libraries as a recipe imports them."""
    return server().run(*words, **how)


SEVERAL = """
import os, runpy, socket, sys
count, *sys.argv = sys.argv[1:]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
children = []
for rank in range(int(count)):
    children.append(os.fork())
    if children[-1] == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
failed = False
while children:
    child, status = os.waitpid(-1, 0)
    children.remove(child)
    if status and not failed:  # the others would wait for it
        failed = True
        for other in children:
            os.kill(other, 15)
sys.exit(failed)
"""


def launch(count, *words, **how):
    """What `torchrun --nproc_per_node count words` starts, as forks: one run of several processes on this machine."""
    return run("-c", SEVERAL, count, *words, **how)


def load():
    """Import what a recipe imports, in its order."""
    from tunebook.common import cli

    cli._environment()
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft

    from tunebook.common import generation
    from tunebook.common.estimate import probe

    for drawing in ("bokeh.embed", "bokeh.plotting", "matplotlib.figure", "matplotlib.backends.backend_svg"):
        importlib.import_module(drawing)  # of a report, half a second each time
    probe.TIMING_SECONDS = 0.0  # seconds: one step is timed beside the longest
    generation.Samples.max_new_tokens = 8  # half of a short run's time, at 64; what a sample says is another test's


if __name__ == "__main__":
    execute(next_child(load)["words"])
