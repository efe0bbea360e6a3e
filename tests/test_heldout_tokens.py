"""Own rows on every real tokenizer: what lm-eval makes of a request is what TRL trains."""

import json

import pytest
import real
from paths import DATA, needs_data
from scored_tokens import same_tokens, shared

from tunebook.common.tokens import templates
from tunebook.evals.harness import heldout

pytestmark = [
    pytest.mark.real_data,
    needs_data,
]
NAMES = ["deepseek", "gpt-neox-20b", "gpt2", "llama2", "llama3", "mistral-v3", "phi-3-mini", "qwen2.5", "qwen3"]
ANSWERS = ["Blue.", "\nBlue", " blue", "\n\n blue", "12", "\tblue", "blue \n", "\u00e9", "\U0001f600 !", "\u65e5\u672c"]


def rows() -> list[dict]:
    found = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))
    odd = [{"instruction": "Which color is it?", "input": "", "output": answer} for answer in ANSWERS]
    return [*[row for row in found if row["output"].strip()][::8000], *odd]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request):
    return real.tokenizer(request.param)


def as_trl(tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """Ids, and where labels start, by TRL's rule: the longest beginning that prompt and whole have in common."""
    before, ids = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
    return [*ids, tokenizer.eos_token_id], shared(before, ids)


@pytest.mark.parametrize("name", ["alpaca", "plain"])
def test_requests_are_the_tokens_that_trl_trains(tokenizer, name):
    template = templates.get(name)
    own = rows()
    if name == "plain":  # a token may reach from the question into the answer, and white space stand before it
        asked = ("Name a fru", "Say ", "Say\n\n")
        own = [{**row, "instruction": text, "input": ""} for row in own[-4:] for text in asked]
    for row, doc in zip(own, heldout.items(own, tokenizer, template), strict=True):
        ids, start = as_trl(tokenizer, template.prompt(row), template.completion(row))
        same_tokens(tokenizer, doc, ids, start)


def test_chats_are_what_transformers_renders(tokenizer):
    """A template may trim the answer, and put thoughts before it that the prompt has not."""
    if not tokenizer.chat_template:
        pytest.skip("this tokenizer has no chat template")
    control = tokenizer.added_tokens_decoder
    own = [row for row in rows() if not row["output"][0].isspace()]
    for row, doc in zip(own, heldout.items(own, tokenizer, templates.get("tokenizer", tokenizer)), strict=True):
        asked = {"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["input"])))}
        said = {"role": "assistant", "content": row["output"]}
        prompt = tokenizer.apply_chat_template([asked], add_generation_prompt=True).input_ids
        text = tokenizer.apply_chat_template([asked, said], tokenize=False)
        answered = text.rindex(row["output"].strip()) + len(row["output"].strip())
        end = min(text.find(token.content, answered) + len(token.content) for token in control.values()
                  if token.content in text[answered:])  # fmt: skip
        ids = tokenizer(text[:end], add_special_tokens=False).input_ids
        start = shared(prompt, ids)
        assert start == len(prompt) or ids[start - 1] in control  # there the prompt alone opens thoughts
        empty = tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False).input_ids
        start += len(empty) * (ids[start : start + len(empty)] == empty)  # a block that no row spells is not learned
        same_tokens(tokenizer, doc, ids, start)
