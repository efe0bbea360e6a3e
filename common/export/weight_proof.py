"""Point 3: what training has changed is found in the exported weights, and nothing else has changed."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from tunebook.common.errors import first_names
from tunebook.common.export.bounds import Bounds
from tunebook.common.export.checks import FINER, Check
from tunebook.common.process import progress

SWALLOWED, DOUBLED = 0.5, 1.5  # parts of a module's change below and above which it is named


@dataclass
class Change:
    """Of one weight.

    Attributes:
        norm: of what training changed (Frobenius). relative: to the base's norm.
        found: the part of it that the export has: 1 all, 0 nothing, 2 twice.
        lost: the export's distance from the trained weight, by that norm: rounding.
        matrix: it is none of the vectors (biases, norms), of which little depends on a small change.
    """

    name: str
    matrix: bool
    norm: float
    relative: float
    found: float
    lost: float


def check(trained: Any, exported: Any, bounds: Bounds, describe: str) -> tuple[list[Check], dict[str, Any]]:
    """
    Args:
        trained: AdaptedWeights or FineTunedWeights.
        exported: `read(name)` gives an exported weight in float32, or None where there is none; `skips(name)`: it is
            not to be looked for.
        describe: what is compared, for the table.

    Returns:
        The checks, and the figures for export.json.
    """
    changes: list[Change] = []
    still: list[str] = []
    missing: list[str] = []
    away: dict[str, float] = {}
    unread: list[str] = []
    touched = set(trained.touched)
    names = [*trained.shapes, *(name for name in trained.files.tied if name not in trained.shapes)]
    dot = square = 0.0
    for name in progress.track(names, f"comparing {describe}", len(names), "tensors"):
        if exported.skips(name):
            unread += [name] if name in touched else []
            continue
        value = trained.read(name)
        found = exported.read(name)
        if found is None or found.shape != value.shape:
            missing.append(name)
            continue
        distance = float((found - value).norm()) / (float(value.norm()) or 1.0)
        away[name] = math.inf if math.isnan(distance) else distance  # no number is larger than NaN
        base = trained.base.read(name) if trained.base is not None and name in touched else None
        if base is None or base.shape[1:] != value.shape[1:]:
            continue
        rows = min(len(base), len(value))
        delta = value[:rows] - base[:rows]
        norm = float(delta.norm())
        if norm == 0.0:
            still.append(name)
            continue
        shift = found[:rows] - base[:rows]
        part = float((shift.double() * delta.double()).sum())
        dot, square = dot + part, square + norm**2
        scale = float(base.norm()) or 1.0
        rest = float((found[:rows] - value[:rows]).norm())
        changes.append(Change(name, value.ndim > 1, norm, norm / scale, part / norm**2, rest / norm))
    figures = _figures(changes, still, away, missing, dot / square if square else None) | {"not_compared": unread}
    return _checks(changes, still, away, missing, figures, bounds, describe), figures


def _figures(
    changes: list[Change], still: list[str], away: dict[str, float], missing: list[str], found: float | None
) -> dict[str, Any]:
    norm = math.sqrt(sum(change.norm**2 for change in changes))
    lost = math.sqrt(sum((change.lost * change.norm) ** 2 for change in changes)) / norm if norm else None
    return {
        "found": found,
        "lost": lost,
        "norm": norm,
        "largest_distance": max(away.values(), default=0.0),
        "swallowed": [change.name for change in changes if change.found < SWALLOWED],
        "doubled": [change.name for change in changes if change.found > DOUBLED],
        "unchanged_by_training": still,
        "missing": missing,
        "modules": [asdict(change) for change in changes],
    }


def _checks(
    changes: list[Change],
    still: list[str],
    away: dict[str, float],
    missing: list[str],
    figures: dict[str, Any],
    bounds: Bounds,
    describe: str,
) -> list[Check]:
    checks = []
    if missing:
        checks.append(
            Check(3, "weights are complete", f"{len(missing)} missing", "none", f"missing: {first_names(missing, 3)}")
        )
    if figures["not_compared"]:
        said = first_names(figures["not_compared"], 2)
        checks.append(Check(3, "in another shape in the file, not compared", said, "reported"))
    if not changes and not still:
        failure = ""
    elif not changes:
        failure = "training has changed nothing: the adapter's weights are zero, and serving it would serve the base"
        checks.append(Check(3, f"what training changed is in {describe}", "no change", "some", failure))
    else:
        checks.append(_found(changes, figures, bounds, describe))
    if away:
        checks.append(_distance(away, bounds))
    return checks


def _distance(away: dict[str, float], bounds: Bounds) -> Check:
    """Of every weight, whether training has touched it or not: no more than rounding."""
    name, most = max(away.items(), key=lambda one: one[1])
    failure = ""
    if not most <= bounds.away:
        failure = f"{name} differs from the trained model by {most:.2g} of its norm, more than rounding can"
        if math.isinf(most):
            failure = f"{name} holds values that are no numbers"
        if sum(value > bounds.away for value in away.values()) > len(away) / 2:
            failure += ", and so do most of the others: this is another base, or it was trained on another one"
    return Check(3, "distance to the trained weights", f"{most:.1e} at most", f"{bounds.away:.1e}", failure)


def _found(changes: list[Change], figures: dict[str, Any], bounds: Bounds, describe: str) -> Check:
    found, low = figures["found"], min(change.found for change in changes)
    high = max(change.found for change in changes)
    value = f"{found:.3f} of it ({low:.2f} to {high:.2f} a module), {figures['lost']:.1%} lost to rounding"
    bound, failure = f"1 ± {bounds.found:g}", ""
    swallowed = figures["swallowed"]
    matrices, doubled = (
        [change.name for change in changes if change.name in figures[what] and change.matrix]
        for what in ("swallowed", "doubled")
    )
    if swallowed:
        value += f"; swallowed: {first_names(swallowed, 2)}"
    if not abs(found - 1) <= bounds.found:
        why = _why(found, figures["lost"])
        if matrices and len(matrices) < len(changes) / 2:
            why = f"it is lost in {len(matrices)} weights, such as {first_names(matrices, 2)}"
        failure = f"{found:.2f} of what training changed is in {describe}, not 1: {why}"
    elif matrices:
        failure = (
            f"what training changed is lost in {len(matrices)} of {len(changes)} weights, by rounding or in the "
            f"making: {first_names(matrices, 3)}; {FINER}"
        )
    elif doubled:
        named = first_names(doubled, 3)
        failure = f"what training changed is in {len(doubled)} of {len(changes)} weights more than once: {named}"
    return Check(3, f"what training changed is in {describe}", value, bound, failure)


def _why(found: float, lost: float) -> str:
    if math.isnan(found):
        return "the weights hold what is no number"
    if abs(found - 2) < 0.1 and lost < 1.5:
        return "the adapter is merged twice"
    if lost > 3:
        return "the weights are those of another base, or far coarser than what training changed"
    if abs(found) < 0.05:
        return f"it is the base, or rounding has swallowed the change: {FINER}"
    if lost**2 - (1 - found) ** 2 > SWALLOWED**2:  # more than a part that is missing along the change itself
        return (
            "rounding has swallowed part of it (more bits: --dtype float16 or float32, or export the adapter), or it "
            "was merged in part"
        )
    return "the adapter was scaled in another way (rsLoRA divides alpha by the root of r), or merged in part"
