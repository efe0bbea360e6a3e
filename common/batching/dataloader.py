"""Data loaders: settings by device, and what a batch holds."""

import os
from typing import Any

from tunebook.common import distributed
from tunebook.common.batching import weight_collator
from tunebook.common.batching.collator import without_padding
from tunebook.common.tokens.lengths import IGNORE_INDEX

MOST_WORKERS = 4  # rows are ids already: a worker only pads, and a few of them outrun any GPU


def workers() -> dict[str, Any]:
    """DataLoader arguments for the device.

    With a GPU: up to four persistent workers a process, and pinned memory. On a CPU: none, as the same cores train.
    """
    import torch

    gpu = torch.cuda.is_available()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = max(0, min(MOST_WORKERS, distributed.cores() // processes - 1)) if gpu else 0
    return {
        "num_workers": count,
        "pin_memory": gpu,
        "persistent_workers": count > 0,
        "prefetch_factor": 2 if count else None,  # batches that each worker keeps ready
    }


def dataloader_settings() -> dict[str, Any]:
    """The same as SFTConfig fields."""
    return {f"dataloader_{name}": value for name, value in workers().items()}


def describe(batch: dict[str, Any]) -> str:
    """Shape, dtype, device, bytes, non-finite values of each tensor of a batch; its real tokens, its trained labels."""
    import torch

    lines, total = [], 0
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor):
            lines.append([name, type(value).__name__, "", "", "", ""])
            continue
        shape = " x ".join(map(str, value.shape)) or "one value"
        size = value.numel() * value.element_size()
        odd = ""
        if value.is_floating_point():
            odd = f"{int(value.isnan().sum())} NaN, {int(value.isinf().sum())} infinite"
        dtype = str(value.dtype).removeprefix("torch.")
        lines.append([name, shape, dtype, str(value.device), f"{size:,} bytes", odd])
        total += size
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  " + "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([f"{len(lines)} entries, {total:,} bytes", *text, *_tokens(batch)])


def _tokens(batch: dict[str, Any]) -> list[str]:
    """A line on real tokens and one on labels, for those that the batch has."""
    found = []
    if "attention_mask" in batch or "position_ids" in batch:
        held = without_padding(batch)
        found.append(f"  {int(held.sum())} of {held.numel()} positions hold tokens ({held.float().mean():.1%})")
    if "labels" in batch:
        trains = batch["labels"] != IGNORE_INDEX
        by_row = trains.sum(-1)
        found.append(f"  {int(trains.sum())} labels train, {int(by_row.min())} to {int(by_row.max())} a row")
    return found


def loader(rows: Any, tokenizer: Any, batch_size: int, order: Any = None) -> Any:
    """A torch DataLoader of encoded rows, padded to the longest of a batch; their weights are `loss_weights` in it.

    `order`: a sampler, such as LengthGroupedSampler; None: as they stand.
    """
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForSeq2Seq

    tokenizer.padding_side = "right"  # Unsloth sets left, for generation
    pad = DataCollatorForSeq2Seq(tokenizer)

    def collate(rows: list[dict[str, Any]]) -> Any:
        return pad([{name: row[name] for name in ("input_ids", "labels")} for row in rows])

    collate_fn = weight_collator.collator(rows, collate)
    return DataLoader(rows, batch_size, sampler=order, collate_fn=collate_fn, **workers())
