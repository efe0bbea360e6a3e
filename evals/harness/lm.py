"""lm-eval's own model class over a model in memory, which counts the items whose prompts it cuts."""

# pyright: reportAbstractUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportTypedDictNotRequiredAccess=false
# (lm-eval's decorators hide the signatures of what they wrap)

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from tunebook.common import generation
from tunebook.common.errors import UserError
from tunebook.common.tokens.sandbox import OutOfBounds, bounds_in_transformers


class _InBounds:
    """Of an lm-eval model: its chat template is a program that came with it."""

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        try:
            with bounds_in_transformers():
                return super().apply_chat_template(chat_history, add_generation_prompt)  # pyright: ignore
        except OutOfBounds as error:
            raise UserError(f"the chat template cannot be used: {error}; score without it") from None


def in_memory(model: Any, tokenizer: Any, batch_size: int, bare: bool = False, prefix: int | None = None) -> Any:
    """The model for `lm_eval.simple_evaluate`.

    Its attribute `cut` is {task: ids of the items that were truncated}: where prompt and answer have more tokens than
    the model has positions, lm-eval truncates on the left and says nothing.

    Args:
        bare: lm-eval's add_bos_token=False.
        prefix: the token before a text that is scored from its first token on; None: the tokenizer's bos or eos.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    virtual_tokens, rows = generation.virtual_tokens(model), model.config.get_text_config().vocab_size

    class InMemory(_InBounds, HFLM):
        def __init__(self, **values):
            with _without_tying(model):
                super().__init__(**values)
            self.cut: dict[str, set[int]] = defaultdict(set)
            self._requests: list[Any] = []

        def loglikelihood(self, requests, disable_tqdm=False):
            self._requests = requests
            return super().loglikelihood(requests, disable_tqdm)

        def _loglikelihood_tokens(self, requests, *args, **kwargs):
            for request, (_, context, answer) in zip_longest(self._requests, requests):  # rolling windows have none
                _check(request, [*context, *answer], tokenizer, rows, len(answer), self.max_length)
                if request and len(context) + len(answer) > self.max_length + 1:
                    self.cut[request.task_name].add(request.doc_id)
            self._requests = []
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def generate_until(self, requests, disable_tqdm=False):
            groups = defaultdict(list)  # PEFT puts virtual tokens before the padding: no row may have any
            for place, request in enumerate(requests):
                ids = self.tok_encode(request.args[0])
                _check(request, ids, tokenizer, rows)
                max_gen_toks = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
                if len(ids) > self.max_length - max_gen_toks:
                    self.cut[request.task_name].add(request.doc_id)
                groups[len(ids) if virtual_tokens else 0].append(place)
            answers: dict[int, str] = {}
            for places in groups.values():
                generated = super().generate_until([requests[place] for place in places], disable_tqdm)
                answers |= zip(places, generated, strict=True)
            return [answers[place] for place in range(len(requests))]

    # Log-likelihoods of bfloat16 logits would have two or three digits.
    options = {"batch_size": batch_size, "softmax_dtype": "float32", "prefix_token_id": prefix}
    options |= {"add_bos_token": False} if bare else {}
    return InMemory(pretrained=model, tokenizer=tokenizer, **options)


def _check(request: Any, ids: list[int], tokenizer: Any, rows: int, answer: int = 0, positions: int = 0) -> None:
    """Raise UserError for a token without an embedding, which would end the process on a GPU, and for an answer of more
    tokens than the model has positions."""
    item = f"{request.task_name}, item {request.doc_id}" if request else "a text to score"
    if (last := max(ids, default=0)) >= rows:
        raise UserError(
            f"{item}: the tokenizer makes token {last} ({tokenizer.convert_ids_to_tokens(last)!r}), and the model has "
            f"{rows} embeddings; resize them, or score it with the tokenizer that it was trained with"
        )
    if answer > positions:
        raise UserError(f"{item}: its answer has {answer} tokens and the model takes {positions}; leave it out")


@contextmanager
def _without_tying(model: Any) -> Iterator[None]:
    """Leave embeddings and head as they are: lm-eval ties them again, which fails where PEFT has put copies of both in
    their places (modules_to_save)."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights
