"""Datasets of the Hub as sources of rows, with a quick answer when the Hub is unreachable."""

import contextlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from tunebook.common.data.spec import SPLIT_OF
from tunebook.common.errors import RowErrors, UserError

PATIENCE = 3  # seconds for a first connection; the Hub's client alone takes half a minute to give up


class Source:
    """One part of a dataset of the Hub; its rows stay in the files that `datasets` keeps."""

    def __init__(self, parts: list[tuple[str, Any]]):
        self.parts = parts
        self.size = sum(part.data.nbytes for _, part in parts)

    def rows(self, problems: RowErrors) -> Iterator[tuple[int, Any]]:
        yield from enumerate((row for _, part in self.parts for row in part), 1)

    def place(self, number: int) -> str:
        for name, part in self.parts:
            if number <= len(part):
                return f"{name}, row {number}"
            number -= len(part)
        return f"row {number}"


def splits(name: str, notes: list[str]) -> dict[str, Source]:
    """The parts of a dataset by split; {"": all of it} where it has no train part.

    Raises:
        UserError: there is no such dataset, or it is not here and the Hub cannot be reached.
    """
    import datasets

    reached = reachable()
    try:
        with contextlib.nullcontext() if reached else offline():
            dataset = datasets.load_dataset(name)
    except Exception as error:
        # The Hub client raises many kinds; what a user needs is which name failed and that a file works, too.
        reason = f"the Hub says: {type(error).__name__}: {error}" if reached else "the Hub cannot be reached from here"
        raise UserError(f"--dataset {name}: no such file, and {reason}. A local file or folder works") from None
    if not reached:
        notes.append(f"{name}: the Hub cannot be reached; the copy that is here was used")
    parts = {str(part): rows for part, rows in dataset.items()}
    known = {SPLIT_OF[part]: part for part in parts if part in SPLIT_OF}
    if "train" not in known:
        return {"": Source(list(parts.items()))}
    if others := [part for part in parts if part not in known.values()]:
        notes.append(f"{name}: parts that are not used: {', '.join(others)}")
    return {split: Source([(part, parts[part])]) for split, part in known.items()}


def reachable() -> bool:
    """Whether a connection to the Hub opens. Behind a proxy that is the proxy's affair, and the answer is yes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """The Hub's clients use only what is on this machine."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
