"""A model on this machine as a judge, in its own chat template, greedily."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.generation.budget import Budget, Messages, Reply, Stopped
from tunebook.common.generation.decoding import Decoding
from tunebook.common.tokens.jinja_templates import Unstable
from tunebook.evals.responses.generate import AnsweringModel

BATCH = 8


class LocalJudge:
    """A judge like Endpoint; a prompt longer than its context gets no reply.

    Args:
        name: as for AnsweringModel.
    """

    def __init__(self, name: str, max_new_tokens: int, budget: Budget):
        self.model = AnsweringModel(name, decoding=Decoding(max_new_tokens=max_new_tokens))
        self.name, self.budget = name, budget
        self.request = {"decoding": vars(self.model.decoding), "files": self.model.key()[0]}

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]:
        """(place of the prompt, its reply), in batches.

        Raises:
            Stopped: the budget is used up.
        """
        from tunebook.common import generation
        from tunebook.common.tokens import rendering

        if not prompts:
            return  # nothing to load a model for
        model, decoding = self.model.load(), self.model.decoding
        stop = generation.stop_conditions(model.tokenizer, model.template, model.model)
        for start in range(0, len(prompts), BATCH):
            batch: list[tuple[int, list[int], int]] = []
            stopped: Stopped | None = None
            for place in range(start, min(start + BATCH, len(prompts))):
                try:
                    ids = rendering.prompts(model.tokenizer, model.template, [_row(model, prompts[place])])[0]
                    cost = len(ids) + generation.remaining_tokens(model.model, ids, decoding)
                except (UserError, Unstable) as error:
                    yield place, Reply(None, failure=str(error))
                    continue
                try:
                    self.budget.take(cost, patient=False)  # nobody else gives back while it waits
                except Stopped as error:
                    stopped = error
                    break
                batch.append((place, ids, cost))
            batch_ids = [ids for _, ids, _ in batch]
            answers = generation.generate(model.model, model.tokenizer, batch_ids, decoding, stop, BATCH)
            for (place, ids, cost), answer in zip(batch, answers, strict=True):
                tokens = len(ids) + len(model.tokenizer.encode(answer.text, add_special_tokens=False))
                self.budget.give(cost, tokens)
                yield place, Reply(answer.text, "stop" if answer.limit is None else "length", tokens)
            if stopped:
                raise stopped


def _row(model: Any, messages: Messages) -> dict[str, Any]:
    from tunebook.common.tokens.chat_templates import ChatTemplate

    if isinstance(model.template, ChatTemplate):
        return {"messages": [*messages, {"role": "assistant", "content": ""}]}
    return {"instruction": messages[-1]["content"], "input": "", "output": ""}
