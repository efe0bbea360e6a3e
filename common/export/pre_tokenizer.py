"""The pre-tokenizer of llama.cpp that gives a tokenizer's ids: proved on texts, or refused."""

from collections.abc import Callable
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.tokens.tokenization import PROBES

# Those of llama.cpp, of which each stands for many models; the first that gives equal ids on every text is taken.
KNOWN = (
    "gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-llm", "deepseek-v3", "falcon", "starcoder",
    "command-r", "dbrx", "olmo", "stablelm2", "mpt", "bloom", "viking", "jais", "default",
)  # fmt: skip
TEXTS = (
    *PROBES,
    "I've 'told' you'll 3 33 333 3333 1.234,56 \u20ac; we\u2019re \u2014 it\u2019s",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    x\n\n\n\ny  z   \n",
    "\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f \u2705 \U0001f999\U0001f999",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947 \u3053\u3093\u306b\u3061\u306f",
    "\uc548\ub155 \u05e9\u05dc\u05d5\u05dd",
    "CamelCase snake_case kebab-case ALLCAPS a1b2c3 !!! ??? ...... ====== ```code``` \\n \\t",
    "'S 'T 'RE 'VE 'M 'LL 'D's 't 're 've 'm 'll 'd",
)  # fmt: skip


def differing(tokenizer: Any, tokenize: Callable[[str], list[int]], texts: list[str]) -> list[str]:
    """The texts of which llama.cpp makes other ids than the tokenizer."""
    return [text for text in texts if tokenize(text) != tokenizer.encode(text, add_special_tokens=False)]


def choose(tokenizer: Any, texts: list[str], tokenizer_of: Callable[[str], Callable[[str], list[int]] | None]) -> str:
    """The name of a pre-tokenizer that gives equal ids on every text.

    Args:
        tokenizer_of: a pre-tokenizer's name -> llama.cpp's text to ids with it; None where it does not take the name.

    Raises:
        UserError: there is none; says which came nearest.
    """
    nearest, fewest, example = "", len(texts) + 1, ""
    for name in KNOWN:
        tokenize = tokenizer_of(name)
        if tokenize is None:
            continue
        wrong = differing(tokenizer, tokenize, texts)
        if not wrong:
            return name
        if len(wrong) < fewest:
            nearest, fewest, example = name, len(wrong), wrong[0]
    tried = "none of them loads"
    if nearest:
        tried = f"the nearest, {nearest}, gives other ids for {fewest} of {len(texts)} texts, such as {example[:40]!r}"
    raise UserError(
        f"llama.cpp has no pre-tokenizer that gives this tokenizer's ids ({tried}); "
        "serve the merged model by vLLM or `transformers serve`: --to merged"
    )
