"""Datasets of the Hub as sources of rows, with a quick answer when the Hub is unreachable."""

import contextlib
import functools
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from tunebook.common.data.spec import SPLIT_OF
from tunebook.common.errors import RowErrors, UserError

PATIENCE = 3  # seconds for a first answer; the Hub's client alone takes two minutes to give up


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


def require(name: str, flag: str, file: str = "config.json") -> None:
    """Check a model of the Hub before its client is asked, which takes two minutes to give up.

    Where the Hub does not answer, all clients of this process use what is on this machine from now on.

    Raises:
        UserError: there is no answer, and no copy of the model's `file` here.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    offline_before = constants.HF_HUB_OFFLINE
    if reachable():
        return
    constants.HF_HUB_OFFLINE = True
    try:
        copy = try_to_load_from_cache(name, file)
    except ValueError as error:  # it cannot be a name
        raise UserError(f"{flag} {name}: {error}") from None
    if not isinstance(copy, str):
        why = "HF_HUB_OFFLINE is set" if offline_before else "the Hub cannot be reached from here"
        raise UserError(
            f"{flag} {name}: {why}, and no copy of it is in {constants.HF_HUB_CACHE}. Name a local folder, or fetch it "
            f"where there is a network: hf download {name}"
        )


def reachable() -> bool:
    """Whether the Hub answers, directly or through a proxy; known within seconds, and asked once."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@functools.cache
def _answers(address: str) -> bool:
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            found.append(error.code < 500)  # a gateway that finds nobody behind it says 502 to 504
        except (OSError, ValueError):
            found.append(False)
        else:
            found.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no limit of its own
    thread.start()
    thread.join(2 * PATIENCE)
    return found == [True]


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
