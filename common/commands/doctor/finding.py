"""One line of what `tunebook doctor` says."""

from dataclasses import dataclass

GOOD, NOTE, WRONG = "ok", "note", "wrong"


@dataclass
class Finding:
    """What was found of a topic. `remedy` is what to do where the state is not ok."""

    topic: str
    state: str
    found: str
    remedy: str = ""
