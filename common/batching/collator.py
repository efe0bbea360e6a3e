"""Batches of packed rows: token ids, labels, and positions that restart with each document."""

from dataclasses import dataclass
from typing import Any

from tunebook.common.tokens.lengths import IGNORE_INDEX


@dataclass
class PackedCollator:
    """Bins (rows of packing.pack_dataset) as one batch: a bin a row, padded to the longest, or all of them in one row.

    There is no attention mask: with one, or with a key-value cache, documents of a bin would see each other
    (transformers tells them apart by positions that begin at 0, and only then). Each padding position is 0, so that
    padding is many documents of its own. The first token of a document is never a label: what stands before it is
    another document.

    Args:
        one_row: join the bins, as `attention.one_row` says.
    """

    pad_token_id: int
    one_row: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        if self.one_row:
            names = ("input_ids", "labels", "seq_lengths")
            rows = [{name: [value for row in rows for value in row[name]] for name in names}]
        width = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad_token_id)
        labels_BT = torch.full((len(rows), width), IGNORE_INDEX)
        positions_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_BT[place, :length] = torch.as_tensor(row["input_ids"])
            labels_BT[place, :length] = torch.as_tensor(row["labels"])
            starts = torch.cat([torch.arange(size) for size in row["seq_lengths"]])
            positions_BT[place, :length] = starts
        labels_BT[positions_BT == 0] = IGNORE_INDEX
        return {"input_ids": ids_BT, "labels": labels_BT, "position_ids": positions_BT}


def without_padding(batch: dict[str, Any]) -> Any:
    """bool (B, T): where a batch holds a token, not padding."""
    import torch

    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    positions_BT = batch["position_ids"]
    following_BT = torch.nn.functional.pad(positions_BT[:, 1:], (0, 1))
    return (positions_BT > 0) | (following_BT > 0)


def documents(batch: dict[str, Any], row: int) -> list[slice]:
    """Slices of the documents of one row of a packed batch, without padding and documents of one token."""
    positions_T = batch["position_ids"][row]
    starts = (positions_T == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], len(positions_T)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True) if end - start > 1]
