"""Models: loaded in the precision of the device, with adapters of every kind, and what of them trains.

May import batching, tokens, data and the ground modules."""

from tunebook.common.models.loading import (
    decoder_layers,
    load,
    load_plain,
    parameters,
    preserve_modes,
    resolve,
    save,
    train_in_float32,
    unwrap,
)

__all__ = [
    "decoder_layers",
    "load",
    "load_plain",
    "parameters",
    "preserve_modes",
    "resolve",
    "save",
    "train_in_float32",
    "unwrap",
]
