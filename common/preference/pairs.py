"""Preference pairs, chosen and rejected, read from the usual forms and checked.

A pair is the canonical row of its chosen answer (data/rows.py) with one more field, `rejected`: the canonical row of
the other answer.
"""

import dataclasses
import itertools
import re
from typing import Any

from tunebook.common import data
from tunebook.common.data import conversations, rows
from tunebook.common.data import schema as schema_module
from tunebook.common.data.column_usage import Uses
from tunebook.common.data.conversations import Fault
from tunebook.common.data.layouts import REQUIRED, Schema
from tunebook.common.data.rows import ANSWER, FIELDS, Row
from tunebook.common.data.schema import PEEKED
from tunebook.common.data.spec import ANSWERS
from tunebook.common.errors import RowErrors, UserError, type_name

PROMPTS = ("prompt", "conversations", "messages", "question")  # columns that may hold what is asked
SPOKEN = re.compile(r"\n\n(Human|Assistant):[ \n]?")  # a dialogue as one text, as in HH
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def load(words: str | list[str], seed: int = 0, bad_rows: str = "refuse") -> data.Splits:
    """The train, validation and test pairs of one or several sources; arguments as in data.load.

    `chosen=COLUMN` and `rejected=COLUMN` after a source name the columns of the two answers.
    """
    return data.load(words, seed, PairReader, bad_rows)


class PairReader(schema_module.SchemaReader):
    """The pairs of a source, checked. Known are, with `chosen` and `rejected` beside or alone:

    - instruction (input), or prompt or question: text; both answers are texts;
    - prompt, conversations or messages: turns, or text; each answer is a turn, a list of turns, or text after turns;
    - nothing: each answer is a whole dialogue, as turns or as one text of `Human:` and `Assistant:` (HH).
    """

    marks = ()

    def __init__(
        self, source: schema_module.Input, name: str, mapping: dict[str, str] | None = None, bad_rows: str = "refuse"
    ):
        columns = dict(mapping or {})
        chosen, rejected = self.answers = tuple(columns.pop(which, which) for which in ANSWERS)
        peeked = [value for _, value in itertools.islice(source.rows(RowErrors(name, drop=True)), PEEKED)]
        values = [value for value in peeked if isinstance(value, dict)]
        if values and not any(chosen in value or rejected in value for value in values):
            raise UserError(
                f"--dataset {name}: no pairs of answers: expected the columns `{chosen}` and `{rejected}`; it has: "
                f"{', '.join(map(str, values[0]))}. Others are named after the file: chosen=COLUMN rejected=COLUMN"
            )
        self.asks = _asks(values, columns)
        forms = [_form(value, value.get(chosen), self.asks, columns) for value in values]
        self.form = max(forms, key=forms.count, default="instruction")
        if self.form == "nothing":
            raise UserError(
                f"--dataset {name}: no column holds what is asked. It has: {', '.join(map(str, values[0]))}. Name it "
                "after the file: instruction=COLUMN or prompt=COLUMN"
            )
        kind = self.form if self.form in ("instruction", "pair") else "chat"
        question_columns = {"instruction": columns.get("instruction", "instruction"), "pair": self.asks}
        key = ANSWER[kind]
        own_columns = {ours: theirs for ours, theirs in columns.items() if ours not in ("prompt", "messages")}
        required = {"messages": chosen} if kind == "chat" else {REQUIRED[kind][0]: question_columns[kind], key: chosen}
        super().__init__(source, name, own_columns | required, bad_rows)
        self.second = dataclasses.replace(self.schema, columns={**self.schema.columns, key: rejected})
        all_columns = {**self.schema.columns, "rejected": rejected}
        self.schema = dataclasses.replace(
            self.schema, columns=all_columns, required=(*self.schema.required, "rejected")
        )

    def normalize(self, value: Any, faults: list[Fault]) -> Row:
        if not isinstance(value, dict):
            return super().normalize(value, faults)
        if self.form in ("turns", "spoken"):
            said = [column for column in self.answers if value.get(column) is not None]
            whole = {column: self._dialogue(value, column, faults) for column in said}
            if faults:
                return {}
            value = {column: kept for column, kept in value.items() if column != self.asks} | whole
        row = super().normalize(value, faults)
        first, uses = self.schema, self.uses
        self.schema, self.uses = self.second, Uses()
        others: list[Fault] = []
        try:
            second = super().normalize(value, others)
        finally:
            self.schema, self.uses = first, uses
        faults += [fault for fault in others if fault not in faults]
        if not faults and any(rows.last_weight(found) != 1 for found in (row, second)):
            faults.append(("weight", "is not 1: preference pairs take no weights. Leave the pair out, or give it 1"))
        return {} if faults else {**row, "rejected": {name: second[name] for name in FIELDS if name in second}}

    def summary(self) -> str:
        asked = f"; asked in {self.asks}" if self.form == "turns" and self.asks else ""
        return super().summary() + asked

    def _fields(self, found: Row, faults: list[Fault], schema: Schema) -> Row:
        if self.form == "spoken":  # the order of its turns is looked at where pairs are counted
            return {"messages": found["messages"]}
        return super()._fields(found, faults, schema)

    def _dialogue(self, value: Row, column: str, faults: list[Fault]) -> Any:
        """The whole conversation with one of the answers, as turns; what cannot be read as one, as it is."""
        answer = value[column]
        if self.form == "spoken":
            return _spoken(answer, column, faults)
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        if answer == []:
            faults.append((column, "is empty, expected an answer", "incomplete"))
            return []
        turns = [answer] if isinstance(answer, dict) else answer
        if not isinstance(turns, list) or _opens(turns):
            return turns
        question = value.get(self.asks or "")
        if isinstance(question, str):
            return [{"role": "user", "content": question}, *turns]
        if not isinstance(question, list):
            faults.append((str(self.asks), f"is {type_name(question)}, expected the turns before the answer, or text"))
            return turns
        return [*question, *turns]


def _asks(values: list[Row], columns: dict[str, str]) -> str | None:
    """The column that holds what is asked, where it is not `instruction`."""
    explicit = columns.get("prompt") or columns.get("messages")
    candidates = [column for column in PROMPTS if 2 * sum(column in value for value in values) > len(values)]
    return explicit or (candidates[0] if candidates else None)


def _form(value: Row, said: Any, asks: str | None, given: dict[str, str]) -> str:
    """spoken, turns, instruction, pair or nothing."""
    if isinstance(said, str) and SPOKEN.match(said):
        return "spoken"
    if isinstance(said, (list, dict)) or isinstance(value.get(asks or ""), list):
        return "turns" if asks or _opens(said) else "nothing"
    if given.get("instruction", "instruction") in value:
        return "instruction"
    return "pair" if asks else "nothing"


def _opens(turns: Any) -> bool:
    """Whether the first of the turns is a user's or the system's: a whole dialogue, and no answer alone."""
    first = turns[0] if isinstance(turns, list) and turns else None
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and conversations.ROLES.get(role.lower()) in ("user", *rows.NOT_ASKING)


def _spoken(text: Any, column: str, faults: list[Fault]) -> list[dict[str, str]]:
    """The turns of a dialogue that is one text."""
    fault = conversations.not_text(text)
    head, *parts = SPOKEN.split(text) if not fault else [""]
    if fault or head.strip() or not parts:
        faults.append((column, fault or "does not begin with Human: on a line of its own"))
        return []
    texts = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": SPEAKERS[speaker], "content": said.strip()} for speaker, said in texts]
