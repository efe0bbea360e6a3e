"""Tokenizers of known models, each loaded once for all tests: whoever changes one loads it."""

import functools

from paths import TOKENIZERS

from tunebook.common.tokens import tokenization


@functools.cache
def tokenizer(name):
    return tokenization.load(str(TOKENIZERS / name))[0]
