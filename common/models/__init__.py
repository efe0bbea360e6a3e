"""Models: loaded in the precision of the device, with adapters of every kind, and what of them trains.

May import batching, tokens, data and the ground modules."""

from tunebook.common.models.loading import (
    decoder_layers,
    flags_kept,
    load,
    load_plain,
    locate,
    parameters,
    save,
    train_in_float32,
    unwrapped,
)

__all__ = [
    "decoder_layers",
    "flags_kept",
    "load",
    "load_plain",
    "locate",
    "parameters",
    "save",
    "train_in_float32",
    "unwrapped",
]
