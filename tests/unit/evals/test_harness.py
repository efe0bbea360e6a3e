"""Scores in memory against what lm-eval says of each row alone."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import sandbox
from tunebook.common.tokens.templates import ALPACA
from tunebook.evals.harness.lm import in_memory


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_and_rows_of_other_lengths(kind):
    """A batch with padding would put it between the virtual tokens and the prompt."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model", padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32)
    model = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=6)).eval()
    rows = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text().splitlines()][::28]
    settings = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    requests = [
        Instance("generate_until", row, (ALPACA.prompt(row), settings), place) for place, row in enumerate(rows)
    ]
    assert len({len(tokenizer(request.args[0]).input_ids) for request in requests}) > 5
    alone = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(requests, disable_tqdm=True)
    assert in_memory(model, tokenizer, 64).generate_until(requests) == alone


def test_a_chat_template_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    tokenizer.chat_template = "{{ messages[0].content }}{% if messages|length > 1 %}{{ 9 ** (9 ** 9) }}{% endif %}"
    model = in_memory(AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32), tokenizer, 1)
    turns = [{"role": "user", "content": "q"}]
    assert model.apply_chat_template(turns) == "q"
    with pytest.raises(UserError, match="the chat template cannot be used: it computes a number"):
        model.apply_chat_template(turns * 2)
