"""What a run makes sure of before it trains: that something trains, and that a person has seen what."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from common import loading
from common.batches import real
from common.distributed import world_size
from common.errors import CheckFailed
from common.isolation import isolation as isolation
from common.loss_weights import COLUMN
from common.masking import IGNORE, Counts, show

LOUD = 0.05  # share of the rows from which a loss is said on a line of its own


def gate(counts: Counts, max_length: int) -> None:
    """Refuse a training set in which nothing, or almost nothing, would be learnt, as `refuse` does; of one that is
    taken, say on lines of their own what larger shares are lost."""
    refuse(counts, max_length)
    for sentence in losses(counts, max_length):
        print(f"WARNING: {sentence}")


def refuse(counts: Counts, max_length: int) -> None:
    """Refuse a training set in which nothing, or almost nothing, would be learnt.

    Raises:
        CheckFailed: no row kept, no token trains, or more than nine rows in ten were dropped.
    """
    if not counts.kept or not counts.trained_tokens:
        raise CheckFailed(
            f"nothing would train: {counts.line()}. Raise --max_length (now {max_length}) if rows are too long, "
            "or look at the data's outputs"
        )
    if counts.kept * 10 < counts.rows - counts.dropped["weight_0"]:  # those were not meant to train
        raise CheckFailed(f"almost nothing would train: {counts.line()}. Raise --max_length (now {max_length})")


def losses(counts: Counts, max_length: int) -> list[str]:
    """A sentence on each reason for which many rows are dropped, or on many that are cut."""
    long = (
        f"more than --max_length {max_length} tokens; `tunebook inspect DATA --tokenizer MODEL` shows what lengths cost"
    )
    cures = {"too_long": f": they have {long}", "empty_output": ": their answers are empty"}
    lost = {reason: (rows, "dropped", cures.get(reason, "")) for reason, rows in counts.dropped.items()}
    if counts.truncated:
        lost["too_long"] = (counts.truncated, "cut, and train no end token", cures["too_long"])
    return [
        f"{100 * rows / counts.rows:.0f} % of the rows ({rows:,} of {counts.rows:,}) are {what} as {reason}{cure}"
        for reason, (rows, what, cure) in lost.items()
        if rows >= LOUD * counts.rows
    ]


def first_batch(loader: Iterable[dict[str, Any]], tokenizer: Any, debug_batches: int = 0) -> list[list]:
    """Print the first row of the run's own first batch with its trained tokens marked, and return it.

    Args:
        debug_batches: so many batches are described: shapes, dtypes, bytes, NaN.

    Returns:
        The row as [[text, trains], ...].

    Raises:
        CheckFailed: no label of the batch trains, or the end token of a row that has answer tokens does not.
        UserError: fewer processes run than were asked for.
    """
    import torch

    world_size()
    batches = list(islice(loader, max(1, debug_batches)))
    for place, described in enumerate(batches[:debug_batches], 1):
        print(f"batch {place}: {loading.describe(described)}")
    batch = batches[0]
    labels_BT = batch["labels"].cpu()
    if int((labels_BT != IGNORE).sum()) == 0:
        raise CheckFailed(
            "nothing trains in the first batch: every label is masked. Check the template and the data's outputs"
        )
    # Text of the data never becomes a special token, so one that trains is the end of an answer or of a turn.
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    if not bool(torch.isin(labels_BT, torch.tensor([tokenizer.eos_token_id, *special])).any()):
        raise CheckFailed("no end token trains in the first batch: the tuned model would never stop")
    keep = real(batch)[0].nonzero().flatten().tolist()
    example = {name: [batch[name][0].tolist()[place] for place in keep] for name in ("input_ids", "labels")}
    view = [[text, trains] for text, trains in show(example, tokenizer)]
    trained = sum(label != IGNORE for label in example["labels"])
    shape = " x ".join(map(str, batch["input_ids"].shape))
    print(f"First batch {shape}: row 1 has {len(keep)} tokens, of which these {trained} train{_weights(batch)}:")
    _print_marked(view)
    return view


def _weights(batch: dict[str, Any]) -> str:
    if COLUMN not in batch:
        return ""
    found = sorted({float(f"{weight:g}") for weight in batch[COLUMN][0].tolist() if weight})
    return (
        f", by weights of {found[0]:g} to {found[-1]:g}"
        if found[1:]
        else f", by a weight of {found[0]:g}"
        if found
        else ""
    )


def _print_marked(view: list[list]) -> None:
    from rich.console import Console
    from rich.text import Text

    console, text = Console(highlight=False, soft_wrap=True), Text()
    for piece, trains in view:
        piece = piece.replace("\n", "\u23ce\n") if not trains else piece.replace("\n", "\u23ce")
        # Brackets as well as colour, so that the marks survive a log file.
        text.append(f"[{piece}]" if trains else piece, style="bold green" if trains else "dim")
    console.print(text)
