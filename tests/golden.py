"""Texts that are kept as files: `UPDATE_GOLDEN=1 pytest tests -m golden` writes them anew; look at what changed."""

import os

from paths import TESTS

FOLDER = TESTS / "assets" / "golden"


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


def keys(value, at=""):
    """Where the values of a report are, in lines; names of data as *."""
    if isinstance(value, dict):
        names = {name: "*" if at == "data.sources" or "/" in name else name for name in value}
        found = {line for name, mine in names.items() for line in keys(value[name], f"{at}.{mine}" if at else mine)}
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        found = set(keys(value[0], f"{at}[]"))
    else:
        found = {f"{at}[]" if isinstance(value, list) else at}
    return sorted(found)
