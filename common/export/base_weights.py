"""The weights that a run started from, one at a time, as training has computed with them."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export.stored import StoredTensors
from tunebook.common.models import complete_weights
from tunebook.common.process import progress


def skeleton(folder: str | Path) -> Any:
    """The model of a folder without its weights.

    Raises:
        UserError: transformers does not know the architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: {error}") from error
    return model.eval()


def in_float32(folder: str | Path) -> Any:
    """The model of a folder with its weights, on the CPU.

    Raises:
        UserError: it cannot be loaded, or weights are missing, for which transformers takes random ones.
    """
    with complete_weights.required(str(folder)):
        return _load(folder)[0]


def _load(folder: str | Path) -> tuple[Any, list[str]]:
    """The model, and the names of the weights that its files do not have."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with progress.start("loading the weights"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder} cannot be loaded: {error}") from error
    model, said = loaded
    known = dict(model.named_parameters())
    return model.eval(), sorted(name for name in said["missing_keys"] if name in known)


class BaseWeights:
    """The weights by the names that they have in the model.

    Args:
        folder: config.json and weights.
        four_bit: training has computed with the weights in NF4 with double quantization: linear layers are read as
            the values that their 4 bits stand for.

    Attributes:
        whole: all of them are in memory, as where the file has other tensors than the model (a mixture's experts).
    """

    def __init__(self, folder: str | Path, four_bit: bool = False):
        self.folder, self.model, self.stored = Path(folder), skeleton(folder), StoredTensors(folder)
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.parameters = {name: tuple(value.shape) for name, value in self.model.named_parameters()}
        self.tied = _tied(self.model)  # of the output layer to the embeddings: {name: name}
        self.quantized = self._linear() if four_bit and not self.stored.packed else frozenset()
        self._names = self._match()
        self.whole = self._names is None

    def _match(self) -> dict[str, str] | None:
        """Names in the model -> names in the file; None where they do not correspond."""
        prefix, stored = f"{self.model.base_model_prefix}.", set(self.stored.names)
        found = {}
        for name in self.parameters:
            near = (name, name.removeprefix(prefix), prefix + name)
            place = next((one for one in near if one in stored), None)
            if place is None and name in self.tied:
                continue
            if place is None or self.stored.shape(place) != self.parameters[name]:
                return None
            found[name] = place
        return found

    def _linear(self) -> frozenset[str]:
        """The weights that loading in 4 bits quantizes."""
        import torch
        from transformers.pytorch_utils import Conv1D
        from transformers.quantizers.base import get_keys_to_not_convert

        skipped = set(get_keys_to_not_convert(self.model))
        return frozenset(
            f"{name}.weight"
            for name, module in self.model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and name not in skipped
        )

    @cached_property
    def _loaded(self) -> tuple[dict[str, Any], list[str]]:
        model, missing = _load(self.folder)
        return model.state_dict(), missing

    @property
    def missing(self) -> list[str]:
        """The weights that are not there, where it is `whole`."""
        return self._loaded[1] if self.whole else []

    def read_buffers(self) -> dict[str, Any]:
        """What else belongs to the model, where it is `whole`: no weights, but saved with them."""
        return {name: value for name, value in self._loaded[0].items() if name not in self.parameters}

    def stored_as(self, name: str) -> str | None:
        """The name of a weight in the file; None for one that is tied, or where `whole`."""
        return None if self._names is None else self._names.get(name)

    def read(self, name: str) -> Any:
        """A weight in float32."""
        name = self.tied.get(name, name) if self.stored_as(name) is None else name
        if name in self.missing:
            raise UserError(f"{self.folder}: its weights have no {name}; take a folder that is complete")
        value = self._loaded[0][name] if self._names is None else self.stored.read(self._names[name]).float()
        return four_bit(value, self.model, name) if name in self.quantized else value


def four_bit(value: Any, model: Any, name: str) -> Any:
    """A weight after 4 bits (NF4, double quantization), as loading quantizes it."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from transformers.pytorch_utils import Conv1D

    turned = isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)  # as GPT-2 has it
    packed, state = quantize_4bit(
        (value.T if turned else value).contiguous(), quant_type="nf4", compress_statistics=True
    )
    found = dequantize_4bit(packed, state)
    return found.T.contiguous() if turned else found


def _tied(model: Any) -> dict[str, str]:
    """{output layer's weight: embeddings' weight} where they are one."""
    names = {id(module): name for name, module in model.named_modules()}
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    if outer is None or not model.config.get_text_config().tie_word_embeddings:
        return {}
    return {f"{names[id(outer)]}.weight": f"{names[id(inner)]}.weight"}
