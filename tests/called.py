"""A command in this process, and rows for it."""

import json

from tunebook.common import commands


def call(*words):
    """Exit code of a command in this process."""
    try:
        commands.main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TOPICS = ["rain", "bread", "music", "trains", "glass", "otters", "maps", "winter", "paint", "rope", "salt", "kites"]
ROWS = [
    {"instruction": f"Write about {one} and {other}.", "input": "", "output": f"{one} goes with {other}."}
    for one in TOPICS
    for other in TOPICS
]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
