"""The row: what every source becomes and everything else reads. A dict of one of three shapes, told apart by its keys.

    {"instruction": "Add.", "input": "1 2", "output": "3"}                    instruction, as in Alpaca
    {"prompt": "Add 1 2.", "completion": "3"}                                 pair
    {"messages": [{"role": "user", "content": "Add 1 2."}, {"role": "assistant", "content": "3"}]}     chat

What else a row may have is in `Common`; columns that mean nothing here are kept as they are. `columns` makes rows of
a source's own columns; nothing after it asks for their names.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NotRequired, TypedDict

from tunebook.common.errors import UserError


class Turn(TypedDict):
    """A turn of a chat. The roles are system, developer, user, assistant and tool."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]  # of the assistant, as data/tools.py makes them
    weight: NotRequired[float | None]  # of the assistant's loss; null is 1


class Common(TypedDict, total=False):
    """What a row of any shape may have."""

    system: str  # instruction and pair; a chat has it as its first turn
    tools: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any]
    weight: float | None  # of the row's loss: 0 is context that does not train; null is 1
    row: int  # its place in its source, from 1
    source: str  # as the user typed it


class InstructionRow(Common):
    instruction: str
    input: str  # "" where the instruction says all
    output: str


class PairRow(Common):
    prompt: str
    completion: str


class ChatRow(Common):
    messages: list[Turn]  # the last is the assistant's


# With the source's other columns a row is more than any of the three, and so to a type checker it is a plain dict.
Row = dict[str, Any]
Kind = Literal["instruction", "pair", "chat"]

FIELDS = ("instruction", "input", "output", "system", "prompt", "completion", "messages", "tools")  # what a model sees
ASKED: dict[Kind, str] = {"instruction": "instruction", "pair": "prompt"}
ANSWER: dict[Kind, str] = {"instruction": "output", "pair": "completion", "chat": "messages"}
NOT_ASKING = ("system", "developer")  # roles whose text is no question


def kind(row: Row) -> Kind:
    return "chat" if "messages" in row else "instruction" if "instruction" in row else "pair"


def instruction(row: Row) -> str:
    """What a row asks first: its instruction, its prompt, or the first user turn of a chat."""
    if "messages" in row:
        return next((turn["content"] for turn in row["messages"] if turn["role"] == "user"), "")
    return row[ASKED[kind(row)]]


def with_instruction(row: Row, text: str) -> Row:
    """The row with another text in the place of its `instruction`."""
    if "messages" not in row:
        return {**row, ASKED[kind(row)]: text}
    place = next(n for n, turn in enumerate(row["messages"]) if turn["role"] == "user")
    turns = list(row["messages"])
    turns[place] = {**turns[place], "content": text}
    return {**row, "messages": turns}


def question(row: Row) -> str:
    """All that a row asks, by which rows are called duplicates: no system text, no answer.

    Of a chat it is every turn before the last answer. Of an Alpaca prompt that is already rendered it is what follows
    `### Instruction:`, as the words before it are the same in all rows.
    """
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"][:-1] if turn["role"] not in NOT_ASKING)
    if "instruction" in row:
        return f"{row['instruction']}\n{row['input']}"
    return row["prompt"].rpartition("### Instruction:")[2]


def system(row: Row) -> str:
    """The system text of a row, or ""."""
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "system")
    return row.get("system") or ""


def last_answer(row: Row) -> str:
    """The output, the completion, or the text of a chat's last turn."""
    return row["messages"][-1]["content"] if "messages" in row else row[ANSWER[kind(row)]]


def answers(row: Row) -> str:
    """The output, the completion, or all assistant turns of a chat, one a line, with their tool calls."""
    if "messages" not in row:
        return last_answer(row)
    turns = (turn for turn in row["messages"] if turn["role"] == "assistant")
    return "\n".join(
        (turn["content"] or "") + (json.dumps(turn["tool_calls"]) if turn.get("tool_calls") else "") for turn in turns
    )


def answers_nothing(row: Row) -> bool:
    """Whether no assistant turn of the row says or calls anything."""
    if "messages" not in row:
        return not last_answer(row).strip()
    turns = [turn for turn in row["messages"] if turn["role"] == "assistant"]
    return not any((turn.get("content") or "").strip() or turn.get("tool_calls") for turn in turns)


def messages(row: Row) -> list[dict[str, Any]]:
    """The row as a conversation, without weights: its own turns, or its system text, one question and its answer."""
    if "messages" in row:
        turns: list[Any] = row["messages"]
        weighted = any("weight" in turn for turn in turns)
        return [{key: value for key, value in turn.items() if key != "weight"} for turn in turns] if weighted else turns
    first: list[dict[str, Any]] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    asked = row[ASKED[kind(row)]]
    if "instruction" in row:
        asked = "\n\n".join(filter(None, (asked, row.get("input"))))
    return [*first, {"role": "user", "content": asked}, {"role": "assistant", "content": last_answer(row)}]


def texts(row: Row) -> Iterator[tuple[Literal["ask", "answer", "aside"], str, str]]:
    """(role, field, text) of each text of a row; aside are system texts and answers of tools."""
    if "messages" in row:
        for place, turn in enumerate(row["messages"], 1):
            role = {"user": "ask", "assistant": "answer"}.get(turn["role"], "aside")
            yield role, f"turn {place}", turn.get("content") or ("" if "tool_calls" not in turn else "(tool call)")  # pyright: ignore[reportReturnType]
    else:
        row_kind = kind(row)
        yield "ask", ASKED[row_kind], row[ASKED[row_kind]]
        if row_kind == "instruction":
            yield "ask", "input", row.get("input", "")
        yield "answer", ANSWER[row_kind], row[ANSWER[row_kind]]
    if row.get("system"):
        yield "aside", "system", row["system"]


def content(row: Row) -> str:
    """All of a row that a model sees, as one text that no other row can share."""
    return json.dumps([row.get(name) or None for name in FIELDS], sort_keys=True, ensure_ascii=False, default=str)


# Weights: 0 is context and does not train, 1 is as without one, another multiplies the loss. A turn's counts times its
# row's.


def weight(value: Row | Turn) -> float:
    """The weight of a row or of a turn."""
    own = value.get("weight")
    return 1.0 if own is None else float(own)


def answer_weights(row: Row) -> list[float]:
    """The weight of each answer of a row: of a chat's assistant turns."""
    if "messages" not in row:
        return [1.0]
    return [weight(turn) for turn in row["messages"] if turn["role"] == "assistant"]


def weighs_turns(row: Row) -> bool:
    """Whether single turns of a row have another weight than 1."""
    return any(weight(turn) != 1 for turn in row.get("messages", []))


def last_weight(row: Row) -> float:
    """The weight of a row's last answer."""
    return weight(row) * next(reversed(answer_weights(row)), 1.0)


def is_context(row: Row) -> bool:
    """Whether nothing of a row trains, by its weights alone."""
    turns = answer_weights(row)
    return weight(row) == 0 or (len(turns) > 0 and not any(turns))


def refuse_weights(rows: Iterable[Row], who: str, remedy: str) -> None:
    """Raises UserError for the first row whose last answer has another weight than 1; `who`: what takes no weights."""
    for row in rows:
        if (row_weight := last_weight(row)) != 1:
            raise UserError(f"{who} takes no weights, and row {row['row']} has `weight` {row_weight:g}. {remedy}")
