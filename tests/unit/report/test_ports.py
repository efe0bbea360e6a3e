"""A page that is served names its port before a model is loaded."""

import socket

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
