"""What tests share: the bundled tokenizer and model, commands without a new process, and the order over workers."""

import logging
import signal
import subprocess
import threading

import forked
import pytest

from tunebook.common.pocket import FOLDER


@pytest.fixture(scope="module")
def tokenizer():
    """That of pocket, for the tests of a file: what one file changes of it, another does not see."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER / "model")


@pytest.fixture(scope="module")
def pocket():
    """The bundled model in float32, for evaluation."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32).eval()


@pytest.fixture
def forks(monkeypatch):
    """Pythons that this process starts are forks, without their imports (see forked.py)."""
    monkeypatch.setattr(subprocess, "Popen", forked.Popen)


@pytest.fixture
def tunebook(capsys):
    """`tunebook words` in this process: its exit code, standard output and standard error."""
    from tunebook.common import commands

    def call(*words):
        capsys.readouterr()
        code = 0
        try:
            commands.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def serves_pages(monkeypatch):
    """For a test that serves a page here: uvicorn, as it begins, closes every handler of logging there is, and absl's
    closes its stream, which is pytest's own where an earlier test imported absl; no test after it could begin."""
    monkeypatch.setattr(logging, "_handlerList", [])


def pytest_configure():
    """Signals are those of a terminal: a shell's background job ignores Ctrl-C, and so would all that tests start."""
    if threading.current_thread() is threading.main_thread():
        for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
                signal.signal(getattr(signal, name), usual)


# --- workers

LONG = ("module", "session")  # scopes of what is made once for several tests


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Long tests first, and what shares something on one worker, so that it is made once."""
    for item in items:
        if not apart(item) and not item.get_closest_marker("xdist_group"):
            shares = "real" if hasattr(item.module, "real") else item.path.stem  # tokenizers of known models
            item.add_marker(pytest.mark.xdist_group(shares))
    if hasattr(config, "workerinput"):  # else in the order of the files, the quick ones of a file at once
        items.sort(key=rank)


def apart(item):
    """Whether it may run on another worker than the rest of its file."""
    defs = item._fixtureinfo.name2fixturedefs
    made = [name for name, found in defs.items() if found[-1].scope in LONG and item.path.name in found[-1].baseid]
    return bool(item.get_closest_marker("recipe")) and not made


def rank(item):
    return 0 if item.get_closest_marker("cuda_branches") else 1 if item.get_closest_marker("recipe") else 2


def pytest_collection_finish(session):
    """The libraries are imported for the forks while the first tests run."""
    items = [] if session.config.option.collectonly else getattr(session, "items", [])  # the controller has none
    if getattr(session.config.option, "loadgroup", False):
        lost = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        assert not lost, f"xdist does not group tests, so what a file makes once is made by every worker: {lost[:1]}"
    if any(item.get_closest_marker("recipe") for item in items):
        forked.server()
