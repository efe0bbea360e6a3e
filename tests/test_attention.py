"""Attention by document: what sdpa with its mask computes, in losses, gradients and generation, and no wide mask."""

import pytest
import torch
from datasets import Dataset
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tunebook.common.batching.collator import PackedCollator
from tunebook.common.batching.packing import pack_dataset
from tunebook.common.models import attention

SIZES = dict(
    vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "grouped heads": (LlamaForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=2)),
    "window": (MistralForCausalLM, MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5)),
    "some layers with a window": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    ),
    "qwen": (Qwen3ForCausalLM, Qwen3Config(**SIZES, num_key_value_heads=1)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(name):
    """The same model twice: with sdpa and its mask, and by document."""
    kind, config = MODELS[name]
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        copied = type(config)(**config.to_dict())
        copied._attn_implementation = "sdpa"
        made.append(kind(copied).float().eval())
    assert attention.use_document_attention(made[1]) and made[1].config._attn_implementation == "documents"
    return made


def batch():
    """Rows of 1 to 20 tokens, several of one token, in bins of unequal lengths, with padding."""
    generator = torch.Generator().manual_seed(1)
    sizes = [1, 1, 1, *torch.randint(1, 20, (20,), generator=generator).tolist()]
    rows = [{"input_ids": torch.randint(3, 60, (size,), generator=generator).tolist()} for size in sizes]
    rows = [{**row, "labels": list(row["input_ids"])} for row in rows]
    bins = pack_dataset(Dataset.from_list(rows), 32)
    made = PackedCollator(0)(list(bins))
    assert (made["position_ids"][:, -2:] == 0).all(-1).any() and len(bins) > 3
    return made


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_sdpa(name):
    theirs, mine = pair(name)
    logits = []
    for model in (theirs, mine):
        found = model(**batch(), use_cache=False)
        found.loss.backward()
        logits.append(found.logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    for a, b in zip(theirs.parameters(), mine.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm() + 1e-7


@pytest.mark.parametrize("name", MODELS)
def test_padded_batches_and_generation_are_those_of_sdpa(name):
    theirs, mine = pair(name)
    ids = torch.randint(3, 60, (2, 9))
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[0, :4], right[0, -4:] = 0, 0
    for mask in (left, right, torch.ones_like(ids), None):
        a, b = (model(input_ids=ids, attention_mask=mask).logits for model in (theirs, mine))
        held = slice(None) if mask is None else mask.bool()
        assert (a - b)[held].abs().max() < 1e-5
    for mask in (left, None):
        a, b = (model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for model in (theirs, mine))
        assert a.tolist() == b.tolist()


def test_with_checkpointed_activations():
    theirs, mine = (model.train() for model in pair("grouped heads"))
    mine.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (theirs, mine):
        model(**batch(), use_cache=False).loss.backward()
    for a, b in zip(theirs.parameters(), mine.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm() + 1e-7


def test_no_product_reaches_over_a_document(monkeypatch):
    """The widest thing that torch's attention is given is the longest document, and it is given no mask."""
    _, mine = pair("llama")
    made, widest = batch(), []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **given):
        widest.append(key.shape[2])
        assert attn_mask is None
        return original(query, key, value, attn_mask=attn_mask, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    mine(**made, use_cache=False)
    assert max(widest) == int(made["position_ids"].max()) + 1 < made["input_ids"].shape[1]


def test_a_model_that_it_does_not_suit_is_left_alone(capsys, monkeypatch):
    kind, config = MODELS["llama"]
    config._attn_implementation = "eager"
    assert not attention.use_document_attention(kind(config)) and config._attn_implementation == "eager"
    config._attn_implementation = "sdpa"
    model = kind(config)
    # As where a model adds something to its mask that cannot be seen from here.
    monkeypatch.setattr(attention, "_pieces", lambda positions: [[(positions.shape[1], False)]] * len(positions))
    assert not attention.use_document_attention(model)
    assert model.config._attn_implementation == "sdpa"
    assert "LlamaForCausalLM keeps sdpa attention" in capsys.readouterr().out


def test_a_saved_model_names_no_attention_of_ours(tmp_path):
    _, mine = pair("llama")
    mine.save_pretrained(tmp_path)
    assert "documents" not in (tmp_path / "config.json").read_text()
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
