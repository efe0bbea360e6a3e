"""How far several raters agree beyond chance: Krippendorff's alpha."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


def differ(one: Any, other: Any) -> float:
    """Distance of names: equal or not."""
    return float(one != other)


def squared(one: float, other: float) -> float:
    """Distance of numbers."""
    return float(one - other) ** 2


def alpha(units: Sequence[Sequence[Any]], distance: Callable[[Any, Any], float] = differ) -> float | None:
    """1: all agree; 0: as by chance; below: less than by chance. None: nobody could have disagreed.

    Source: K. Krippendorff, Computing Krippendorff's alpha-reliability, University of Pennsylvania 2011: one less the
    ratio of the mean distance within units to that of all values. Units may have different numbers of raters.

    Args:
        units: the values that the raters gave to each unit; those with fewer than two are left out.
    """
    pairable = [unit for unit in units if len(unit) > 1]
    values = Counter(value for unit in pairable for value in unit)
    expected = sum(distance(one, other) * n * m for one, n in values.items() for other, m in values.items())
    if not expected:
        return None
    observed = sum(sum(distance(one, other) for one in unit for other in unit) / (len(unit) - 1) for unit in pairable)
    return 1 - (values.total() - 1) * observed / expected
