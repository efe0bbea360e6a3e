"""A conversation as it goes on: what has been said, and the prompt of the next answer as training has made it."""

from typing import Any

from common import chats, rendering
from common.cli import UserError
from common.templates import AnyTemplate, ChatTemplate


class Conversation:
    """Questions and answers so far, under a system text, in a template.

    A chat template is given all of it. A text template (Alpaca) has no turns: each question is asked alone, under the
    system text, as such a model was trained.

    Attributes:
        turns: {"role", "content"} of user and assistant in turn.
        system: "" where there is none.
        input: goes beside the next question into a template that has a place for it.
    """

    def __init__(self, tokenizer: Any, template: AnyTemplate, system: str = ""):
        self.tokenizer, self.template, self.system = tokenizer, template, system
        self.turns: list[dict[str, str]] = []
        self.input = ""

    @property
    def keeps_history(self) -> bool:
        return isinstance(self.template, ChatTemplate)

    def prompt(self, question: str, limit: int | None = None) -> tuple[list[int], int]:
        """Ids of the prompt, and how many questions from the first on were left out to keep it within `limit` tokens.

        Raises:
            UserError: the question alone is longer than that, or the template cannot take the conversation.
        """
        for left_out in range(0, len(self.turns) + 1, 2):
            ids = self._ids(question, self.turns[left_out:])
            if limit is None or len(ids) <= limit:
                return ids, left_out // 2
            if not self.keeps_history:
                break
        raise UserError(f"the question has {len(ids)} tokens with its template; {limit} have room")

    def _ids(self, question: str, turns: list[dict[str, str]]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        if self.keeps_history:
            asked = "\n\n".join(filter(None, (question, self.input)))
            said = [*system, *turns, {"role": "user", "content": asked}, {"role": "assistant", "content": ""}]
            row: dict[str, Any] = {"messages": said}
        else:
            row = {"instruction": question, "input": self.input, "output": "", "system": self.system}
        try:
            return rendering.prompts(self.tokenizer, self.template, [row])[0]
        except chats.Unstable as error:
            raise UserError(f"{error}; /system without a text takes the system text away") from None

    def add(self, question: str, answer: str) -> None:
        """Keep a question and its answer; the input was for this question alone."""
        asked = "\n\n".join(filter(None, (question, self.input)))
        self.turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        self.input = ""

    def reset(self) -> None:
        """Forget what was said; the system text stays."""
        self.turns, self.input = [], ""
