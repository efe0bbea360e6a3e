"""What tasks and metrics are called on pages and in tables of people; lm-eval's own names stand beside them."""

TASKS = {
    "pocket_seen": "Instructions in seen phrasings",
    "pocket_unseen": "Instructions in new phrasings",
    "pocket_chat": "Second turns of conversations",
    "pocket_facts": "World knowledge",
    "pocket_text": "General text",
    "general_knowledge": "General knowledge",
    "held_out_pairs": "Held-out pairs",
    "truthfulqa_mc1": "TruthfulQA (one right choice)",
    "truthfulqa_mc2": "TruthfulQA (several right choices)",
    "arc_challenge": "ARC challenge",
    "arc_easy": "ARC easy",
    "gsm8k": "GSM8K arithmetic",
    "mmlu": "MMLU",
    "ifeval": "IFEval",
    "bbh": "BIG-bench hard",
    "humaneval_contained": "HumanEval",
    "heldout_loss": "Loss on your test rows",
    "heldout_answers": "Answers to your test rows",
    "safety": "Safety",
}
METRICS = {
    "exact_match": "exact match",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "bits_per_byte": "bits a byte",
    "bits_per_byte_of_answer": "bits a byte of answer",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "f1": "F1",
    "bertscore": "BERTScore",
    "loss": "loss",
    "accuracy": "the better answer has the higher reward",
    "likelier": "the better answer is likelier",
    "tokens_as_in_training": "rows asked with the tokens of training",
}


def task(name: str) -> str:
    """Its label; of an unknown one, its name with spaces."""
    return TASKS.get(name) or name.replace("_", " ")


def metric(name: str) -> str:
    """Its label; a filter after a comma stays."""
    first, comma, rest = name.partition(",")
    return METRICS.get(first, first.replace("_", " ")) + (f", {rest}" if comma else "")
