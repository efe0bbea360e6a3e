"""A conversation as it goes on: what has been said, and the prompt of the next answer as training has made it."""

from itertools import chain
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.tokens import rendering
from tunebook.common.tokens.jinja_templates import Unstable
from tunebook.common.tokens.templates import AnyTemplate, Template


class Conversation:
    """Questions and answers so far, under a system text, in a template.

    An instruction template (Alpaca) has no turns: each question with its answer is what a row is in training, one
    after another, as the chat template that is saved with the weights has it (training/served_tokenizer.py).

    Attributes:
        turns: {"role", "content"} of user and assistant in turn.
        system: "" where there is none.
        input: goes beside the next question into a template that has a place for it.
    """

    def __init__(self, tokenizer: Any, template: AnyTemplate, system: str = ""):
        self.tokenizer, self.template, self.system = tokenizer, template, system
        self.turns: list[dict[str, str]] = []
        self.input = ""

    def prompt(self, question: str, limit: int | None = None) -> tuple[list[int], int]:
        """Ids of the prompt, and how many questions from the first on were left out to keep it within `limit` tokens.

        Raises:
            UserError: the question alone is longer than that, or the template cannot take the conversation.
        """
        for left_out in range(0, len(self.turns) + 1, 2):
            ids = self._ids(question, self.turns[left_out:])
            if limit is None or len(ids) <= limit:
                return ids, left_out // 2
        raise UserError(f"the question has {len(ids)} tokens with its template; {limit} have room")

    def _ids(self, question: str, turns: list[dict[str, str]]) -> list[int]:
        said = [*turns, {"role": "user", "content": self._asked(question)}]
        if isinstance(self.template, Template):
            return self._rows(self.template, [turn["content"] for turn in said])
        system = [{"role": "system", "content": self.system}] if self.system else []
        row: dict[str, Any] = {"messages": [*system, *said, {"role": "assistant", "content": ""}]}
        try:
            return rendering.prompts(self.tokenizer, self.template, [row])[0]
        except Unstable as error:
            raise UserError(f"{error}; /system without a text takes the system text away") from None

    def _rows(self, template: Template, texts: list[str]) -> list[int]:
        """Ids of the rows that questions and their answers are, and of the last question's prompt."""
        rows = [template.row(text) for text in texts[::2]]
        for row, answer in zip(rows, texts[1::2], strict=False):
            row["output"] = answer
        rows[0]["system"] = self.system
        whole = rendering.renderer(self.tokenizer, template, "assistant")(rows[:-1])[0]
        return [
            *chain.from_iterable(ids for ids, _ in whole),
            *rendering.prompts(self.tokenizer, template, rows[-1:])[0],
        ]

    def _asked(self, question: str) -> str:
        """The question with its input, as one turn."""
        if isinstance(self.template, Template):
            return self.template.turn({"instruction": question, "input": self.input, "output": ""})
        return "\n\n".join(filter(None, (question, self.input)))

    def add(self, question: str, answer: str) -> None:
        """Keep a question and its answer; the input was for this question alone."""
        self.turns += [{"role": "user", "content": self._asked(question)}, {"role": "assistant", "content": answer}]
        self.input = ""

    def reset(self) -> None:
        """Forget what was said; the system text stays."""
        self.turns, self.input = [], ""


def line(adapted: Any, decoding: Any) -> str:
    """What is in use, in a line."""
    from tunebook.common import models
    from tunebook.common.models import device

    millions = models.parameters(adapted.model)[1] / 1e6
    size = f"{millions:.1f} million" if millions < 1000 else f"{millions / 1000:.1f} billion"
    parts = (
        f"model {adapted.name} ({size} parameters)", f"adapter {adapted.current or 'none'}",
        f"template {adapted.template.name}", device.describe(), decoding.line(),
    )  # fmt: skip
    return " · ".join(parts)


def prompt_within(adapted: Any, conversation: Any, decoding: Any, question: str) -> tuple[list[int], int]:
    """The prompt that leaves room for an answer, and how many questions it leaves out."""
    positions = getattr(adapted.model.config.get_text_config(), "max_position_embeddings", None)
    limit = positions and positions - min(decoding.max_new_tokens, positions // 4)
    return conversation.prompt(question, limit)


def pieces(adapted: Any, prompt: list[int], decoding: Any) -> Any:
    """The answer's pieces and last the Answer; in one piece where beams are searched."""
    from tunebook.common import generation

    stop = generation.stop_conditions(adapted.tokenizer, adapted.template, adapted.model)
    if decoding.num_beams == 1:
        yield from generation.stream(adapted.model, adapted.tokenizer, prompt, decoding, stop)
        return
    answer = generation.generate(adapted.model, adapted.tokenizer, [prompt], decoding, stop)[0]
    yield answer.text
    yield answer
