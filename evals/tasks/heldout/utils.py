"""Functions that the YAML files beside this one name."""

import math
import re
from functools import cache

from tunebook.evals.harness import bertscore, heldout


def load(
    dataset="", template="", tokenizer="", pretrained="", bert_model="", bert_layer=0, add_bos_token=None, **_
):  # fmt: skip
    import datasets

    docs = heldout.docs(tuple(dataset), template, tokenizer or pretrained, add_bos_token is False)
    if bert_model:
        docs = [doc | {"bert_model": bert_model, "bert_layer": bert_layer} for doc in docs]
    return {"test": datasets.Dataset.from_list(docs)}


def likelihood(doc, results):
    (whole, _), *leads = results  # log-likelihoods of what is scored; of the part of it that training does not count
    found = whole - sum(value for value, _ in leads)
    return {
        "loss": (found, doc["tokens"]),
        "bits_per_byte_of_answer": (found, doc["bytes"]),
        "tokens_as_in_training": doc["as_trained"],
    }


def loss(items):
    """Nats per token that training would train."""
    return -sum(value for value, _ in items) / sum(weight for _, weight in items)


def bits_per_byte(items):
    """Bits of answers and their ends per byte of the answers in UTF-8."""
    return loss(items) / math.log(2)


def likeness(doc, results):
    answer, reference = results[0].strip(), doc["answer"].strip()
    encoder = bertscore.of(doc["bert_model"], doc["bert_layer"]) if "bert_model" in doc else None
    return {
        "rougeL": scorer().score(reference, answer)["rougeL"].fmeasure,
        "exact_match": float(answer == reference),
        "bleu": [reference, answer],
    } | ({"bertscore": encoder.score(reference, answer)} if encoder else {})


def bleu(items):
    """Corpus BLEU from 0 to 100 by sacrebleu with its own defaults (tokeniser 13a, smoothing exp)."""
    import sacrebleu

    references, answers = zip(*items, strict=True)
    return sacrebleu.corpus_bleu(list(answers), [list(references)]).score


class Words:
    """ROUGE's words: letters and digits in lower case. Google's tokeniser knows ASCII alone; there both agree."""

    def tokenize(self, text):
        return re.findall(r"[^\W_]+", text.lower())


@cache
def scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())
