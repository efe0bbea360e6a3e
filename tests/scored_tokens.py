"""The tokens that lm-eval scores, beside those that training has."""

from lm_eval.models.huggingface import HFLM


def of_lm_eval(tokenizer, bare: bool = False):
    """lm-eval's own model class as far as it encodes."""
    lm = HFLM.__new__(HFLM)
    lm.tokenizer, lm.add_bos_token, lm.custom_prefix_token_id = tokenizer, False if bare else None, None
    return lm


def shared(before: list[int], ids: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))


def same_tokens(tokenizer, doc: dict, ids: list[int], start: int, bare: bool = False) -> None:
    lm = of_lm_eval(tokenizer, bare)
    context, scored = lm._encode_pair(doc["context"], doc["scored"][0])
    lead = lm._encode_pair(doc["context"], doc["scored"][1])[1] if len(doc["scored"]) > 1 else []
    assert context + scored == ids and context + lead == ids[:start] and doc["tokens"] == len(ids) - start
    assert doc["as_trained"] == 1.0
