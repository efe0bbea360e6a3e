"""Answers before and after, as a page shows them."""

import re
from dataclasses import dataclass
from typing import Any

CUT = re.compile(r" \(cut at \d+ tokens\)$")


@dataclass(frozen=True)
class Answer:
    """What was asked, the whole prompt, and what was said; where an answer was cut, how."""

    asked: str
    prompt: str
    before: str
    after: str
    reference: str
    cut_before: str
    cut_after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after

    @property
    def right(self) -> bool:
        return self.after.strip() == self.reference.strip()


def shown(samples: list[dict[str, Any]]) -> list[Answer]:
    """The samples of a report; those of an earlier version have no `asked`."""
    found = []
    for sample in samples:
        before, after = sample.get("before") or "", sample.get("after") or ""
        cuts = [match.group().strip(" ()") if (match := CUT.search(text)) else "" for text in (before, after)]
        asked, reference = sample.get("asked") or sample["prompt"], sample.get("reference") or ""
        found.append(Answer(asked, sample["prompt"], CUT.sub("", before), CUT.sub("", after), reference, *cuts))
    return found
