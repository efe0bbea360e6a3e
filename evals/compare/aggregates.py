"""How a metric follows from its items: a function of means over items that gives lm-eval's own number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-6  # relative, to lm-eval's own number


@dataclass(frozen=True)
class Aggregate:
    """A metric as `of(mean over items of rows(values))`."""

    name: str
    rows: Callable[[Sequence[Any]], np.ndarray]  # values of the items -> float64 (items, k)
    of: Callable[[np.ndarray], np.ndarray]  # means over items (..., k) -> the metric (...)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([[_number(value)] for value in values])


def _number(value: Any) -> float:
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise TypeError


def _pairs(values: Sequence[Any]) -> np.ndarray:
    """A sum and its weight, as log-likelihood and bytes."""
    return np.array([[_number(total), _number(weight)] for total, weight in values])


def _lists(values: Sequence[Any]) -> np.ndarray:
    """Several results an item, as IFEval's instructions of one prompt."""
    if any(not isinstance(value, (list, tuple)) or not value for value in values):
        raise TypeError
    return np.array([[sum(map(_number, value)), len(value)] for value in values])


def _n_grams(values: Sequence[Any]) -> np.ndarray:
    """References and an answer, as what corpus BLEU sums: matches and n-grams of 1 to 4 words, both lengths."""
    from sacrebleu.metrics.bleu import BLEU

    score, rows = BLEU(), []
    for references, answer in values:
        answer = answer[0] if isinstance(answer, (list, tuple)) and len(answer) == 1 else answer
        references = [references] if isinstance(references, str) else references
        if not isinstance(answer, str) or not all(isinstance(text, str) for text in references):
            raise TypeError
        found = score.corpus_score([answer], [[text] for text in references])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    # So that a mean over the items is a sum: smoothing needs counts.
    return np.array(rows, dtype=np.float64) * len(rows)


def _bleu(rows: np.ndarray) -> np.ndarray:
    """Corpus BLEU of sums (Papineni and others, ACL 2002); orders without a match smoothed by sacrebleu's `exp`."""
    matches, totals, length, reference = rows[..., :4], rows[..., 4:8], rows[..., 8], rows[..., 9]
    halvings = np.cumsum(matches == 0, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(matches > 0, matches, 0.5**halvings) / totals
        bleu = 100 * np.exp(np.log(precision).mean(-1)) * np.exp(np.minimum(0, 1 - reference / length))
    return np.where((matches > 0).any(-1) & (totals > 0).all(-1), bleu, 0.0)


def _quotient(rows: np.ndarray) -> np.ndarray:
    return rows[..., 0] / rows[..., 1]


MEAN = Aggregate("mean", _numbers, lambda rows: rows[..., 0])
AGGREGATES = (
    MEAN,
    Aggregate("exp(-mean)", _numbers, lambda rows: np.exp(-rows[..., 0])),
    Aggregate("share of all results", _lists, _quotient),
    Aggregate("exp(-sum / weight)", _pairs, lambda rows: np.exp(-_quotient(rows))),
    Aggregate("-sum / weight", _pairs, lambda rows: -_quotient(rows)),
    Aggregate("-sum / weight / ln 2", _pairs, lambda rows: -_quotient(rows) / math.log(2)),
    Aggregate("corpus BLEU", _n_grams, _bleu),
)


def find(models: Sequence[tuple[Sequence[Any], float]]) -> tuple[Aggregate, list[np.ndarray]] | None:
    """The aggregate that gives lm-eval's own number of every model, with the rows; None where none of ours does.

    Args:
        models: (values of the items, the number in lm-eval's results) of each.
    """
    for aggregate in AGGREGATES:
        try:
            rows = [aggregate.rows(values) for values, _ in models]
        except (TypeError, ValueError):  # values of another shape
            continue
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found = [float(aggregate.of(part.mean(0))) for part in rows]
        if all(math.isclose(value, score, rel_tol=TOLERANCE) for value, (_, score) in zip(found, models, strict=True)):
            return aggregate, rows
    return None
