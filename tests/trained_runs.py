"""Folders as recipes leave them, made in seconds: pocket, or a small model of another shape, trained by PEFT alone."""

import json
from pathlib import Path

import torch

from tunebook.common import data, pocket
from tunebook.common.export.base_weights import BaseWeights, four_bit
from tunebook.common.tokens import encoding, templates, tokenization
from tunebook.common.training import served_tokenizer

ROWS = 96


def lora_run(folder, base="pocket", template=templates.ALPACA, dataset="pocket", steps=40, quantized=False, **config):
    """A run with a LoRA adapter: adapter/ and report.json."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = _base(base, quantized)
    values = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(**(values | config)))
    _fit(model, tokenizer, template, dataset, steps, 5e-3)
    _save(Path(folder), "adapter", model, tokenizer, template, base, dataset, 4 if quantized else 32)
    return Path(folder)


def full_run(folder, base="pocket", template=templates.ALPACA, dataset="pocket", steps=30):
    """A run that trained all weights: model/ and report.json."""
    model, tokenizer = _base(base, False)
    torch.manual_seed(0)
    _fit(model, tokenizer, template, dataset, steps, 1e-3)
    _save(Path(folder), "model", model, tokenizer, template, base, dataset, 32)
    return Path(folder)


def _base(base, quantized):
    from transformers import AutoModelForCausalLM

    place = str(pocket.model(base) or base)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    if quantized:
        for name in BaseWeights(place, True).quantized:
            weight = model.get_parameter(name)
            weight.data = four_bit(weight.data, model, name)
    return model, tokenization.load(place)[0]


def _fit(model, tokenizer, template, dataset, steps, rate):
    rows = list(data.load([dataset])["train"][:ROWS])
    encoded, _ = encoding.encode(rows, tokenizer, template, 256)
    pairs = [(row["input_ids"], row["labels"]) for row in encoded]
    trainable = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rate)
    model.train()
    for step in range(steps):
        chosen = [pairs[(step * 8 + n) % len(pairs)] for n in range(8)]
        width = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in chosen])
        labels = torch.tensor([[*labels, *[-100] * (width - len(labels))] for _, labels in chosen])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in chosen])
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _save(folder, name, model, tokenizer, template, base, dataset, bits):
    inside = folder / name
    model.save_pretrained(inside)
    served_tokenizer.with_template(tokenizer, template, model).save_pretrained(str(inside))
    report = {
        "recipe": "qlora_alpaca" if bits == 4 else "lora_alpaca" if name == "adapter" else "sft_alpaca",
        "args": {"model": base, "dataset": [dataset], "seed": 0, "output_dir": str(folder), "learning_rate": 5e-3},
        "train": {"parameters": [{"kind": "attention", "bits": [bits]}]},
        "data": {"rows": ROWS, "kept": ROWS, "dropped": {}, "tokens": 4000, "trained_tokens": 400},
        "scores": {
            "comparison": {"pocket_skills": {"exact_match": {"before": 0.0, "after": 0.85, "items": 340}}},
            "forgetting": {"words": "retained: world knowledge within the margin"},
        },
        "versions": {"torch": torch.__version__},
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
