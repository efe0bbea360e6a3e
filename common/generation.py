"""Answers to prompts: batched, left-padded, cut at the end token."""

from typing import Any

from common import rendering
from common.templates import AnyTemplate


class Samples:
    """A few held-out rows, evenly spread, with the model's answers to them: `rows` as in report.json."""

    def __init__(self, tokenizer: Any, template: AnyTemplate, rows: list[dict], count: int):
        self.tokenizer = tokenizer
        chosen = rows[:: max(1, len(rows) // count)][:count]
        self._prompts = rendering.prompts(tokenizer, template, chosen)
        self.rows: list[dict[str, Any]] = [
            {"prompt": template.prompt(row), "before": None, "after": None, "reference": template.completion(row)}
            for row in chosen
        ]

    def answers(self, model: Any, count: int | None = None) -> list[str]:
        """The model's answers to the first `count` rows, or to all."""
        prompts = self._prompts[:count]
        return answers(model, self.tokenizer, prompts) if prompts else []

    def take(self, when: str, model: Any) -> None:
        """Keep the model's answers as `before` or `after`."""
        for row, answer in zip(self.rows, self.answers(model), strict=True):
            row[when] = answer


def answers(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int = 64, batch_size: int = 32
) -> list[str]:
    """The model's greedy answer to each prompt (its ids), without the prompt and the end token.

    The model is left in the mode (training or not) it was in.
    """
    import torch

    was_training = model.training
    model.eval()
    texts = []
    try:
        for start in range(0, len(prompts), batch_size):
            ids = prompts[start : start + batch_size]
            width = max(map(len, ids))
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
            with torch.inference_mode():
                out = model.generate(
                    input_ids=input_ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                )
            texts += [tokenizer.decode(cut(row, tokenizer.eos_token_id)) for row in out[:, width:].tolist()]
    finally:
        model.train(was_training)
    return texts


def cut(ids: list[int], end: int) -> list[int]:
    """The ids before the first end token."""
    return ids[: ids.index(end)] if end in ids else ids
