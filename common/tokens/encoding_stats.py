"""Statistics of encoding one split: rows kept and dropped, tokens, and whether enough is left to train on."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tunebook.common.errors import SHOWN, CheckFailed

LOUD = 0.05  # share of the rows from which a loss is said on a line of its own


@dataclass
class EncodingStats:
    """What became of the rows of one split of a dataset."""

    rows: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> rows
    truncated: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    by_turn: int = 0  # rows added for earlier turns, which the template writes in another way in the whole conversation
    noted: dict[str, int] = field(default_factory=dict)  # what else was done to rows' thinking -> rows
    special_text: int = 0  # rows whose text holds what looks like a special token; it was encoded as text
    weighted: int = 0  # rows kept of which tokens train with another weight than 1
    sources: dict[str, dict] = field(default_factory=dict)  # what each source gives to a mix, set by mixing.mix
    dropped_rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # the first of each reason
    # why the template cannot take the first rows dropped as `template`
    refused: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncodingStats":
        """What `as_dict` gave."""
        return cls(**{**values, "dropped": Counter(values["dropped"])})

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "dropped": dict(self.dropped), "dropped_rows": dict(self.dropped_rows)}

    def summary(self) -> str:
        """One line."""
        lost = ", ".join(f"{number} dropped as {reason}" for reason, number in self.dropped.items()) or "none dropped"
        share = f"{100 * self.trained_tokens / self.tokens:.1f} %" if self.tokens else "none"
        cut = f", {self.truncated} truncated" if self.truncated else ""
        special = f"; special-token text in {self.special_text} rows, kept as text" if self.special_text else ""
        special += f"; template: {self.refused[0]}" if self.refused else ""
        special += f"; {self.weighted} rows have weights" if self.weighted else ""
        special += "".join(f"; {remark} in {rows} rows" for remark, rows in self.noted.items())
        if self.by_turn:
            special += f"; {self.by_turn} rows added for earlier turns, which the template changes once they go on"
        return f"{self.rows} rows, {self.kept} kept{cut}, {lost}; {self.tokens} tokens, {share} of them train{special}"

    def drop(self, reason: str, number: int) -> None:
        self.dropped[reason] += 1
        if len(self.dropped_rows[reason]) < SHOWN:
            self.dropped_rows[reason].append(number)

    def refuse(self, number: int, why: str) -> None:
        """Drop a row that the template cannot take."""
        self.drop("template", number)
        if len(self.refused) < SHOWN:
            self.refused.append(f"row {number}: {why}")

    def add_dropped(self, dropped: Counter) -> None:
        """Count rows that were dropped when their source was read: reason -> rows."""
        self.rows += dropped.total()
        self.dropped += dropped

    def problem(self, max_length: int) -> str | None:
        """Why nothing, or almost nothing, would train; None where enough is left."""
        if not self.kept or not self.trained_tokens:
            return (
                f"nothing would train: {self.summary()}. Raise --max_length (now {max_length}) if rows are too long, "
                "or look at the data's outputs"
            )
        if self.kept * 10 < self.rows - self.dropped["weight_0"]:  # those were not meant to train
            return f"almost nothing would train: {self.summary()}. Raise --max_length (now {max_length})"
        return None

    def warnings(self, max_length: int) -> list[str]:
        """A sentence on each reason for which many rows are dropped, or on many that are truncated."""
        cures = {
            "too_long": f": they have more than --max_length {max_length} tokens; `tunebook inspect DATA --tokenizer "
            "MODEL` shows what lengths cost",
            "empty_output": ": their answers are empty",
        }
        lost = {reason: (rows, "dropped", cures.get(reason, "")) for reason, rows in self.dropped.items()}
        if self.truncated:
            lost["too_long"] = (self.truncated, "cut, and train no end token", cures["too_long"])
        return [
            f"{100 * rows / self.rows:.0f} % of the rows ({rows:,} of {self.rows:,}) are {what} as {reason}{cure}"
            for reason, (rows, what, cure) in lost.items()
            if rows >= LOUD * self.rows
        ]

    def require_trainable(self, max_length: int) -> None:
        """Print the warnings; raises CheckFailed as `problem` says."""
        if problem := self.problem(max_length):
            raise CheckFailed(problem)
        for sentence in self.warnings(max_length):
            print(f"WARNING: {sentence}")
