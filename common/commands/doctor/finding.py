"""One line of what `tunebook doctor` says."""

from dataclasses import dataclass

GOOD, NOTE, WRONG = "ok", "note", "wrong"
EXTRA = "extra"  # something optional that is not installed


@dataclass
class Finding:
    """What was found of a topic. `remedy`: the command that changes it, where the state is not ok."""

    topic: str
    state: str
    found: str
    remedy: str = ""
