"""Rate and epochs by what the model is; flags win; who trains another prompt on a chat-tuned model is told."""

from types import SimpleNamespace

import pytest
import real
import torch
from paths import needs_data
from transformers import LlamaConfig, LlamaForCausalLM

from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import templates, tokenization
from tunebook.common.training import defaults


def model(large, eos=2):
    """Without weights: 0.1 M or 135 M parameters (the sizes of SmolLM2-135M)."""
    sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9)
    more = dict(num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=3072)
    with torch.device("meta"):
        made = LlamaForCausalLM(LlamaConfig(**({**sizes, **more} if large else small)))
    made.generation_config.eos_token_id = eos
    return made


def chosen(made, tokenizer, capsys, template=templates.ALPACA, rate=None, epochs=None):
    args = SimpleNamespace(model="some/model", learning_rate=rate, num_train_epochs=epochs)
    defaults.choose(args, made, tokenizer, template, rate=(2e-3, 2e-4), epochs=(5, 3))
    return args.learning_rate, args.num_train_epochs, capsys.readouterr().out


def test_by_size_and_flags_win(capsys):
    tokenizer = tokenization.load("pocket")[0]
    *values, said = chosen(model(False), tokenizer, capsys)
    assert values == [2e-3, 5]
    assert said == "chosen for a model as small as pocket: --learning_rate 0.002 --num_train_epochs 5\n"
    *values, said = chosen(model(True), tokenizer, capsys)
    assert values == [2e-4, 3]
    assert said == "chosen for a model of 135 M parameters: --learning_rate 0.0002 --num_train_epochs 3\n"
    assert chosen(model(True), tokenizer, capsys, rate=1e-3) == (
        1e-3, 3, "chosen for a model of 135 M parameters: --num_train_epochs 3\n",
    )  # fmt: skip
    assert chosen(model(True), tokenizer, capsys, rate=1e-3, epochs=1.5) == (1e-3, 1.5, "")


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(
    ("name", "eos", "end"),
    [
        ("qwen2.5", 151643, "<|im_end|>"),  # the tokenizer's own end token
        ("phi-3-mini", [32000, 32007], "<|end|>"),  # one of those that the model stops at
        ("llama3", [128001, 128009], "<|eot_id|>"),
        ("llama3", 128001, None),  # a base with a template
        ("gpt2", 50256, None),  # no template
    ],
)
def test_a_chat_tuned_model_under_another_prompt(name, eos, end, capsys):
    tokenizer = real.tokenizer(name)
    said = chosen(model(True, eos), tokenizer, capsys, rate=1, epochs=1)[2]
    assert bool(said) == bool(end)
    assert end is None or (f"ends an answer with {end})" in said and "chat_sharegpt" in said)
    assert chosen(model(False, eos), tokenizer, capsys, rate=1, epochs=1)[2] == ""
    if end:
        own = templates.get("tokenizer", tokenizer)
        assert chosen(model(True, eos), tokenizer, capsys, own, rate=1, epochs=1)[2] == ""


def test_pocket_keeps_its_values(capsys):
    from transformers import AutoModelForCausalLM

    pocket = AutoModelForCausalLM.from_pretrained(FOLDER / "model")
    assert chosen(pocket, tokenization.load("pocket")[0], capsys)[:2] == (2e-3, 5)
