"""Texts that are kept as files: `UPDATE_GOLDEN=1 pytest tests` writes them anew; look at what changed."""

import os

from paths import TESTS

FOLDER = TESTS / "golden"


def check(name, text):
    """Assert that a text is the kept one.

    Args:
        name: of the file in tests/golden.
    """
    file = FOLDER / name
    text = "\n".join(line.rstrip() for line in text.strip("\n").split("\n")) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{file} is not there: UPDATE_GOLDEN=1 writes it"
    assert text == file.read_text(encoding="utf-8"), f"{file.relative_to(TESTS.parent)}; UPDATE_GOLDEN=1 writes it anew"
