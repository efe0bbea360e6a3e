"""A Hub that does not answer: one message within seconds; copies that are here work."""

import http.server
import socket
import threading
import time

import pytest

from tunebook.common import models
from tunebook.common.data import hub
from tunebook.common.errors import UserError


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The Hub at an address that a test gives, with an empty cache."""
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._answers.cache_clear()
    yield lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)
    hub._answers.cache_clear()


def server(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *words):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    return found


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (403, True), (502, False), (504, False)])
def test_what_counts_as_an_answer(status, answers, online):
    found = server(status)
    online(f"http://127.0.0.1:{found.server_address[1]}")
    assert hub.reachable() == answers
    found.shutdown()


def test_a_hub_that_says_nothing_is_given_up_in_seconds(online, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(
            UserError, match=r"the Hub cannot be reached from here, and no copy of it is in .*hf download"
        ):
            models.resolve("nobody/nothing")
        assert time.monotonic() - start < 5


def test_a_copy_that_is_here_is_used(online, tmp_path):
    from huggingface_hub import constants

    online("http://127.0.0.1:9")
    folder = tmp_path / "cache" / "models--nobody--here"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    hub.require("nobody/here", "--model")
    assert constants.HF_HUB_OFFLINE  # what comes now asks nobody


def test_offline_by_wish_is_said(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="--tokenizer nobody/nothing: HF_HUB_OFFLINE is set, and no copy"):
        hub.require("nobody/nothing", "--tokenizer")
