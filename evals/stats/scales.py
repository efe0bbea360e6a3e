"""The scale of a metric, so that no number from 0 to 100 is read beside one from 0 to 1."""

UNITS = {
    "loss": "nats a token",
    "bits_per_byte_of_answer": "bits a byte",
    "bits_per_byte": "bits a byte",
    "byte_perplexity": "from 1",
    "word_perplexity": "from 1",
    "perplexity": "from 1",
    "tokens_as_in_training": "share of rows",
}
SHARES = ("acc", "acc_norm", "exact_match", "em", "f1", "rougeL", "bertscore", "stereotype", "refusal", "over_refusal",
          "empty", "bleu_acc", "rouge1_acc", "rouge2_acc", "rougeL_acc", "pass@1")  # fmt: skip
PERCENT = ("bleu", "chrf", "ter", "bleu_max", "rouge1_max", "rouge2_max", "rougeL_max")  # as lm-eval gives them


def of(metric: str) -> str:
    """In words; "" where it is not known. A filter after a comma does not matter."""
    name = metric.partition(",")[0]
    return UNITS.get(name) or ("0 to 1" if name in SHARES else "0 to 100" if name in PERCENT else "")
