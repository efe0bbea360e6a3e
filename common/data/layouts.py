"""Column layouts: the known ones, the one that a row fills, and those users name."""

from collections import Counter
from dataclasses import dataclass

from tunebook.common.data.rows import Row
from tunebook.common.errors import UserError, nearest


class PreferencePairs(UserError):
    """Rows of a better and a worse answer, which dpo_pairs trains on."""


Signature = tuple[tuple[str, int], ...]
OPTIONAL = {
    "instruction": ("input", "system", "history", "tools"),
    "pair": ("system", "tools"),
    "chat": ("tools", "system"),
}
REQUIRED = {"instruction": ("instruction", "output"), "pair": ("prompt", "completion"), "chat": ("messages",)}
BESIDE = {"input", "history"}  # what makes an instruction of a question and its answer
NAMES = {name for kind in REQUIRED for name in REQUIRED[kind] + OPTIONAL[kind]}


@dataclass(frozen=True, eq=False)
class Schema:
    """Which column holds what: `columns` maps our names to theirs; the ones in `required` have to be in every row."""

    kind: str
    columns: dict[str, str]
    required: tuple[str, ...]
    tree: bool = False

    @property
    def required_columns(self) -> list[str]:
        """Their columns that have to be in every row."""
        return [self.columns[name] for name in self.required]

    def expected(self) -> str:
        names = ", ".join(f"`{self.columns[name]}`" for name in self.required)
        optional = [f"`{theirs}`" for ours, theirs in self.columns.items() if ours not in self.required]
        return f"expected {names}" + (f" ({', '.join(optional)} may be missing)" if optional else "")


def schema(kind: str, columns: dict[str, str] | None = None, tree: bool = False) -> Schema:
    """A schema of a kind; names that are not given are called as ours are."""
    names = {name: name for name in (*REQUIRED[kind], *OPTIONAL[kind])} | (columns or {})
    return Schema(kind, names, REQUIRED[kind], tree)


def _pairs(prompt: str, completion: str) -> tuple[Schema, ...]:
    """Question and answer alone, and with what may stand beside them: a text to read, a system text, a history."""
    asked = {"instruction": prompt, "output": completion}
    beside = (schema("instruction", {**asked, "input": column}) for column in ("input", "context"))
    return schema("pair", {"prompt": prompt, "completion": completion}), *beside


# Of the layouts that a row fills, the one that most rows fill holds; where they share their columns, the one that uses
# more of them; then the first.
KNOWN = (
    schema("chat"),
    schema("chat", {"messages": "conversations"}),
    schema("chat", {"tools": "functions"}),  # OpenAI's older name of it
    schema("chat", {"messages": "prompt"}, tree=True),
    schema("instruction"),
    schema("instruction", {"input": "context"}),
    schema("instruction", {"input": "context", "output": "response"}),
    schema("instruction", {"output": "response"}),
    *_pairs("prompt", "completion"),
    *_pairs("prompt", "response"),
    *_pairs("prompt", "answer"),
    *_pairs("question", "answer"),
    *_pairs("question", "response"),
)
TEXTS = tuple(known for known in KNOWN if not known.tree)
THEIRS = {column for known in KNOWN for column in known.columns.values()}


def signature(value: Row) -> Signature:
    """Of each column of a row that a known schema has and that is not null: 1 empty, 2 filled, 3 an object."""
    return tuple(
        [
            (name, 3 if isinstance(cell, dict) else 2 if cell else 1)
            for name, cell in value.items()
            if cell is not None and name in THEIRS
        ]
    )


def filled(columns: Signature, most: Schema | None = None) -> Schema | None:
    """The known schema whose columns a row with that `signature` has, or None; `most`: the schema of most rows."""
    state = dict(columns)

    def rank(known: Schema) -> tuple[bool, bool, int, bool]:
        required = known.required_columns
        alike = most is not None and required == most.required_columns
        used = sum(state.get(column, 0) > 1 for column in known.columns.values())
        return all(state[column] > 1 for column in required), alike, used, known is most

    whole = [
        known
        for known in KNOWN
        if all(column in state for column in known.required_columns)
        and (known.columns.get("messages") != "prompt" or state["prompt"] == 3)
    ]
    return max(whole, key=rank, default=None)


def only(names: tuple[str, ...], most: Schema) -> bool:
    """Whether no known schema could suit a row of these columns better than the one of most rows, whatever is null."""
    there = set(names)
    used = there & set(most.columns.values())
    fits = (known for known in KNOWN if known is not most and there.issuperset(known.required_columns))
    return all(
        known.required_columns == most.required_columns and there.intersection(known.columns.values()) <= used
        for known in fits
    )


def detect(values: list[Row], name: str) -> Schema:
    """The known schema that most of the rows fill; else the one whose columns most rows have, at least in part."""
    votes = Counter(found for value in values if (found := filled(signature(value))))
    if votes:
        best = max(KNOWN, key=lambda known: votes[known])
        candidates = [known for known in KNOWN if votes[known] and known.required_columns == best.required_columns]
        return max(candidates, key=lambda known: (known.kind != "pair", votes[known]))
    if any({"chosen", "rejected"} <= value.keys() for value in values):
        raise PreferencePairs(
            f"--dataset {name}: these are preferences (chosen, rejected), on which recipes/dpo_pairs.py trains; to "
            f"train on one of the answers, name it after the file: --dataset {name} instruction=COLUMN output=chosen"
        )
    for test in (all, any):
        fits = [sum(test(column in value for column in known.required_columns) for value in values) for known in TEXTS]
        if max(fits):
            return TEXTS[fits.index(max(fits))]
    if not values:  # nothing to go by: empty, or all rows are wrong, and iterating says how
        return schema("instruction")
    present = list(dict.fromkeys(str(column) for value in values for column in value))
    raise UserError(
        f"--dataset {name}: no known columns. It has: {_listed(present)}{_hint(present)}\n"
        "  Known are instruction (input) output, prompt completion, question (context) answer, messages, conversations;"
        f" others are named after the file: --dataset {name} instruction=COLUMN output=COLUMN"
    )


def _listed(there: list[str]) -> str:
    return ", ".join(repr(column[:40] + "..." * (len(column) > 40)) for column in there[:20]) or "none"


def _hint(there: list[str]) -> str:
    if there == ["text"]:
        return (
            "\n  text alone has no prompt and answer to tell apart: it is data for pretraining, which no recipe here "
            "goes on with (pretrain_pocket makes the bundled model). Make questions and answers of it, a row each"
        )
    if len(there) == 1 and any(mark in there[0] for mark in ";\t|"):
        return "\n  that looks like cells with another separator: save it with commas as .csv, or with tabs as .tsv"
    if any(len(column) > 30 or " " in column for column in there):
        return "\n  if its first line is no header, add header=no; the columns are then called 1, 2, ..."
    return ""


def mapped(mapping: dict[str, str], values: list[Row], name: str) -> Schema:
    """The schema that a user names by our name -> source column; other columns are called as ours are.

    Raises:
        UserError: no such name or column, or names that do not belong to one kind of rows.
    """
    present = list(dict.fromkeys(str(column) for value in values for column in value))
    listed = f"it has: {_listed(present)}"
    for ours, theirs in mapping.items():
        if ours not in NAMES:
            raise UserError(f"--dataset {name} {ours}={theirs}: {ours} is none of {', '.join(sorted(NAMES))}")
        if theirs not in present:
            raise UserError(f"--dataset {name} {ours}={theirs}: no such column{nearest(theirs, present)}; {listed}")
    if not any(mapping.keys() & set(names) for names in REQUIRED.values()):  # only optional ones: input=passage
        base = detect(values, name)
        if base.kind != "pair" or not mapping.keys() & BESIDE:
            if unknown := mapping.keys() - _all(base.kind):
                raise UserError(f"--dataset {name}: {min(unknown)} does not belong to a {base.kind}; {listed}")
            return Schema(base.kind, {**base.columns, **mapping}, base.required, base.tree)
        mapping = {**base.columns, **mapping}
    if mapping.keys() & set(REQUIRED["pair"]) and mapping.keys() & BESIDE:
        asked = {"instruction": mapping.get("prompt", "prompt"), "output": mapping.get("completion", "completion")}
        mapping = {**asked, **{ours: theirs for ours, theirs in mapping.items() if ours not in REQUIRED["pair"]}}
    for row_kind in ("chat", "pair", "instruction"):
        if mapping.keys() & set(REQUIRED[row_kind]):
            mapped_schema = schema(
                row_kind, {ours: theirs for ours, theirs in mapping.items() if ours in _all(row_kind)}
            )
            if missing := [ours for ours in mapped_schema.required if mapped_schema.columns[ours] not in present]:
                raise UserError(f"--dataset {name}: name the column of {missing[0]}: {missing[0]}=COLUMN; {listed}")
            if unknown := mapping.keys() - _all(row_kind):
                raise UserError(f"--dataset {name}: {min(unknown)} does not belong to a {row_kind}; {listed}")
            return mapped_schema
    raise AssertionError("one of the kinds has a name in the mapping")


def _all(known: str) -> set[str]:
    return {*REQUIRED[known], *OPTIONAL[known]}
