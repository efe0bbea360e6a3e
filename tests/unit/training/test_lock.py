"""One run in a folder: a second process is refused, and what a dead one has left is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tunebook.common.errors import UserError
from tunebook.common.run_folder import lock

HOLD = """
import os, sys, time, pathlib
from tunebook.common.run_folder import lock
lock.BEAT = float(os.environ.get("BEAT", lock.BEAT))
lock.acquire(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def released():
    yield
    lock.release()


def holder(folder, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    with holder(tmp_path) as first:
        with pytest.raises(UserError, match=f"used by process {first.pid} on .* which still runs"):
            lock.acquire(tmp_path)
        first.stdin.close()
        first.wait()
    assert not list(tmp_path.iterdir())  # released at its end
    assert lock.acquire(tmp_path) is False
    assert lock.acquire(tmp_path) is False  # by the same process
    lock.release()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    first = holder(tmp_path)
    first.send_signal(signal.SIGKILL)
    while lock.process_started(first.pid):  # a zombie counts as dead: nobody has waited for it
        pass
    assert (tmp_path / lock.FILE).exists()
    assert lock.acquire(tmp_path) is True
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
    first.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    boot = lock.process_started(os.getpid()).partition(" ")[0]
    found = {"host": socket.gethostname(), "pid": os.getppid(), "process_started": f"{boot} 1", "time": "then"}
    (tmp_path / lock.FILE).write_text(json.dumps(found))
    assert lock.acquire(tmp_path) is True
    lock.release()
    (tmp_path / lock.FILE).write_text(json.dumps({**found, "process_started": lock.process_started(os.getppid())}))
    with pytest.raises(UserError, match=f"process {os.getppid()} on .* since then, which still runs"):
        lock.acquire(tmp_path)


def test_another_machine_is_named_with_the_remedy(tmp_path):
    found = {"host": "elsewhere", "pid": 2**22, "process_started": "boot 1", "time": "then"}
    (tmp_path / lock.FILE).write_text(json.dumps(found))
    with pytest.raises(UserError, match=f"on elsewhere, since then.*if it does not, remove {tmp_path / lock.FILE}"):
        lock.acquire(tmp_path)
    assert json.loads((tmp_path / lock.FILE).read_text()) == found


ELSEWHERE = {
    "another container": lambda found: {**found, "namespace": "pid:[1]"},
    "another machine": lambda found: {**found, "process_started": "boot 1"},
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_process_that_cannot_be_seen_lives_while_it_touches_its_lock(tmp_path, monkeypatch, where, capsys):
    """It has this host's name, and its number is nobody's here: only its file tells."""
    monkeypatch.setattr(lock, "SILENT", 3.0)
    path = tmp_path / lock.FILE
    with holder(tmp_path, BEAT="0.2") as first:
        found = ELSEWHERE[where](json.loads(path.read_text())) | {"pid": 2**22 + 1}
        monkeypatch.setattr(lock, "_read", lambda place, read=lock._read: read(place) and found)
        with pytest.raises(UserError, match="in another container or on another machine of that name, and it still"):
            lock.acquire(tmp_path)
        assert "process that cannot be seen from here" in capsys.readouterr().out
        first.kill()
    monkeypatch.undo()
    monkeypatch.setattr(lock, "SILENT", 3.0)
    path.write_text(json.dumps(found))
    assert lock.acquire(tmp_path) is True
    lock.release()
    path.write_text(json.dumps(found))
    os.utime(path, (1e9, 1e9))  # long silent: nothing is waited for
    start = time.monotonic()
    assert lock.acquire(tmp_path) is True and time.monotonic() - start < 1
    assert [place.name for place in tmp_path.iterdir()] == [lock.FILE]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "host": 3}'])
def test_a_lock_that_cannot_be_read_is_replaced(tmp_path, content, capsys):
    (tmp_path / lock.FILE).write_text(content)
    assert lock.acquire(tmp_path) is True
    assert "cannot be read, and is replaced" in capsys.readouterr().out


def test_it_works_without_hard_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    lock.acquire(tmp_path)
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
    with pytest.raises(AssertionError):
        holder(tmp_path)
    lock.release()
    assert not list(tmp_path.iterdir())


def test_other_processes_of_a_run_share_it(tmp_path):
    with holder(tmp_path) as first, holder(tmp_path, RANK="1") as second:
        second.stdin.close()
        second.wait()
        assert (tmp_path / lock.FILE).exists()  # which is the first one's
        first.stdin.close()


def test_of_two_that_take_over_one_does(tmp_path, monkeypatch):
    """A process that was slower finds the lock of the quicker one where it saw the dead one's."""
    boot = lock.process_started(os.getpid()).partition(" ")[0]
    dead = {"host": socket.gethostname(), "pid": os.getppid(), "process_started": f"{boot} 1", "time": "then"}
    alive = {**dead, "process_started": lock.process_started(os.getppid()), "time": "now"}
    path = tmp_path / lock.FILE
    path.write_text(json.dumps(alive))
    monkeypatch.setattr(lock, "_read", lambda place, read=lock._read, seen=[dead]: seen.pop() if seen else read(place))
    with pytest.raises(UserError, match="since now, which still runs"):
        lock.acquire(tmp_path)
    assert json.loads(path.read_text()) == alive and [place.name for place in tmp_path.iterdir()] == [lock.FILE]
