"""The preview of the first batch, and the check that something in it trains."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from tunebook.common.batching import dataloader
from tunebook.common.batching.collator import without_padding
from tunebook.common.distributed import world_size
from tunebook.common.errors import CheckFailed
from tunebook.common.tokens.lengths import IGNORE_INDEX, LOSS_WEIGHTS
from tunebook.common.tokens.view import label_preview, print_preview
from tunebook.common.training.isolation import check_document_isolation as check_document_isolation


def first_batch(loader: Iterable[dict[str, Any]], tokenizer: Any, debug_batches: int = 0) -> list[list]:
    """Print the first row of the first batch with its trained tokens marked, and return it as [[text, trains], ...].

    Args:
        debug_batches: describe the first N batches: shapes, dtypes, bytes, NaN.

    Raises:
        CheckFailed: no label of the batch trains, or no end token does.
        UserError: fewer processes run than were asked for.
    """
    import torch

    world_size()
    batches = list(islice(loader, max(1, debug_batches)))
    for number, each in enumerate(batches[:debug_batches], 1):
        print(f"batch {number}: {dataloader.describe(each)}")
    batch = batches[0]
    labels_BT = batch["labels"].cpu()
    if int((labels_BT != IGNORE_INDEX).sum()) == 0:
        raise CheckFailed(
            "nothing trains in the first batch: every label is masked. Check the template and the data's outputs"
        )
    # Text of the data never becomes a special token, so one that trains is the end of an answer or of a turn.
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    if not bool(torch.isin(labels_BT, torch.tensor([tokenizer.eos_token_id, *special])).any()):
        raise CheckFailed("no end token trains in the first batch: the tuned model would never stop")
    keep = without_padding(batch)[0].nonzero().flatten().tolist()
    example = {name: [batch[name][0].tolist()[place] for place in keep] for name in ("input_ids", "labels")}
    view = [[text, trains] for text, trains in label_preview(example, tokenizer)]
    trained = sum(label != IGNORE_INDEX for label in example["labels"])
    shape = " x ".join(map(str, batch["input_ids"].shape))
    print(f"First batch {shape}: row 1 has {len(keep)} tokens, of which these {trained} train{_weights(batch)}:")
    print_preview(view)
    return view


def _weights(batch: dict[str, Any]) -> str:
    if LOSS_WEIGHTS not in batch:
        return ""
    weights = sorted({float(f"{weight:g}") for weight in batch[LOSS_WEIGHTS][0].tolist() if weight})
    if len(weights) > 1:
        return f", by weights of {weights[0]:g} to {weights[-1]:g}"
    return f", by a weight of {weights[0]:g}" if weights else ""
