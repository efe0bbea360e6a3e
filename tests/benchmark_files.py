"""Data and models as benchmarks find them in a folder, made small."""

import json
from pathlib import Path

import torch

from tunebook.common.pocket import FOLDER


def arc(folder: Path, items: int = 3) -> Path:
    """A folder of data sets with a small ARC in it, laid out as the Hub's."""
    place = folder / "allenai" / "ai2_arc"
    place.mkdir(parents=True)
    rows = [
        {
            "id": str(number), "question": f"Which is number {number}?", "answerKey": "B",
            "choices": {"text": ["the first", "the second"], "label": ["A", "B"]},
        }
        for number in range(items)
    ]  # fmt: skip
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = "".join(f"  - split: {split}\n    path: rows.jsonl\n" for split in ("train", "validation", "test"))
    (place / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Challenge\n  data_files:\n{parts}---\n")
    return folder


ROWS = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text(encoding="utf-8").splitlines()][::40]


def encoder(folder: Path) -> str:
    """A small encoder with random weights, and a tokenizer of letters and a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "cat", "."]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=3, **sizes)).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab={word: place for place, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    return str(folder)
