"""Where things lie: the repository, and the real data beside a development checkout."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SHARED = Path(os.environ.get("TUNEBOOK_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"
TOKENIZERS = DATA / "tokenizers"
BENCHMARKS = DATA / "benchmarks"
LACKING = "no shared/data beside the checkout (or in TUNEBOOK_SHARED)"
# `make test-all` takes whole data sets and every combination where `make test` takes a part.
WHOLE = os.environ.get("TUNEBOOK_TESTS") == "whole"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=LACKING)
