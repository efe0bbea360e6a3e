"""A model in one .gguf file as a folder that everything else loads: weights dequantized, tokenizer from the file's own
metadata. It needs the package gguf, and imports of this collection the ground modules alone.

Public: folder.
"""

from tunebook.common.gguf.conversion import folder

__all__ = ["folder"]
