"""lm-eval's own model class over a model in memory, which counts the items whose prompts it cuts."""

# pyright: reportAbstractUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportTypedDictNotRequiredAccess=false
# (lm-eval's decorators hide the signatures of what they wrap)

import sys
from collections import defaultdict
from typing import Any

from common import generation, tokenizers
from common.cli import UserError


def in_memory(model: Any, tokenizer: Any, batch_size: int, prefix: int | None = None) -> Any:
    """The model for `lm_eval.simple_evaluate`. Bars are drawn on a terminal only.

    `prefix`: the token before a text that is scored from its first token on; None: the tokenizer's beginning or end.
    Its attribute `cut` is {task: numbers of the items of which lm-eval left out the beginning}: where prompt and answer
    have more tokens than the model has positions, it cuts on the left and says nothing.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    soft = generation.virtual_tokens(model)

    class InMemory(HFLM):
        def __init__(self, **values):
            super().__init__(**values)
            self.cut: dict[str, set[int]] = defaultdict(set)
            self._asked: list[Any] = []

        def tok_encode(self, string, *args, **kwargs):
            ids = super().tok_encode(string, *args, **kwargs)
            if isinstance(string, str) and (why := tokenizers.past_the_model(self.tokenizer, ids)):
                raise UserError(f"a text cannot be scored: {why}")
            return ids

        def loglikelihood(self, requests, disable_tqdm=False):
            self._asked = requests
            return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

        def _loglikelihood_tokens(self, requests, *args, **kwargs):
            for asked, (_, context, answer) in zip(self._asked, requests, strict=False):  # rolling windows: none asked
                if len(context) + len(answer) > self.max_length + 1:
                    self.cut[asked.task_name].add(asked.doc_id)
            self._asked = []
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def generate_until(self, requests, disable_tqdm=False):
            groups = defaultdict(list)  # PEFT puts virtual tokens before the padding: no row may have any
            for place, request in enumerate(requests):
                prompt, asked = request.args
                length = len(self.tok_encode(prompt))
                if length > self.max_length - normalize_gen_kwargs(asked, self.max_gen_toks)["max_gen_toks"]:
                    self.cut[request.task_name].add(request.doc_id)
                groups[length if soft else 0].append(place)
            answers = [""] * len(requests)
            for places in groups.values():
                found = super().generate_until([requests[place] for place in places], not sys.stderr.isatty())
                for place, answer in zip(places, found, strict=True):
                    answers[place] = answer
            return answers

    # Likelihoods in float32 whatever the model computes in: of bfloat16 logits they have two or three digits.
    given = {"batch_size": batch_size, "softmax_dtype": "float32", "prefix_token_id": prefix}
    return InMemory(pretrained=model, tokenizer=tokenizer, **given)
