"""Answers to prompts, batched or streamed, with any decoding."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunebook.common import models
from tunebook.common.data.rows import question
from tunebook.common.errors import UserError
from tunebook.common.generation.decoding import Decoding, GumbelSampler, StopStringCriteria
from tunebook.common.generation.streaming import IdStreamer, IncrementalDecoder, before_stop, in_thread
from tunebook.common.models import moe
from tunebook.common.process import progress
from tunebook.common.tokens import rendering
from tunebook.common.tokens.jinja_templates import openings
from tunebook.common.tokens.templates import AnyTemplate, Template

SEARCHED = 500  # rows that are looked through for samples, where those chosen are too long for the model


@dataclass(frozen=True)
class StopConditions:
    """Where an answer ends: at one of the ids, or before one of the texts. Neither is part of it."""

    ids: frozenset[int]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`limit`: the number of tokens after which the answer was cut; None: it came to its end."""

    text: str
    limit: int | None = None

    @property
    def note(self) -> str:
        return f"(cut at {self.limit} tokens)" if self.limit is not None else ""


class Samples:
    """A few held-out rows, evenly spread, with the model's answers to them: `rows` as in report.json.

    Args:
        positions: tokens that the model takes; rows whose prompt leaves no room for an answer are passed over.
    """

    max_new_tokens = 64

    def __init__(
        self, tokenizer: Any, template: AnyTemplate, rows: list[dict], count: int, positions: int | None = None
    ):
        self.tokenizer, self.ends = tokenizer, stop_conditions(tokenizer, template)
        room = (positions or sys.maxsize) - self.max_new_tokens
        chosen, self._prompts = self._choose(template, rows, count, room)
        self.rows: list[dict[str, Any]] = [
            {
                "asked": question(row).strip(),
                "prompt": template.prompt(row),
                "before": None,
                "after": None,
                "reference": template.completion(row),
            }
            for row in chosen
        ]

    def _choose(
        self, template: AnyTemplate, rows: list[dict], count: int, room: int
    ) -> tuple[list[dict], list[list[int]]]:
        """Rows that the template takes and whose prompts have room, with the prompts."""
        fit: list[tuple[dict, list[int]]] = []
        for some in (rows[:: max(1, len(rows) // count)], rows[:SEARCHED]):
            taken = rendering.taken(self.tokenizer, template, some) if getattr(rows, "drop", False) else some
            prompts = rendering.prompts(self.tokenizer, template, taken)
            fit = [(row, ids) for row, ids in zip(taken, prompts, strict=True) if len(ids) <= room]
            if len(fit) >= min(count, len(taken)):
                break
        return [row for row, _ in fit[:count]], [ids for _, ids in fit[:count]]

    def answers(self, model: Any, count: int | None = None) -> list[str]:
        """The model's answers to the first `count` rows, or to all; one that was cut says so at its end."""
        found = generate(
            model, self.tokenizer, self._prompts[:count], Decoding(max_new_tokens=self.max_new_tokens), self.ends
        )
        return [f"{answer.text} {answer.note}".rstrip() if answer.note else answer.text for answer in found]

    def take(self, when: str, model: Any) -> None:
        """Keep the model's answers as `before` or `after`."""
        for row, answer in zip(self.rows, self.answers(models.unwrap(model)), strict=True):
            row[when] = answer


def stop_conditions(tokenizer: Any, template: AnyTemplate | None = None, model: Any = None) -> StopConditions:
    """The tokenizer's end token, what the template ends an answer with, and all at which the model's own
    generation_config.json ends.

    Of a chat template that is the token that training puts after an answer (<|im_end|>, <|eot_id|>). A text template
    has none of its own; a model that goes on by itself is stopped where it writes the heading of the next question.
    """
    given = model.generation_config.eos_token_id if model is not None else None
    ids = {int(tokenizer.eos_token_id), *([given] if isinstance(given, int) else given or [])}
    if template is None:
        return StopConditions(frozenset(ids))
    if isinstance(template, Template):
        halves = (template.with_input, template.without_input)
        lines = {half.split("{instruction}")[0].rstrip().rpartition("\n")[2] for half in halves}
        return StopConditions(frozenset(ids), tuple(sorted(f"\n{line}" for line in lines if line.strip())))
    return StopConditions(frozenset(ids | {end_of_turn(tokenizer, template)}))


def end_of_turn(tokenizer: Any, template: AnyTemplate) -> int:
    """The id that training puts after an answer: the template's own end of a turn, else the tokenizer's end token."""
    if isinstance(template, Template):
        return int(tokenizer.eos_token_id)
    answer = {"role": "assistant", "content": "x"}
    tries = [{"messages": [*opening, answer]} for opening in openings()]
    encoded, bad, _ = rendering.renderer(tokenizer, template, "assistant")(tries)
    control = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    last = [tokens[spans[-1][1] - 1] for place, (tokens, spans) in enumerate(encoded) if place not in bad]
    return next((token for token in last if token in control), int(tokenizer.eos_token_id))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    decoding: Decoding | None = None,
    stop: StopConditions | None = None,
    batch_size: int = 32,
) -> list[Answer]:
    """The model's answer to each prompt (its ids), in order.

    Prompts of similar length are answered together, padded on the left. An answer is that of its prompt alone: what
    rounding may change is said at `decoding.GumbelSampler`. With virtual tokens before the prompt (prompt tuning) only
    prompts of equal length go together. The model is left as it was: training or not, checkpointing or not.

    Raises:
        UserError: a prompt leaves no room for an answer in the positions that the model has.
    """
    decoding, stop = decoding or Decoding(), stop or stop_conditions(tokenizer)
    rooms = [remaining_tokens(model, prompt, decoding) for prompt in prompts]
    results: list[Any] = [None] * len(prompts)
    # A batch has one room. PEFT puts virtual tokens before the padding, which then lies between them and the prompt.
    kinds = [(rooms[place], len(prompts[place]) if virtual_tokens(model) else 0) for place in range(len(prompts))]
    order = sorted(range(len(prompts)), key=lambda place: (kinds[place], len(prompts[place])))
    with _answering(model, tokenizer, stop), progress.start("answers", len(prompts), "prompts") as phase:
        while order:
            batch = [place for place in order[:batch_size] if kinds[place] == kinds[order[0]]]
            order = order[len(batch) :]
            rows = _run(model, tokenizer, [prompts[place] for place in batch], decoding, stop, rooms[batch[0]])
            for place, ids in zip(batch, rows, strict=True):
                results[place] = _answer(tokenizer, ids, stop, rooms[place])
            phase.advance(len(batch))
    return results


def stream(
    model: Any, tokenizer: Any, prompt: list[int], decoding: Decoding | None = None, stop: StopConditions | None = None
) -> Iterator[str | Answer]:
    """The answer in pieces of whole characters as they are generated, and last the Answer as `generate` gives it.

    Closing the iterator ends the work.

    Raises:
        UserError: beams are asked for (they are known only at the end), or the prompt leaves no room.
    """
    decoding, stop = decoding or Decoding(), stop or stop_conditions(tokenizer)
    if decoding.num_beams > 1:
        raise UserError(f"num_beams {decoding.num_beams}: beams cannot be streamed; what is best is known at the end")
    limit = remaining_tokens(model, prompt, decoding)
    halt = StopStringCriteria(tokenizer, len(prompt), stop.texts)
    pieces, ids = IncrementalDecoder(tokenizer, stop.texts), []

    def work(take: Any) -> None:
        with _answering(model, tokenizer, stop):
            _run(model, tokenizer, [prompt], decoding, stop, limit, halt, IdStreamer(take))

    def finish() -> None:
        halt.stopped = True

    for token in in_thread(work, finish):
        ids.append(token)
        if token not in stop.ids and (text := pieces.add(token)):
            yield text
    if text := pieces.end():
        yield text
    yield _answer(tokenizer, ids, stop, limit)


def answers(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int = 64, batch_size: int = 32
) -> list[str]:
    """The model's greedy answer to each prompt (its ids), without the prompt and the end token."""
    results = generate(model, tokenizer, prompts, Decoding(max_new_tokens=max_new_tokens), batch_size=batch_size)
    return [answer.text for answer in results]


def remaining_tokens(model: Any, prompt: list[int], decoding: Decoding) -> int:
    """Tokens that an answer to the prompt may have: as many as asked for, or as the model's positions leave.

    Raises:
        UserError: they leave none.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return decoding.max_new_tokens
    left = positions - virtual_tokens(model) - len(prompt)
    if left < 1:
        raise UserError(f"the prompt has {len(prompt)} tokens and leaves no room: the model takes {positions}")
    return min(left, decoding.max_new_tokens)


def virtual_tokens(model: Any) -> int:
    """Tokens that a soft prompt or prefix of PEFT puts before every prompt."""
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0


def cut(ids: list[int], end: int | Collection[int]) -> list[int]:
    """The ids before the first end token."""
    found = {end} if isinstance(end, int) else end
    return next((ids[:place] for place, token in enumerate(ids) if token in found), ids)


def _answer(tokenizer: Any, ids: list[int], stop: StopConditions, limit: int) -> Answer:
    kept = cut(ids, stop.ids)
    whole = tokenizer.decode(kept, clean_up_tokenization_spaces=False)
    text = before_stop(whole, stop.texts)
    return Answer(text, limit if len(kept) == len(ids) and len(text) == len(whole) else None)


@contextmanager
def _answering(model: Any, tokenizer: Any, stop: StopConditions) -> Iterator[None]:
    """The model in evaluation mode, and without what its own generation_config.json would add (a repetition penalty,
    a temperature): what is asked for is what is done."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    was_config = base.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    base.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=sorted(stop.ids))
    try:
        with models.preserve_modes(model), moe.without_router_logits(model):
            model.eval()
            yield
    finally:
        base.generation_config = was_config


def _run(
    model: Any, tokenizer: Any, prompts: list[list[int]], decoding: Decoding, stop: StopConditions, limit: int,
    halt: StopStringCriteria | None = None, streamer: IdStreamer | None = None,
) -> list[list[int]]:  # fmt: skip
    """The ids that follow each prompt, padded at their end."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    chosen: list[Any] = []
    if decoding.temperature > 0:
        chosen = [TemperatureLogitsWarper(decoding.temperature)] if decoding.temperature != 1 else []
        chosen += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
        chosen += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []
        chosen.append(GumbelSampler(decoding.seed, prompts, width))
    with torch.inference_mode():
        out = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,  # GumbelSampler makes the most likely token a drawn one
            num_beams=decoding.num_beams,
            use_cache=True,
            logits_processor=chosen,
            stopping_criteria=[halt or StopStringCriteria(tokenizer, width, stop.texts)],
            streamer=streamer,
        )
    return out[:, width:].tolist()
