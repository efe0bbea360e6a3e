"""Attention for packed batches on a CPU: each document by itself, with no mask of all positions by all positions."""

from typing import Any

from tunebook.common.batching.collator import PackedCollator
from tunebook.common.models import device

NAME = "documents"  # as transformers knows it
# Types of models (config.model_type) that have forwards of Unsloth's own on a GPU.
UNSLOTH_FORWARDS = {"llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"}


def one_row(model: Any) -> bool:
    """Whether the bins of a packed batch have to stand in one row: Unsloth's own forwards (Llama, Mistral, Qwen, Gemma,
    ... on a GPU) find documents by their positions in a batch of one row alone, and are plain causal in any other.
    """
    if plan := device.planned():
        return plan.gpu and model.config.model_type in UNSLOTH_FORWARDS
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(base.base_model).forward.__module__.startswith("unsloth.")


def use_document_attention(model: Any) -> bool:
    """Make a transformers model attend inside each document of a packed batch (positions that begin anew, no mask).

    With its own sdpa attention, transformers makes a mask of T x T for each bin of T tokens and computes every product
    in it, of which only those inside documents are used. Here time and memory are those of the documents alone.
    Batches with a mask or a key-value cache, and layers with a window, are computed as before. On a GPU transformers'
    attention is left as it is: sdpa tells documents apart by positions that begin anew, flash attention does so in a
    batch of one row only. Unsloth's own forwards are told the lengths of the documents.

    Returns:
        Whether it attends by document now. A model that does not compute with it what it computes with sdpa is left as
        it is, with a printed line.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    if one_row(model):
        model.register_forward_pre_hook(_tell_lengths, with_kwargs=True)
        return True
    before = model.config._attn_implementation
    if model.device.type != "cpu" or before != "sdpa":
        return False
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    ids, positions = torch.arange(12)[None] + 2, torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 0, 0]])
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected, found = (_logits(model, name, ids, positions) for name in (before, NAME))
    finally:
        model.train(training)
    difference = (expected - found).abs().max().item()
    if difference <= 1e-4 * expected.std().item():
        return model.config._attn_implementation == NAME  # not where the model knows no other attention than its own
    model.set_attn_implementation(before)
    print(
        f"packing: {type(model).__name__} keeps {before} attention (by document, a logit differs by {difference:.1g})"
    )
    return False


def _tell_lengths(model: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Tell Unsloth's forwards how long the documents of a packed row are. Most find out by its positions; Mistral's
    makes a mask of the whole row where it does not train (Unsloth 2026.10.9)."""
    import torch

    positions_BT = given.get("position_ids")
    if positions_BT is not None and len(positions_BT) == 1 and given.get("attention_mask") is None:
        starts = (positions_BT[0] == 0).nonzero().flatten()
        ends = torch.nn.functional.pad(starts[1:], (0, 1), value=positions_BT.shape[1])
        given["packed_seq_lengths"] = (ends - starts).int()
    return args, given


def _logits(model: Any, name: str, ids: Any, positions: Any) -> Any:
    model.set_attn_implementation(name)
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()


def _mask(**given: Any) -> Any:
    """No mask where `_attend` needs none: causal, with no padding, no window, no cache, and nothing else added."""
    from transformers.masking_utils import sdpa_mask

    plain = (
        given.get("attention_mask") is None
        and given.get("local_size") is None
        and not given.get("use_vmap")
        and "allow_is_bidirectional_skip" not in given
        and given["q_length"] == given["kv_length"]
    )
    return None if plain else sdpa_mask(**given)


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> tuple[Any, None]:
    """query (B, H, T, D), key and value (B, K, T, D) -> (B, T, H, D), as sdpa_attention_forward of transformers."""
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    positions = given.get("position_ids")  # some models do not pass them on
    if attention_mask is not None or positions is None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    positions_BT = positions.expand(len(query), -1)
    rows = []
    for row, places in enumerate(_pieces(positions_BT)):
        sizes = [size for size, _ in places]
        # One split and one cat a row: their backward is one cat and one split.
        parts = zip(*(states[row : row + 1].split(sizes, dim=2) for states in (query, key, value)), strict=True)
        attended = []
        for (_, single), (q, k, v) in zip(places, parts, strict=True):
            if single:  # tokens that see themselves alone
                attended.append(repeat_kv(v, q.shape[1] // v.shape[1]).transpose(1, 2))
            else:
                attended.append(sdpa_attention_forward(module, q, k, v, None, **given)[0])
        rows.append(torch.cat(attended, dim=1) if len(attended) > 1 else attended[0])
    return torch.cat(rows), None


def _pieces(positions_BT: Any) -> list[list[tuple[int, bool]]]:
    """Of each row: its documents as (tokens, False); a run of documents of one token, as padding is, as (tokens, True).

    A document ends where positions do not go on by one: what transformers takes for packing.
    """
    width = positions_BT.shape[1]
    breaks = (positions_BT[:, 1:] != positions_BT[:, :-1] + 1).nonzero().tolist()
    found: list[list[tuple[int, bool]]] = []
    for row in range(len(positions_BT)):
        ends = [*(place + 1 for at, place in breaks if at == row), width]
        places: list[tuple[int, bool]] = []
        for start, end in zip([0, *ends], ends, strict=False):
            if end - start == 1 and places and places[-1][1]:
                places[-1] = (places[-1][0] + 1, True)
            else:
                places.append((end - start, end - start == 1))
        found.append(places)
    return found


def collator(model: Any, tokenizer: Any) -> PackedCollator:
    """The collator of packed rows for a model: bins in one row where its attention needs that to part documents."""
    return PackedCollator(tokenizer.pad_token_id or 0, one_row(model))
