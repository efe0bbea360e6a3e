"""Models that need no Hub, as folders that everything else loads: the bundled ones, SmolLM2, and .gguf files.

Public: folder, smollm2. May import the ground modules."""

from tunebook.common.local_models.names import folder, smollm2

__all__ = ["folder", "smollm2"]
