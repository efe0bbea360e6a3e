"""Tokenizers that load wrong are noticed and said; those that cannot be used are refused."""

import json
import shutil

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, tokenization
from tunebook.common.tokens.templates import ALPACA


def changed(folder, **config):
    shutil.copytree(FOLDER / "model", folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return str(folder)


def test_pocket_is_sound():
    tokenizer, found = tokenization.load("pocket")
    assert found == [] and tokenizer.eos_token == "<|endoftext|>"


def test_a_class_that_rebuilds_the_tokenizer(tmp_path):
    _, found = tokenization.load(changed(tmp_path, tokenizer_class="LlamaTokenizerFast"))
    assert any("does not load as its tokenizer.json says" in line for line in found)


def test_padding(tmp_path):
    _, found = tokenization.load(changed(tmp_path / "a", pad_token=None))
    assert any("no padding token" in line for line in found)
    _, found = tokenization.load(changed(tmp_path / "b", pad_token="<|endoftext|>"))
    assert any("padding token is its end token" in line for line in found)


def test_what_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="no end token"):
        tokenization.load(changed(tmp_path / "a", eos_token=None))
    for name in ("./gone", ""):
        with pytest.raises(UserError, match="no such folder"):
            tokenization.load(name)
    (tmp_path / "a" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        tokenization.load(str(tmp_path / "a"))


def test_begin_and_end_are_added_once():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    pieces = [("<|im_start|>", 2), ("<|endoftext|>", 0)]
    single = processors.TemplateProcessing("<|im_start|> $A <|endoftext|>", special_tokens=pieces)
    tokenizer.backend_tokenizer.post_processor = single
    assert tokenization.bos_eos_ids(tokenizer) == ([2], [0])
    encoded, _ = encoding.encode([{"instruction": "Say a.", "input": "", "output": "a"}], tokenizer, ALPACA, 512)
    ids = encoded[0]["input_ids"]
    assert ids[0] == 2 and ids.count(2) == 1 and ids[-1] == 0 and ids.count(0) == 1
