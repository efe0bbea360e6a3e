"""Packed batches: the same losses and gradients as the rows alone, and contamination is noticed."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from paths import DATA, needs_data
from transformers import LlamaConfig, LlamaForCausalLM

from tunebook.common.batching.collator import PackedCollator, documents, without_padding
from tunebook.common.batching.packing import pack_dataset
from tunebook.common.errors import CheckFailed
from tunebook.common.training import checks

SIZES = dict(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)


def rows(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for place in range(count):
        length = int(torch.randint(2, 20, (1,), generator=generator))
        ids = torch.randint(1, 60, (length,), generator=generator).tolist()
        start = 0 if place % 5 == 0 else length // 2
        found.append({"input_ids": ids, "labels": [-100] * start + ids[start:], "row": place, "source": ""})
    return found


def model(attention="sdpa"):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation=attention)).float()


def test_bins_hold_every_row_once():
    sample = rows()
    bins = pack_dataset(Dataset.from_list(sample), 32)
    texts = []
    for one in bins:
        at = 0
        assert sum(one["seq_lengths"]) == len(one["input_ids"]) == len(one["labels"]) <= 32
        for size in one["seq_lengths"]:
            texts.append((one["input_ids"][at : at + size], one["labels"][at : at + size]))
            at += size
    assert sorted(texts) == sorted((row["input_ids"], row["labels"]) for row in sample)


def test_documents_and_padding():
    batch = PackedCollator(0)([{"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]},
                               {"input_ids": [1, 2], "labels": [-100, 2], "seq_lengths": [2]}])  # fmt: skip
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, 9], [-100, 2, -100, -100, -100]]
    assert without_padding(batch).tolist() == [[True] * 5, [True, True, False, False, False]]
    assert documents(batch, 0) == [slice(0, 2), slice(2, 5)] and documents(batch, 1) == [slice(0, 2)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_and_gradients_equal_the_rows_alone(attention):
    sample = rows()
    batch = PackedCollator(0)(list(pack_dataset(Dataset.from_list(sample), 32)))
    total = int((batch["labels"] != -100).sum())
    one, two = model(attention), model(attention)
    loss = one(**batch, use_cache=False, num_items_in_batch=total).loss
    loss.backward()
    alone = 0.0
    for row in sample:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        part = two(input_ids=ids, labels=labels, use_cache=False, num_items_in_batch=total).loss
        part.backward()
        alone += part.item()
    assert loss.item() == pytest.approx(alone, abs=1e-5)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm()


def trainer(batch, attention="sdpa"):
    from contextlib import nullcontext

    return SimpleNamespace(
        model=model(attention), get_train_dataloader=lambda: [batch], compute_loss_context_manager=nullcontext
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_isolation_is_proved(attention, capsys):
    batch = PackedCollator(0)(list(pack_dataset(Dataset.from_list(rows()), 32)))
    assert checks.check_document_isolation(trainer(batch, attention)) < 1e-5
    assert f"{attention} attention" in capsys.readouterr().out


def test_contamination_is_noticed():
    batch = PackedCollator(0)(list(pack_dataset(Dataset.from_list(rows()), 32)))
    with pytest.raises(CheckFailed, match="see each other with sdpa"):
        checks.check_document_isolation(trainer({**batch, "attention_mask": torch.ones_like(batch["input_ids"])}))


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_real_rows(count, attention):
    from tunebook.common.tokens import encoding, tokenization
    from tunebook.common.tokens.templates import ALPACA

    rows = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))
    tokenizer, _ = tokenization.load("pocket")
    encoded, _ = encoding.encode([row for row in rows[::50] if row["output"]], tokenizer, ALPACA, 512)
    encoded = encoded.select(range(count))
    batch = PackedCollator(0)(list(pack_dataset(encoded, 1024)))
    assert 1 - without_padding(batch).float().mean() < 20 / count  # padding: the last sequence is not full
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "vocab_size": len(tokenizer)}, attn_implementation=attention)
    one = LlamaForCausalLM(config).float()
    total = int((batch["labels"] != -100).sum())
    loss_of = torch.nn.functional.cross_entropy
    together = {}
    for row in range(len(batch["input_ids"])):
        part = {name: value[row : row + 1] for name, value in batch.items()}
        logits_TV = one(input_ids=part["input_ids"], position_ids=part["position_ids"], use_cache=False).logits[0]
        values = []
        for place in documents(part, 0):
            ids, labels = part["input_ids"][0, place], part["labels"][0, place]
            values.append(loss_of(logits_TV[place][:-1], labels[1:], ignore_index=-100, reduction="sum"))
            together.setdefault(tuple(ids.tolist()), []).append(values[-1].detach())
        (sum(values) / total).backward()
    grads = [parameter.grad.clone() for parameter in one.parameters()]
    one.zero_grad()
    for example in encoded:
        ids, labels = torch.tensor(example["input_ids"]), torch.tensor(example["labels"])
        logits_TV = one(input_ids=ids[None], use_cache=False).logits[0]
        value = loss_of(logits_TV[:-1], labels[1:], ignore_index=-100, reduction="sum")
        (value / total).backward()
        trained = int((labels[1:] != -100).sum())
        found = together[tuple(example["input_ids"])]
        assert min(abs((value - other).item()) for other in found) / trained < 1e-5
    for mine, parameter in zip(grads, one.parameters(), strict=True):
        assert (mine - parameter.grad).norm() <= 1e-4 * parameter.grad.norm()
