"""Rows to ids and the stretches of them that train: by cuts where they are proved, whole everywhere else."""

from collections.abc import Callable
from typing import Any

from common import chats, loss_weights
from common.cuts import Cutter
from common.loss_weights import Stretch
from common.templates import AnyTemplate, ChatTemplate, Template
from common.tokenizers import Encoder, encoder

Encoded = tuple[list[int], list[Stretch]]  # ids, and [start, end) and weight of each stretch that trains
Result = tuple[list[Encoded], dict[int, str], int]
MARKS = "\uf8f1\uf8f2\uf8f3"  # private characters; one that a row does not hold breaks its special-token text


def renderer(tokenizer: Any, template: AnyTemplate, train_on: str) -> Callable[[list[dict]], Result]:
    """A function from rows to their encodings, {place: why it cannot be rendered}, and rows with special-token text."""
    if isinstance(template, Template):
        return TextRenderer(encoder(tokenizer), template, train_on)
    return ChatRenderer(encoder(tokenizer, chats.turn_tokens(template, tokenizer)), template, train_on)


def prompts(tokenizer: Any, template: AnyTemplate, rows: list[dict]) -> list[list[int]]:
    """Ids of what the model is given for each row, as in training: everything up to the (last) answer."""
    if isinstance(template, Template):
        encode = encoder(tokenizer)
        return [[*encode.begin, *ids] for ids in encode.text([template.prompt(row) for row in rows])]
    render = ChatRenderer(encoder(tokenizer, chats.turn_tokens(template, tokenizer)), template, "answers")
    return [render.prompt(row) for row in rows]


def answers_nothing(row: dict) -> bool:
    """Whether no assistant turn of the row says or calls anything."""
    if "messages" in row:
        said = [turn for turn in row["messages"] if turn["role"] == "assistant"]
        return not any((turn.get("content") or "").strip() or turn.get("tool_calls") for turn in said)
    return not (row["completion"] if "completion" in row and "output" not in row else row["output"]).strip()


class TextRenderer:
    """Instruction templates: one text, in which nothing but the beginning and the end is control."""

    def __init__(self, encoder: Encoder, template: Template, train_on: str):
        self.encoder, self.template, self.train_all = encoder, template, train_on == "all"
        self.cutter = Cutter(encoder.backend)
        self._constant: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, rows: list[dict]) -> Result:
        plans: list[Any] = []
        pieces: list[str] = []
        whole: list[int] = []
        special = 0
        for place, row in enumerate(rows):
            constants, texts = self.template.parts(row)
            texts = [*texts, self.template.completion(row)]
            looks = self.encoder.added is not None and any(self.encoder.added.search(text) for text in texts)
            special += bool(looks and self.encoder.special and any(map(self.encoder.special.search, texts)))
            plan = None if looks else self._plan(constants, texts, len(pieces))
            if plan is None:
                whole.append(place)
            else:
                pieces += plan.pop()
            plans.append(plan)
        ids = self.encoder.pieces(pieces)
        results = [self._join(plan, ids) if plan is not None else None for plan in plans]
        for place, encoded in zip(whole, self._whole([rows[place] for place in whole]), strict=True):
            results[place] = encoded
        return results, {}, special  # pyright: ignore[reportReturnType]

    def _plan(self, constants: list[str], texts: list[str], first: int) -> list[Any] | None:
        """What to join: (constant text, opens the sequence) pairs and places of pieces; the new pieces come last."""
        plan: list[Any] = []
        pieces: list[str] = []
        start = 0
        for place, (constant, text) in enumerate(zip(constants, texts, strict=True)):
            cut = self.cutter.before(constant, text)
            last = place == len(texts) - 1
            if cut is None or cut < start or not text or (last and cut != len(constant)):
                return None
            plan.append((constant[start:cut], place == 0))
            lead = constant[cut:]
            if last:
                plan.append(first + len(pieces))
                pieces.append(lead + text)
                break
            following = constants[place + 1]
            keep = self.cutter.after(text, following)
            if keep is None:
                return None
            plan.append(first + len(pieces))
            pieces.append(lead + text + following[:keep])
            start = keep
        return [*plan, pieces]

    def _join(self, plan: list[Any], pieces: list[list[int]]) -> Encoded:
        ids = list(self.encoder.begin)
        for part in plan[:-1]:
            ids += pieces[part] if isinstance(part, int) else self._ids_of(part)
        start = 0 if self.train_all else len(ids)
        ids += pieces[plan[-1]]
        ids.append(self.encoder.end)
        return ids, [(start, len(ids), 1.0)]

    def _ids_of(self, part: tuple[str, bool]) -> list[int]:
        if part not in self._constant:
            text, opens = part
            encode = self.encoder.text if opens else self.encoder.inside
            self._constant[part] = encode([text])[0] if text else []
        return self._constant[part]

    def _whole(self, rows: list[dict]) -> list[Encoded]:
        prompts = [self.template.prompt(row) for row in rows]
        texts = [prompt + self.template.completion(row) for prompt, row in zip(prompts, rows, strict=True)]
        found = []
        for prompt, ids in zip(self.encoder.text(prompts), self.encoder.text(texts), strict=True):
            start = 0 if self.train_all else len(self.encoder.begin) + common_prefix(prompt, ids)
            ids = [*self.encoder.begin, *ids, self.encoder.end]
            found.append((ids, [(start, len(ids), 1.0)]))
        return found


class ChatRenderer:
    """Chat templates: the template's special tokens are control, the conversation's text is text."""

    def __init__(self, encoder: Encoder, template: ChatTemplate, train_on: str):
        self.encoder, self.template, self.train_on = encoder, template, train_on

    def __call__(self, rows: list[dict]) -> Result:
        results: list[Any] = [([], [])] * len(rows)
        bad: dict[int, str] = {}
        plain: list[tuple[int, str, list[chats.Span], list[float]]] = []
        special = 0
        for place, row in enumerate(rows):
            try:
                turns, tools, mark, looks = self._marked(chats.messages(row), row.get("tools"))
                special += looks
                text, spans = chats.spans(self.template, turns, tools or None, self.encoder.special)
                spans, weights = self._chosen(row, spans, len(text))
            except chats.Unstable as error:
                bad[place] = str(error)
                continue
            if mark:
                results[place] = self._closed(*self._stretches(text, spans, mark), weights)
            else:
                plain.append((place, text, spans, weights))
        encodings = self.encoder.control([text for _, text, *_ in plain])
        for (place, _, spans, weights), encoding in zip(plain, encodings, strict=True):
            spans = [_tokens_in(encoding.offsets, *span) for span in spans]
            results[place] = self._closed(encoding.ids, spans, weights)
        return results, bad, special

    def _chosen(self, row: dict, spans: list[chats.Span], length: int) -> tuple[list[chats.Span], list[float]]:
        """The characters that train of a text of so many, and the weight of each span of them.

        Raises:
            chats.Unstable: single turns have weights whose places are not known.
        """
        weights = loss_weights.of_turns(row)
        if self.train_on == "all" and loss_weights.told(row):
            raise chats.Unstable("single turns have a `weight`, which is lost where the prompt trains, too")
        if self.train_on == "all":
            return [(0, length)], [1.0]
        if len(spans) != len(weights):
            if len(set(weights)) > 1:
                raise chats.Unstable(
                    f"turns have a `weight` each, and the template marks {len(spans)} stretches in {len(weights)} "
                    "answers; give the whole row one"
                )
            weights = weights[:1] * len(spans)
        return (spans[-1:], weights[-1:]) if self.train_on == "last" else (spans, weights)

    def _closed(self, ids: list[int], spans: list[tuple[int, int]], weights: list[float]) -> Encoded:
        """With the end token where the template writes no end of its own after the last answer."""
        found = [(*span, weight) for span, weight in zip(spans, weights, strict=True) if span[0] < span[1]]
        control = self.encoder.backend.get_added_tokens_decoder()
        if found and ids[found[-1][1] - 1] not in control:
            start, end, weight = found[-1]
            return [*ids[:end], self.encoder.end], [*found[:-1], (start, end + 1, weight)]
        return ids, found

    def prompt(self, row: dict) -> list[int]:
        """Ids of the conversation before the last answer, with that turn's header."""
        turns, tools, mark, _ = self._marked(chats.messages(row)[:-1], row.get("tools"))
        text = chats.render(self.template, turns, tools or None, open_turn=True)
        return self._stretches(text, [], mark)[0] if mark else self.encoder.control([text])[0].ids

    def _marked(self, turns: list[dict], tools: Any) -> tuple[list[dict], Any, str, bool]:
        """The conversation with its special-token text broken by a mark, the mark ('' where none is needed), and
        whether it holds such text."""
        looks = self.encoder.special is not None and _holds(self.encoder.special, [turns, tools])
        # A token that swallows the white space after it must not swallow the conversation's.
        swallows = bool(self.encoder.strips) and any((turn.get("content") or "")[:1].isspace() for turn in turns)
        if not looks and not swallows:
            return turns, tools, "", looks
        mark = next((m for m in MARKS if not _holds_text(m, [turns, tools])), None)
        if mark is None:
            raise chats.Unstable(f"it holds special-token text and all of {', '.join(map(ascii, MARKS))}")
        return self._guarded(turns, mark), self._guarded(tools, mark), mark, looks

    def _guarded(self, value: Any, mark: str) -> Any:
        """The value with the mark inside special-token text, and before white space that a token would swallow."""
        if isinstance(value, dict):
            return {key: inner if key == "role" else self._guarded(inner, mark) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._guarded(inner, mark) for inner in value]
        if not isinstance(value, str):
            return value
        if self.encoder.special:
            value = self.encoder.special.sub(lambda found: found.group()[0] + mark + found.group()[1:], value)
        return mark + value if self.encoder.strips and value[:1].isspace() else value

    def _stretches(self, text: str, spans: list[chats.Span], mark: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode between control tokens, so that what the mark guards stays text."""
        ids: list[int] = []
        places: list[chats.Span] = []  # characters of the guarded text that each id stands for
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
        return ids, [_tokens_in(places, *span) for span in spans]


def _tokens_in(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that hold a character of text[start:end]. Offsets of white space alone may be empty: (n, n)."""
    first = next((place for place, (_, stop) in enumerate(offsets) if stop > start), len(offsets))
    after = first
    while after < len(offsets) and (offsets[after][0] < end or offsets[after][1] <= end):
        after += 1
    return first, after


def common_prefix(a: list[int], b: list[int]) -> int:
    """The number of leading ids that two sequences share."""
    if b[: len(a)] == a:
        return len(a)
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _holds(pattern: Any, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds(pattern, inner) for key, inner in value.items() if key != "role")
    if isinstance(value, list):
        return any(_holds(pattern, inner) for inner in value)
    return isinstance(value, str) and bool(pattern.search(value))


def _holds_text(text: str, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_text(text, inner) for inner in value.values())
    if isinstance(value, list):
        return any(_holds_text(text, inner) for inner in value)
    return isinstance(value, str) and text in value
