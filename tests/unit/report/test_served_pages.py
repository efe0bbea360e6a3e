"""Pages that are served: for this machine alone, and at a port that is free, which is looked at first."""

import socket
import urllib.error
import urllib.request

import pytest

from tunebook.common.errors import UserError
from tunebook.common.pages import served


def test_a_port_that_is_taken_or_none():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port} is taken, perhaps by another page; choose another"):
            served.check_port(port)
    served.check_port(port)  # it is free again
    for port in (0, -1, 65536):
        with pytest.raises(UserError, match="ports are 1 to 65535"):
            served.check_port(port)


def test_a_page_fetches_nothing_from_elsewhere_and_answers_to_no_other_name(monkeypatch, serves_pages):
    """An answer may name an image of a server that is told of it; another page may let its own name point here."""
    gradio = pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def build():
        with gradio.Blocks() as page:
            gradio.Markdown("text")
        return page

    def asked(page):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy and "img-src 'self' data: blob:" in policy
            request = urllib.request.Request(f"http://127.0.0.1:{port}/config", headers={"Host": "elsewhere.example"})
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(request)
        finally:
            page.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", asked)
    served.launch(build, "chat page", port)
