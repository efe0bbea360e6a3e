"""lm-eval's own model class over a model in memory, which counts the items whose prompts it cuts."""

# pyright: reportAbstractUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportTypedDictNotRequiredAccess=false
# (lm-eval's decorators hide the signatures of what they wrap)

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from tunebook.common import generation
from tunebook.common.errors import UserError


def in_memory(model: Any, tokenizer: Any, batch_size: int, bare: bool = False, prefix: int | None = None) -> Any:
    """The model for `lm_eval.simple_evaluate`; `bare`: its add_bos_token=False. Bars are drawn on a terminal only.

    `prefix`: the token before a text that is scored from its first token on; None: the tokenizer's beginning or end.
    Its attribute `cut` is {task: numbers of the items of which lm-eval left out the beginning}: where prompt and answer
    have more tokens than the model has positions, it cuts on the left and says nothing. What it raises: see `_check`.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    soft, rows = generation.virtual_tokens(model), model.config.get_text_config().vocab_size

    class InMemory(HFLM):
        def __init__(self, **values):
            with _tied(model):
                super().__init__(**values)
            self.cut: dict[str, set[int]] = defaultdict(set)
            self._asked: list[Any] = []

        def loglikelihood(self, requests, disable_tqdm=False):
            self._asked = requests
            return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

        def _loglikelihood_tokens(self, requests, *args, **kwargs):
            for asked, (_, context, answer) in zip_longest(self._asked, requests):  # of rolling windows none was asked
                _check(asked, [*context, *answer], tokenizer, rows, len(answer), self.max_length)
                if asked and len(context) + len(answer) > self.max_length + 1:
                    self.cut[asked.task_name].add(asked.doc_id)
            self._asked = []
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def generate_until(self, requests, disable_tqdm=False):
            groups = defaultdict(list)  # PEFT puts virtual tokens before the padding: no row may have any
            for place, request in enumerate(requests):
                ids = self.tok_encode(request.args[0])
                _check(request, ids, tokenizer, rows)
                room = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
                if len(ids) > self.max_length - room:
                    self.cut[request.task_name].add(request.doc_id)
                groups[len(ids) if soft else 0].append(place)
            found: dict[int, str] = {}
            for places in groups.values():
                answers = super().generate_until([requests[place] for place in places], not sys.stderr.isatty())
                found |= zip(places, answers, strict=True)
            return [found[place] for place in range(len(requests))]

    # Likelihoods in float32 whatever the model computes in: of bfloat16 logits they have two or three digits.
    given = {"batch_size": batch_size, "softmax_dtype": "float32", "prefix_token_id": prefix}
    given |= {"add_bos_token": False} if bare else {}
    return InMemory(pretrained=model, tokenizer=tokenizer, **given)


def _check(asked: Any, ids: list[int], tokenizer: Any, rows: int, answer: int = 0, positions: int = 0) -> None:
    """Refuse a token that the model has no embedding of, which ends the process on a GPU; and an answer of more tokens
    than it has positions."""
    item = f"{asked.task_name}, item {asked.doc_id}" if asked else "a text to score"
    if (last := max(ids, default=0)) >= rows:
        raise UserError(
            f"{item}: the tokenizer makes token {last} ({tokenizer.convert_ids_to_tokens(last)!r}), and the model has "
            f"{rows} embeddings; resize them, or score it with the tokenizer that it was trained with"
        )
    if answer > positions:
        raise UserError(f"{item}: its answer has {answer} tokens and the model takes {positions}; leave it out")


@contextmanager
def _tied(model: Any) -> Iterator[None]:
    """Leave embeddings and head as they are: lm-eval ties them again, which fails where PEFT has put copies of both in
    their places (modules_to_save)."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights
