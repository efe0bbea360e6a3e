"""Rows of a text template to ids and the spans that train; constant text is encoded once where that is exact."""

from collections import Counter
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.tokens.boundaries import SafeBoundaries
from tunebook.common.tokens.placeholders import common_prefix
from tunebook.common.tokens.templates import Template
from tunebook.common.tokens.tokenization import Encoder

WeightedSpan = tuple[int, int, float]  # [start, end) in tokens, and what they weigh
Encoded = tuple[list[int], list[WeightedSpan]]  # ids, and [start, end) and weight of each stretch that trains
Result = tuple[list[Encoded], dict[int, str], int]


class TextRenderer:
    """Instruction templates: one text, in which nothing but the beginning and the end is control."""

    def __init__(self, encoder: Encoder, template: Template, train_on: str):
        self.encoder, self.template, self.train_all = encoder, template, train_on == "all"
        self.noted: Counter[str] = Counter()
        self.cutter = SafeBoundaries(encoder.backend)
        self._constant: dict[tuple[str, bool], list[int]] = {}

    def sequences(self, row: dict) -> list[dict]:
        return [row]

    def __call__(self, rows: list[dict]) -> Result:
        plans: list[Any] = []
        pieces: list[str] = []
        whole: list[int] = []
        bad: dict[int, str] = {}
        special = 0
        for place, row in enumerate(rows):
            try:
                constants, texts = self.template.parts(row)
            except UserError as error:
                bad[place] = str(error)
                plans.append(None)
                continue
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
        results = [self._join(plan, ids) if plan is not None else ([], []) for plan in plans]
        for place, encoded in zip(whole, self._whole([rows[place] for place in whole]), strict=True):
            results[place] = encoded
        return results, bad, special

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
        encoded = []
        for prompt, ids in zip(self.encoder.text(prompts), self.encoder.text(texts), strict=True):
            start = 0 if self.train_all else len(self.encoder.begin) + common_prefix(prompt, ids)
            ids = [*self.encoder.begin, *ids, self.encoder.end]
            encoded.append((ids, [(start, len(ids), 1.0)]))
        return encoded
