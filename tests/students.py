"""Small students, batches for them, and what their loss asks of a trainer."""

import torch

from tunebook.common.batching.collator import PackedCollator
from tunebook.common.tokens.lengths import IGNORE_INDEX

SMALL = dict(
    vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
OWN = {  # what makes the logits of an architecture other than its head alone
    "Llama": {},
    "Cohere": {"logit_scale": 0.25},
    "Gemma2": {"final_logit_softcapping": 2.0},
    "Granite": {"logits_scaling": 4.0},
    "FalconH1": {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16},
}


def model(name="Llama", seed=0, **values):
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **OWN[name], **values})
    config._attn_implementation = "sdpa"
    made = getattr(transformers, f"{name}ForCausalLM")(config).float()
    with torch.no_grad():  # logits of some size
        made.get_output_embeddings().weight.mul_(20)
    return made


class Stub:
    """What `distillation.loss` asks of a trainer."""

    class accelerator:
        num_processes = 1
        unwrap_model = staticmethod(lambda model: model)

    class args:
        average_tokens_across_devices = True
        label_smoothing_factor = 0.0

    def __init__(self):
        from collections import defaultdict

        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}


def rows(count=6):
    torch.manual_seed(1)
    lengths = torch.randint(5, 12, (count,)).tolist()
    made = [torch.randint(3, 60, (length,)).tolist() for length in lengths]
    return [
        {"input_ids": ids, "labels": [IGNORE_INDEX] * (place % 3 + 1) + ids[place % 3 + 1 :], "seq_lengths": [len(ids)]}
        for place, ids in enumerate(made)
    ]


def padded(part):
    width = max(len(row["input_ids"]) for row in part)
    pad = {"input_ids": 0, "labels": IGNORE_INDEX}
    batch = {k: torch.tensor([r[k] + [v] * (width - len(r[k])) for r in part]) for k, v in pad.items()}
    return batch | {"attention_mask": torch.tensor([[int(i < len(r["labels"])) for i in range(width)] for r in part])}


def bins(part):
    """Three rows to a bin."""
    joined = []
    for start in range(0, len(part), 3):
        some = part[start : start + 3]
        row = {name: [v for r in some for v in r[name]] for name in ("input_ids", "labels")}
        joined.append(row | {"seq_lengths": [len(r["input_ids"]) for r in some]})
    return PackedCollator(0)(joined)
