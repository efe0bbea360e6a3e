"""Rows to ids and the spans that train, for text and chat templates."""

import bisect
import re
from collections import Counter
from typing import Any

from tunebook.common.data import rows
from tunebook.common.errors import REMEDY, UserError, first_lines
from tunebook.common.tokens import thinking
from tunebook.common.tokens.chat_templates import ChatTemplate
from tunebook.common.tokens.jinja_templates import Unstable
from tunebook.common.tokens.placeholders import Span
from tunebook.common.tokens.templates import AnyTemplate, Template
from tunebook.common.tokens.text_rendering import Encoded, Result, TextRenderer
from tunebook.common.tokens.tokenization import Encoder, beyond_model, encoder
from tunebook.common.tokens.trained_spans import Prover

MARKS = "\uf8f1\uf8f2\uf8f3"  # private characters; one that a row does not hold breaks its special-token text


def renderer(tokenizer: Any, template: AnyTemplate, train_on: str) -> Any:
    """A function from rows to encodings, {index: why not rendered}, and the number of rows with special-token text."""
    if isinstance(template, Template):
        render: Any = TextRenderer(encoder(tokenizer), template, train_on)
    else:
        render = ChatRenderer(encoder(tokenizer, template.turn_tokens(tokenizer)), template, train_on)
    return Known(render, tokenizer) if getattr(tokenizer, "rows_of_model", len(tokenizer)) < len(tokenizer) else render


class Known:
    """A renderer by which rows with tokens that the model does not have cannot be rendered."""

    def __init__(self, render: Any, tokenizer: Any):
        self._render, self._tokenizer = render, tokenizer

    def __call__(self, rows: list[dict]) -> Result:
        encoded, bad, special = self._render(rows)
        beyond = {place: beyond_model(self._tokenizer, ids) for place, (ids, _) in enumerate(encoded)}
        return encoded, {place: why for place, why in beyond.items() if why} | bad, special

    def __getattr__(self, name: str) -> Any:
        return getattr(self._render, name)


def prompts(tokenizer: Any, template: AnyTemplate, rows: list[dict]) -> list[list[int]]:
    """Ids of what the model is given for each row, as in training: everything up to the (last) answer.

    Raises:
        UserError: one holds a token that the model does not have.
    """
    if isinstance(template, Template):
        encode = encoder(tokenizer)
        encoded = [[*encode.begin, *ids] for ids in encode.text([template.prompt(row) for row in rows])]
    else:
        render = ChatRenderer(encoder(tokenizer, template.turn_tokens(tokenizer)), template, "assistant")
        encoded = [render.prompt(row) for row in rows]
    for ids in encoded:
        if why := beyond_model(tokenizer, ids):
            raise UserError(f"a prompt cannot be asked: {why}")
    return encoded


def taken(tokenizer: Any, template: AnyTemplate, rows: list[dict]) -> list[dict]:
    """The rows that the template can take."""
    _, bad, _ = renderer(tokenizer, template, "assistant")(rows)
    return [row for place, row in enumerate(rows) if place not in bad]


def refused(template: AnyTemplate, faults: list[str]) -> UserError:
    """The error of rows that the template cannot take: "row 3: why" each."""
    return UserError(f"the template {template.name} cannot take these rows:{first_lines(faults)}\n  {REMEDY}")


class ChatRenderer:
    """Chat templates: the template's special tokens are control, the conversation's text is text."""

    def __init__(self, encoder: Encoder, template: ChatTemplate, train_on: str):
        self.encoder, self.template, self.train_on = encoder, template, train_on
        self.noted: Counter[str] = Counter()  # remarks -> rows
        self.prover = Prover(template, encoder.special, str(encoder.tokenizer.bos_token or ""))

    def sequences(self, row: dict) -> list[dict]:
        """The row, or one for each turn that the template renders differently once the conversation goes on.

        Each ends with such a turn, so its history is what the model sees at inference; `trains`: the turns that train.
        """
        if self.train_on != "assistant" or sum(turn["role"] == "assistant" for turn in row.get("messages", ())) < 2:
            return [row]
        try:
            found = self.prover.apart(*self.template.conversation(row))
        except Unstable:
            return [row]  # and why is said where it is encoded
        if len(found) == 1:
            return [row]
        return [{**row, "messages": row["messages"][:count], "trains": sorted(turns)} for count, turns in found]

    def __call__(self, rows: list[dict]) -> Result:
        results: list[Any] = [([], [])] * len(rows)
        bad: dict[int, str] = {}
        plain: list[tuple[int, str, list[Span], list[float], int]] = []
        special = 0
        for place, row in enumerate(rows):
            try:
                turns, tools, options = self.template.conversation(row)
                self._note(row, turns)
                end = self._end(turns, tools, options)
                turns, tools, mark, looks = self._marked(turns, tools)
                special += looks
                text, spans, weights = self._spans(row, turns, tools, options)
            except Unstable as error:
                bad[place] = str(error)
                continue
            if mark:
                results[place] = self._closed(*self._stretches(text, spans, mark), weights, end)
            else:
                plain.append((place, text, spans, weights, end))
        encodings = self.encoder.control([text for _, text, *_ in plain])
        for (place, _, spans, weights, end), encoding in zip(plain, encodings, strict=True):
            spans = _tokens_in(encoding.offsets, spans)
            results[place] = self._closed(encoding.ids, spans, weights, end)
        return results, bad, special

    def _spans(
        self, row: dict, turns: list[dict], tools: Any, options: dict[str, Any]
    ) -> tuple[str, list[Span], list[float]]:
        """The row's text, the characters of it that train, and the weight of each span of them.

        Raises:
            Unstable: as Prover.spans; or single turns have weights where the prompt trains, too.
        """
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        trains = {"assistant": row.get("trains", answers), "last_assistant": answers[-1:], "all": answers}[
            self.train_on
        ]
        text, found = self.prover.spans(turns, tools, options, set(trains))
        if self.train_on == "all" and rows.weighs_turns(row):
            raise Unstable("single turns have a `weight`, which is lost where the prompt trains, too")
        if self.train_on == "all":
            return text, [(0, len(text))], [1.0]
        of_turn = dict(zip(answers, rows.answer_weights(row), strict=True))
        weighted = [(span, of_turn[turn]) for turn, spans in found.items() for span in spans]
        return text, [span for span, _ in weighted], [weight for _, weight in weighted]

    def through(self, row: dict) -> str:
        """The row's text up to the end of its last answer, as the template writes it. Raises Unstable."""
        turns, tools, options = self.template.conversation(row)
        text, spans, _ = self._spans(row, turns, tools, options)
        return text[: spans[-1][1]]

    def _note(self, row: dict, turns: list[dict]) -> None:
        """Count the row where its thinking is not written as it came, or its tools are not written."""
        if row.get("tools") and self.template.fit.unwritten:
            self.noted["tools that the template does not write"] += 1
        if turns is row.get("messages", turns):
            return
        forms = [(thinking.of(a), thinking.of(b)) for a, b in zip(row["messages"], turns, strict=True)]
        if any(before and not after for before, after in forms):
            self.noted["thinking dropped"] += 1
        elif any(before and after and before[0] in thinking.KEYS and after[0] == "text" for before, after in forms):
            self.noted["thinking written as text, <think>...</think>"] += 1

    def _end(self, turns: list[dict], tools: Any, options: dict[str, Any]) -> int:
        """The token that ends a conversation whose template writes no end of its own."""
        if not self.prover.open_ended:
            return self.encoder.end
        found = self.encoder.backend.token_to_id(self.prover.closing(turns, tools, options))
        return self.encoder.end if found is None else found

    def _closed(self, ids: list[int], spans: list[tuple[int, int]], weights: list[float], end_token: int) -> Encoded:
        """With the end token where the template writes no end of its own after the last answer."""
        found = [(*span, weight) for span, weight in zip(spans, weights, strict=True) if span[0] < span[1]]
        control = self.encoder.backend.get_added_tokens_decoder()
        if found and (self.prover.open_ended or ids[found[-1][1] - 1] not in control):
            start, end, weight = found[-1]
            return [*ids[:end], end_token], [*found[:-1], (start, end + 1, weight)]
        return ids, found

    def prompt(self, row: dict) -> list[int]:
        """Ids of the conversation before the last answer, with that turn's header."""
        turns, tools, options = self.template.conversation(row)
        turns, tools, mark, _ = self._marked(turns[:-1], tools)
        text = self.template.render(turns, tools, open_turn=True, options=options)
        return self._stretches(text, [], mark)[0] if mark else self.encoder.control([text])[0].ids

    def _marked(self, turns: list[dict], tools: Any) -> tuple[list[dict], Any, str, bool]:
        """The conversation with its special-token text broken by a mark, the mark or "", and whether it has any."""
        looks = self.encoder.special is not None and _holds(self.encoder.special, [turns, tools])
        if looks:  # the tags of thinking are meant
            looks = _holds(self.encoder.special, [list(map(_untagged, turns)), tools])
        # A token that swallows the white space after it must not swallow the conversation's.
        swallows = bool(self.encoder.strips) and any((turn.get("content") or "")[:1].isspace() for turn in turns)
        if not looks and not swallows:
            return turns, tools, "", looks
        mark = next((m for m in MARKS if not _holds(re.compile(m), [turns, tools])), None)
        if mark is None:
            raise Unstable(f"it holds special-token text and all of {', '.join(map(ascii, MARKS))}")
        return self._guarded(turns, mark), self._guarded(tools, mark), mark, looks

    def _guarded(self, value: Any, mark: str) -> Any:
        """The value with the mark inside special-token text, and before white space that a token would swallow."""
        if isinstance(value, dict):
            found = {
                self._guarded(key, mark): inner if key == "role" else self._guarded(inner, mark)
                for key, inner in value.items()
            }
            if value.get("role") == "assistant" and (parts := thinking.split(value.get("content"))):
                opening, thought, closing, said = parts  # the tags of thinking are control, what stands in it is not
                found["content"] = opening + self._guarded(thought, mark) + closing + self._guarded(said, mark)
            return found
        if isinstance(value, list):
            return [self._guarded(inner, mark) for inner in value]
        if not isinstance(value, str):
            return value
        if self.encoder.special:
            value = self.encoder.special.sub(lambda found: found.group()[0] + mark + found.group()[1:], value)
        return mark + value if self.encoder.strips and value[:1].isspace() else value

    def _stretches(self, text: str, spans: list[Span], mark: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode between control tokens, so that what the mark guards stays text."""
        ids: list[int] = []
        places: list[Span] = []  # characters of the guarded text that each id stands for
        at = 0
        found = list(self.encoder.special.finditer(text)) if self.encoder.special else []
        for start, end, name in [*((m.start(), m.end(), m.group()) for m in found), (len(text), len(text), "")]:
            stretch = text[at:start]
            kept = [i for i, char in enumerate(stretch) if char != mark]
            if kept:
                encoding = self.encoder.offsets("".join(stretch[i] for i in kept), first=at == 0)
                ids += encoding.ids
                edges = [*kept, len(stretch)]
                places += [(at + edges[a], at + (edges[b - 1] + 1 if b > a else edges[a])) for a, b in encoding.offsets]
            if name:
                ids.append(self.encoder.backend.token_to_id(name))
                places.append((start, end))
            at = end
            while name in self.encoder.strips and at < len(text) and text[at].isspace():
                at += 1
        return ids, _tokens_in(places, spans)


def _tokens_in(offsets: list[tuple[int, int]], spans: list[Span]) -> list[tuple[int, int]]:
    """For each span the tokens that hold a character of it. Offsets of white space alone may be empty: (n, n)."""
    stops = [stop for _, stop in offsets]
    found = []
    for start, end in spans:
        first = after = bisect.bisect_right(stops, start)
        while after < len(offsets) and (offsets[after][0] < end or offsets[after][1] <= end):
            after += 1
        found.append((first, after))
    return found


def _untagged(turn: dict) -> dict:
    """An assistant turn with the tags of its thinking away."""
    parts = thinking.split(turn.get("content")) if turn["role"] == "assistant" else None
    return {**turn, "content": parts[1] + "\n" + parts[3]} if parts else turn


def _holds(pattern: Any, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds(pattern, inner) or _holds(pattern, key) for key, inner in value.items() if key != "role")
    if isinstance(value, list):
        return any(_holds(pattern, inner) for inner in value)
    return isinstance(value, str) and bool(pattern.search(value))
