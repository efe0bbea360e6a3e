"""The check that documents packed together train as each would alone, with a run's own model, attention and batch."""

from collections.abc import Callable
from typing import Any

from tunebook.common.batching.collator import documents
from tunebook.common.errors import CheckFailed
from tunebook.common.models import device
from tunebook.common.tokens.lengths import LOSS_WEIGHTS

TOKENS = 4096  # of a batch that are checked: their logits are held in full, which training does not do
# Root mean square of a difference over the logits' spread that rounding may make: in float32; in half precision, whose
# products are rounded otherwise at another width (SmolLM2-135M in bfloat16: up to 0.03 on a CPU, leaking 0.6 and more);
# and at the same width, where nothing but the batch sizes of experts or outliers in 8 bits could differ (there: 0).
EXACT, ALONE, REPLACED = 1e-4, 0.1, 0.02
UNPACKED = "Train unpacked: recipes/lora_alpaca.py, or distillation without --packing"


def check_document_isolation(trainer: Any) -> float:
    """Check on the trainer's first packed batch, with its own attention, that no document sees another.

    Each document must keep its logits when the tokens of its neighbours and of padding are replaced (else it sees
    them), and must have the logits that it has alone (else its positions, or what a layer counts by position, are not
    its own). Both are compared by root mean square: single logits in half precision differ by more than a tenth of
    the logits' spread where nothing leaks.

    Returns:
        The largest difference of a logit from the document alone. 0 where no row holds two documents, and in a plan,
        where there is nothing to compute.

    Raises:
        CheckFailed: a document differs by more than rounding gives, or its logits are not finite.
    """
    import torch

    if device.planned():
        return 0.0
    model = trainer.model
    batch = next(filter(_packed, trainer.get_train_dataloader()), None)
    if batch is None:
        print("packing: no row holds two documents, so none can see another")
        return 0.0
    batch = {name: value.to(model.device) for name, value in _excerpt(batch).items()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            rounded = _rounded(model)
            replaced, alone = _compare(lambda given: model(**given, use_cache=False).logits, batch)
    finally:
        model.train(was_training)
    _judge(_described(model.config), replaced, alone, rounded)
    rms, largest, spread = alone.unbind(-1)
    print(
        f"packing: documents of the first batch are apart with {_described(model.config)} (from a document alone, "
        f"logits differ by {(rms / spread).max():.1e} of their spread, root mean square, and by {largest.max():.1e} "
        "at most)"
    )
    return largest.max().item()


def _rounded(model: Any) -> bool:
    """Whether products are computed in less than float32: by the weights, by autocast, or by tf32."""
    import torch

    kind = model.device.type
    tf32 = kind == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return model.dtype != torch.float32 or torch.is_autocast_enabled(kind) or tf32


def _compare(logits: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> tuple[Any, Any]:
    """float32 (documents, 3) twice, as _difference: with the others' tokens replaced, and from each document alone."""
    import torch

    batch = {name: value for name, value in batch.items() if name not in ("labels", LOSS_WEIGHTS)}
    ids_BT, rows = batch["input_ids"], range(len(batch["input_ids"]))
    places = [(row, place, number % 2) for row in rows for number, place in enumerate(documents(batch, row))]
    together_BTV = logits(batch)
    alone = [
        _difference(together_BTV[row, place], logits({"input_ids": ids_BT[row : row + 1, place]})[0])
        for row, place, _ in places
    ]
    replaced = []
    for parity in (0, 1):  # neighbours take turns
        mine_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, place, turn in places:
            mine_BT[row, place] = turn == parity
        found_BTV = logits({**batch, "input_ids": torch.where(mine_BT, ids_BT, ids_BT.flip(-1))})
        replaced += [
            _difference(found_BTV[row, place], together_BTV[row, place])
            for row, place, turn in places
            if turn == parity
        ]
    return torch.stack(replaced), torch.stack(alone)


def _difference(found_TV: Any, expected_TV: Any) -> Any:
    """(3,): root mean square and maximum of the differences of logits, and the spread of the expected ones."""
    import torch

    expected_TV = expected_TV.float()
    difference_TV = found_TV.float() - expected_TV
    return torch.stack([difference_TV.square().mean().sqrt(), difference_TV.abs().max(), expected_TV.std()])


def _judge(described: str, replaced: Any, alone: Any, rounded: bool) -> None:
    for differences, bound, what, when in (
        (replaced, REPLACED, "see each other", "when the tokens of the others are replaced"),
        (alone, ALONE, "are not computed as each alone", "from the document alone"),
    ):
        bound = bound if rounded else EXACT
        rms, largest, spread = differences.unbind(-1)
        # max() of torch keeps a NaN, and no comparison with one holds.
        worst = (rms / spread).max().item()
        if not worst <= bound:
            raise CheckFailed(
                f"packed rows {what} with {described}: a document's logits differ by {worst:.2g} of their spread "
                f"(root mean square; at most {bound:g} is rounding), one logit by {largest.max().item():.2g}, {when}. "
                f"{UNPACKED}"
            )


def _described(config: Any) -> str:
    """sdpa attention of a qwen3_next model, layers of linear_attention and full_attention"""
    text = config.get_text_config()
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or []))
    layers = f", layers of {' and '.join(kinds)}" if kinds else ""
    return f"{text._attn_implementation} attention of a {text.model_type} model{layers}"


def _packed(batch: dict[str, Any]) -> bool:
    return any(len(documents(batch, row)) > 1 for row in range(len(batch["input_ids"])))


def _excerpt(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows of a batch with most documents, at most TOKENS in all; of one that is longer, two documents or more."""
    count, width = batch["input_ids"].shape
    rows = sorted(range(count), key=lambda row: -len(documents(batch, row)))[: max(1, TOKENS // width)]
    if width > TOKENS:
        ends = [place.stop for place in documents(batch, rows[0])]
        width = max([ends[1], *(end for end in ends if end <= TOKENS)])
    return {name: value[rows, :width] for name, value in batch.items()}
