"""What a run refuses: sets that teach nothing."""

import pytest

from tunebook.common.errors import CheckFailed
from tunebook.common.tokens.encoding_stats import EncodingStats


@pytest.mark.parametrize(
    "counts",
    [
        EncodingStats(rows=5, kept=0),
        EncodingStats(rows=5, kept=5, tokens=50, trained_tokens=0),
        EncodingStats(rows=100, kept=9, tokens=90, trained_tokens=9),
    ],
)
def test_gate_refuses(counts):
    with pytest.raises(CheckFailed, match="would train"):
        counts.require_trainable(512)


def test_gate_lets_pass():
    EncodingStats(rows=100, kept=90, tokens=900, trained_tokens=90).require_trainable(512)
