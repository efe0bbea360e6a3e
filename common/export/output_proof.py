"""Points 4 and 5: probabilities and greedy answers of the export, beside those of the trained model."""

from dataclasses import dataclass, field
from typing import Any

from tunebook.common.export import conversations
from tunebook.common.export.bounds import Bounds
from tunebook.common.export.checks import FINER, Check
from tunebook.common.export.conversations import LIMIT, HeldOut
from tunebook.common.export.source import Source
from tunebook.common.process import progress


@dataclass
class Outputs:
    """
    Attributes:
        logits: of the first tokens of each reference answer, (tokens, vocabulary) each.
        answers: ids of the greedy answers to the first COUNT prompts, with their end tokens.
        near: of the trained model: for each token of an answer those that are level with it (see served.level).
    """

    logits: list[Any]
    answers: list[list[int]]
    near: list[list[set[int]]] = field(default_factory=list)


def _prompts(found: list[HeldOut]) -> list[list[int]]:
    return [one.ids[: one.start] for one in found[: conversations.COUNT]]


def of(served: Any, found: list[HeldOut]) -> Outputs:
    """The outputs of a model that is served (see served.py)."""
    with progress.start("answers of what is served"), served.loaded():
        return Outputs(
            [served.logits(one.ids, *one.stretch) for one in found],
            served.answers(_prompts(found), LIMIT),
        )


def of_trained(source: Source, base: Any, found: list[HeldOut], ends: list[int]) -> tuple[Outputs, list[Any] | None]:
    """The outputs of the trained model, and the logits of its base (None where there is none to compare with).

    Args:
        base: BaseWeights; of a run in 4 bits with `four_bit`. None: only the trained model is at hand.
    """
    with progress.start("answers of the trained model"):
        return _of_trained(source, base, found, ends)


def _of_trained(source: Source, base: Any, found: list[HeldOut], ends: list[int]) -> tuple[Outputs, list[Any] | None]:
    from tunebook.common.export import served
    from tunebook.common.models import inference

    model: Any = None
    before = None
    if base is not None:
        model = served.load(str(base.folder), base)
        rows = model.get_input_embeddings().weight.shape[0]
        if all(max(one.ids) < rows for one in found):
            before = [served.logits(model, one.ids, *one.stretch) for one in found]
        if source.adapter:
            model = inference.load_adapter(model, str(source.trained)).eval()
    if not source.adapter:
        model = None  # before the next one is loaded
        served.release()
        model = served.load(str(source.trained))
    outputs = Outputs(
        [served.logits(model, one.ids, *one.stretch) for one in found],
        *served.greedy(model, _prompts(found), LIMIT, set(ends)),
    )
    del model
    served.release()
    return outputs, before


def check(
    trained: Outputs, before: list[Any] | None, exported: Outputs, ends: list[int], bounds: Bounds, text: Any
) -> tuple[list[Check], dict[str, Any]]:
    """
    Args:
        text: ids -> text, for messages.

    Returns:
        The checks, and the figures for export.json.
    """
    figures = _probabilities(trained.logits, before, exported.logits)
    return [
        *_closeness(figures, bounds),
        *_answers(trained, exported.answers, ends, bounds, text, figures),
    ], figures


def _probabilities(trained: list[Any], before: list[Any] | None, exported: list[Any]) -> dict[str, Any]:
    import torch

    from tunebook.common.export import served

    largest, every, same, level, total, kl, from_base = 0.0, [], 0, 0, 0, 0.0, 0.0
    for place, (ours, theirs) in enumerate(zip(trained, exported, strict=True)):
        width = min(ours.shape[1], theirs.shape[1])  # a padded vocabulary may be cut
        ours, theirs = ours[:, :width], theirs[:, :width]
        away = (ours - theirs).abs()
        largest = max(largest, float(away.max()))
        every.append(float(away.median()))
        likeliest = theirs.argmax(-1, keepdim=True)
        same += int((ours.argmax(-1, keepdim=True) == likeliest).sum())
        level += int(served.level(ours).gather(-1, likeliest).sum())
        total += len(ours)
        log_p = ours.log_softmax(-1)
        kl += float(_kl(log_p, theirs))
        if before is not None:
            from_base += float(_kl(log_p, before[place][:, :width])) if before[place].shape[1] >= width else 0.0
    return {
        "tokens": total,
        "logits_largest_difference": largest,
        "logits_median_difference": float(torch.tensor(every).median()),
        "top1": same / total,
        "top1_or_level": level / total,
        "kl": kl / total,
        "kl_of_base": from_base / total if before is not None else None,
        "kept": 1 - kl / from_base if from_base else None,
    }


def _kl(log_p: Any, logits: Any) -> Any:
    log_q = logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).sum()


def _closeness(figures: dict[str, Any], bounds: Bounds) -> list[Check]:
    kl, kept = figures["kl"], figures["kept"]
    top1 = figures["top1_or_level" if bounds.level else "top1"]
    checks = [
        Check(
            4,
            "logits: largest, median difference",
            f"{figures['logits_largest_difference']:.3g}, {figures['logits_median_difference']:.2g}",
            "reported",
        ),
        Check(
            4,
            f"likeliest token equal ({figures['tokens']} tokens)",
            f"{figures['top1']:.2%}" + (f", or level: {top1:.2%}" if top1 > figures["top1"] else ""),
            f"{bounds.top1:.1%} at least",
            f"the likeliest token differs in {1 - top1:.1%} of the answer tokens" if top1 < bounds.top1 else "",
        ),
        Check(
            4,
            "KL(trained‖export), nats a token",
            f"{kl:.2e}",
            f"{bounds.kl:.0e} at most",
            f"the probabilities are {kl:.2g} nats a token from those of the trained model"
            if not kl <= bounds.kl
            else "",
        ),
    ]
    if kept is not None:
        failure = ""
        if kept < bounds.kept:
            failure = (
                f"the export is {'no nearer' if kept < 0.05 else f'only {kept:.0%} nearer'} to the trained model "
                f"than its base is: the tuning is lost; {FINER}"
            )
        checks.append(Check(4, "tuning kept, in KL", f"{kept:.2%}", f"{bounds.kept:.0%} at least", failure))
    return checks


def _answers(
    trained: Outputs,
    exported: list[list[int]],
    ends: list[int],
    bounds: Bounds,
    text: Any,
    figures: dict[str, Any],
) -> list[Check]:
    count = len(exported)
    equal = sum(a == b for a, b in zip(trained.answers, exported, strict=True))
    same = [
        _until_level(ours, theirs, near) if bounds.level else ours == theirs
        for ours, theirs, near in zip(trained.answers, exported, trained.near, strict=True)
    ]
    ended = [bool(set(ids) & set(ends)) for ids in trained.answers]
    stops = [bool(set(ids) & set(ends)) for ids in exported]
    runs_on = [place for place in range(count) if ended[place] and not stops[place]]
    figures |= {"equal_answers": equal / count, "equal_answers_or_level": sum(same) / count}
    figures |= {"ended": sum(ended), "exported_ended": sum(stops), "answers": count}
    failure = ""
    if sum(same) / count < bounds.equal:
        place = same.index(False)
        pair = [text(ids)[:60] for ids in (trained.answers[place], exported[place])]
        failure = f"answer {place + 1} is {pair[1]!r}, and the trained model's is {pair[0]!r}"
    wanted = f"{bounds.equal:.0%} at least" if bounds.equal else "reported"
    too_long = (
        f"{len(runs_on)} answers go on after the trained model's have ended"
        if len(runs_on) > (1 - bounds.equal) * count
        else ""
    )
    return [
        Check(
            5,
            "greedy answers equal",
            f"{equal} of {count}" + (f", or until a level token: {sum(same)}" if sum(same) > equal else ""),
            wanted,
            failure,
        ),
        Check(5, "answers that end", f"{sum(stops)} of {count}", f"as trained: {sum(ended)}", too_long),
    ]


def _until_level(trained: list[int], exported: list[int], near: list[set[int]]) -> bool:
    """Whether an answer is the trained model's, or leaves it at a token that is level with its own there."""
    pairs = zip(trained, exported, near, strict=False)
    return next((b in others for a, b, others in pairs if a != b), len(trained) == len(exported))
