"""Preparing rows for training: this collection, TRL's own preparation, and the bare tokenizer, side by side.

    python benchmarks/prepare.py --dataset alpaca.json --tokenizer path/to/llama3 --json out.json
    python benchmarks/prepare.py --quick

Preparing is formatting, tokenizing, masking, counting and packing. The bare tokenizer only encodes the same texts once.
Labels of this collection and of TRL are compared row by row.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass

from tunebook.common import cli


@dataclass
class Args:
    dataset: str = "pocket"  # a file of instruction rows
    tokenizer: str = "pocket"  # a folder or Hub name
    max_length: int = 2048  # no row is longer, so that all three do the same
    repeats: int = 3  # medians are printed
    json: str = ""  # write the figures here
    quick: bool = False  # 500 rows, once


def main(args: Args) -> dict:
    from rich.console import Console
    from rich.table import Table

    from tunebook.common import data
    from tunebook.common.batching import packing
    from tunebook.common.tokens import tokenization

    tokenizer, _ = tokenization.load(args.tokenizer)
    rows = [row for side in data.load(args.dataset).values() for row in side if row["output"].strip()]
    # TRL reads special-token text as control; such rows have no common answer.
    special = [text for text in tokenizer.all_special_tokens if text]
    rows = [
        row for row in rows if not any(text in row["instruction"] + row["input"] + row["output"] for text in special)
    ]
    rows = rows[:500] if args.quick else rows
    ways = {"tunebook": ours, "TRL": trls, "bare tokenizer": bare}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    labels = {}
    for way in ways.values():  # imports and caches are no part of the times
        way(rows[:20], tokenizer, args.max_length, packing)
    for _ in range(1 if args.quick else args.repeats):
        for name, way in ways.items():
            tokenizer, _ = tokenization.load(args.tokenizer)  # a new one, so that no way has words from before
            wall, cpu = time.perf_counter(), cpu_seconds()
            labels[name] = way(rows, tokenizer, args.max_length, packing)
            times[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    different = sum(a != b for a, b in zip(labels["tunebook"], labels["TRL"], strict=True))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in times.items()
    }
    table = Table("way", "seconds", "CPU seconds", "rows a CPU second", "times ours: wall", "CPU")
    for name, (wall, cpu) in medians.items():
        ratio = [f"{theirs / mine:.2f}" for theirs, mine in zip((wall, cpu), medians["tunebook"], strict=True)]
        table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", f"{len(rows) / cpu:.0f}", *ratio)
    Console().print(table, f"{len(rows)} rows, {different} rows with other labels than TRL's")
    result = {
        "rows": len(rows),
        "different_labels": different,
        "seconds": {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in medians.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return result


def cpu_seconds() -> float:
    """CPU time of this process and of the ones it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def ours(rows, tokenizer, max_length, packing):
    from tunebook.common.tokens import encoding, templates

    encoded, _ = encoding.encode(rows, tokenizer, templates.ALPACA, max_length)
    lengths = encoded.data["input_ids"].combine_chunks().value_lengths()
    packing.pack(lengths.to_numpy(), max_length)
    return encoded["labels"]


def trls(rows, tokenizer, max_length, packing):
    """TRL's preparation of prompt and completion (its trainer does it when it is made), packed best-fit."""
    from datasets import Dataset, disable_caching
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer, pack_dataset

    from tunebook.common.tokens.templates import ALPACA

    disable_caching()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    pairs = [{"prompt": ALPACA.prompt(row), "completion": ALPACA.completion(row)} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs),
            args=SFTConfig(output_dir=folder, max_length=max_length, completion_only_loss=True, bf16=False),
        )
    prepared = trainer.train_dataset.select_columns(["input_ids", "labels"])
    pack_dataset(prepared, max_length, "bfd")
    return prepared["labels"]


def bare(rows, tokenizer, max_length, packing):
    from tunebook.common.tokens.templates import ALPACA

    texts = [ALPACA.prompt(row) + ALPACA.completion(row) for row in rows]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    return [len(encoding.ids) for encoding in encoded]


if __name__ == "__main__":
    cli.run(main, Args)
