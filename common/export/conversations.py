"""Held-out conversations: what a client sends of each, and the ids of training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunebook.common import data
from tunebook.common.errors import UserError
from tunebook.common.export.source import Source
from tunebook.common.generation import chat
from tunebook.common.tokens import rendering, tokenization
from tunebook.common.tokens.templates import AnyTemplate, Template

COUNT = 20  # whose prompts and answers are compared
TOKENS, MOST = 300, 100  # answer tokens whose probabilities are compared, where so many conversations have them
COMPARED = 32  # of an answer
LONGEST = 1024  # tokens of a conversation that is compared
LIMIT = 64  # new tokens of a greedy answer


@dataclass
class HeldOut:
    """
    Attributes:
        messages, tools, options: as a client sends them, before the answer.
        said: the answer's text, as a client gets it; None where it is more than text (calls, thinking).
        ids: of training. start: where the answer begins in them.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    options: dict[str, Any]
    said: str | None
    ids: list[int]
    start: int

    @property
    def stretch(self) -> tuple[int, int]:
        """The tokens of the answer whose probabilities are compared."""
        return self.start, min(len(self.ids), self.start + COMPARED)


def held_out(source: Source, tokenizer: Any, template: AnyTemplate, positions: int | None = None) -> list[HeldOut]:
    """Test rows of the run's dataset (its validation rows where there is no test), evenly spread: 20, and more where
    their answers are so short that a share of their tokens says little.

    Rows with a text that looks like a control token are left out: in training it was text, and a server makes a control
    token of what a client sends.

    Args:
        positions: the most tokens that the model takes.

    Raises:
        UserError: the dataset is not there, or has no such row.
    """
    rows = _rows(source)
    encode = tokenization.encoder(tokenizer)
    plain = [row for row in rows if not (encode.added and any(map(encode.added.search, _texts(row))))]
    kept = rendering.taken(tokenizer, template, plain[: 50 * COUNT])
    limit = min(LONGEST, positions or LONGEST)
    found = [
        one
        for one in map_rows(kept, tokenizer, template)
        if len(one.ids) <= limit and one.start + LIMIT <= (positions or LONGEST + LIMIT)
    ]
    if not found:
        raise UserError(
            f"{source.name}: none of the {len(rows)} held-out rows of {' '.join(source.dataset)} can be compared (at "
            f"most {limit} tokens, no text that looks like a control token); name others: --dataset"
        )
    chosen = _spread(found, COUNT)
    tokens = sum(stop - start for start, stop in (one.stretch for one in chosen))
    taken = {id(one) for one in chosen}
    for one in _spread([one for one in found if id(one) not in taken], MOST - COUNT):
        if tokens >= TOKENS:
            break
        start, stop = one.stretch
        chosen, tokens = [*chosen, one], tokens + stop - start
    return chosen


def _spread(found: list[HeldOut], count: int) -> list[HeldOut]:
    return found[:: max(1, len(found) // count)][:count]


def _rows(source: Source) -> list[dict[str, Any]]:
    if not source.dataset:
        raise UserError(f"{source.name}: name the data that it was trained on, for the proof: --dataset NAME")
    try:
        splits = data.load(source.dataset, seed=source.seed, bad_rows="drop")
    except UserError as error:
        from tunebook.common.preference import pairs

        try:
            splits = pairs.load(source.dataset, seed=source.seed, bad_rows="drop")
        except UserError:
            remedy = f"{source.name}: the proof takes rows of the training's data; name where they are: --dataset"
            raise UserError(f"{error}\n  {remedy}") from None
    name = next((name for name in ("test", "validation", "train") if splits[name]), "train")
    if name == "train":
        print(f"note: {' '.join(source.dataset)} has no held-out rows: the proof takes rows of the training")
    return list(splits[name][: 200 * COUNT])


def _texts(value: Any) -> Iterator[str]:
    """Every text of a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from _texts(one)


def map_rows(rows: list[dict[str, Any]], tokenizer: Any, template: AnyTemplate) -> list[HeldOut]:
    """Rows that the template takes, as conversations."""
    train_on = "assistant" if isinstance(template, Template) else "last_assistant"
    encoded, bad, _ = rendering.renderer(tokenizer, template, train_on)(rows)
    found = []
    for place, (row, (ids, spans)) in enumerate(zip(rows, encoded, strict=True)):
        if place in bad or not spans or spans[0][0] < 1:
            continue
        start, stop = spans[0][0], spans[-1][1]
        messages, tools, options, said = _asked(row, template)
        found.append(HeldOut(messages, tools, options, said, list(ids[:stop]), start))
    return found


def _asked(row: dict[str, Any], template: AnyTemplate) -> tuple[list[dict], list | None, dict[str, Any], str | None]:
    """What a client sends of a row, and the text of the answer."""
    if isinstance(template, Template):
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        return [*system, {"role": "user", "content": template.turn(row)}], None, {}, template.completion(row)
    turns, tools, options = template.conversation(row)
    last = turns[-1]
    plain = set(last) == {"role", "content"} and isinstance(last["content"], str) and "</think" not in last["content"]
    return turns[:-1], tools, options, last["content"] if plain else None


def three_turns(
    found: list[HeldOut], tokenizer: Any, template: AnyTemplate
) -> tuple[list[list[dict[str, str]]], list[list[int]], list[list[int]]]:
    """A chat of three turns: the messages before each answer, the ids of each prompt as training has them, and the ids
    of the first two answers with their ends.

    Raises:
        UserError: the template takes no second turn.
    """
    plain = [one for one in found if one.said and not one.tools and not one.options]
    plain = [one for one in plain if [turn["role"] for turn in one.messages][-1:] == ["user"]]
    if not plain:
        return [], [], []
    asked = [(plain[place % len(plain)].messages[-1]["content"], plain[place % len(plain)]) for place in range(3)]
    conversation = chat.Conversation(tokenizer, template)
    messages: list[dict[str, str]] = []
    sent, prompts, answers = [], [], []
    for question, one in asked:
        messages = [*messages, {"role": "user", "content": question}]
        sent.append(messages)
        prompts.append(conversation.prompt(question)[0])
        said = str(one.said)
        answers.append(one.ids[one.start :])
        conversation.add(question, said)
        if isinstance(template, Template):  # its turns are kept as they were typed
            conversation.turns[-2]["content"] = question
        messages = [*messages, {"role": "assistant", "content": said}]
    return sent, prompts, answers[:2]
