"""Models without weights, for planning: on the meta device from a config alone, also in 4 bits, and what they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import footprint
from common.errors import UserError


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of a module or class is another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def located(name: str) -> str:
    """What models.locate says of a model, of which the weights may be missing."""
    from common import models

    with replaced(models, "WEIGHTS", (*models.WEIGHTS, "config.json")):
        return models.locate(name)


def shape(place: str, dtype: Any, four_bit: bool, full: bool, max_length: int = 0) -> tuple[Any, Any]:
    """A model on the meta device from its config alone, and its tokenizer.

    Args:
        place: a folder with config.json and a tokenizer, a Hub name, or pocket.
        full: all of it trains.

    Raises:
        UserError: there is no config that transformers knows, or the model takes fewer tokens than max_length.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from common import tokenizers

    place = located(place)
    try:
        config = AutoConfig.from_pretrained(place)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {place} cannot be planned: {error}") from error
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit < max_length:
        raise UserError(f"--max_length {max_length}: {place} takes {limit} tokens at most")
    if four_bit:
        model = _four_bit(model, dtype)
    model.requires_grad_(full)
    model.config.use_cache = False
    model.hf_device_map = {"": "meta", "lm_head": "meta"}  # with a map it is left where it is by Trainer and accelerate
    tokenizer, _ = tokenizers.load(place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.train(), tokenizer


def _four_bit(model: Any, dtype: Any) -> Any:
    """Linear layers as bitsandbytes has them, computing as it does: each use makes a whole weight for a moment."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    class Dequantised(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(weight)
            return x @ torch.empty(weight.shape, dtype=x.dtype, device=x.device).t()

        @staticmethod
        def backward(ctx, gradient):
            (weight,) = ctx.saved_tensors
            return gradient @ torch.empty(weight.shape, dtype=gradient.dtype, device=gradient.device), None

    class Shape4bit(Linear4bit):
        def forward(self, x):
            return Dequantised.apply(x, self.weight)

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config.bnb_4bit_compute_dtype = dtype
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=config)
    for module in model.modules():
        if type(module) is Linear4bit:
            module.__class__ = Shape4bit
    model.is_loaded_in_4bit = True  # PEFT asks for it
    return model


def moments(model: Any, padded: bool, autocast: Any = None) -> footprint.Moments:
    """What a step of a model on the meta device holds.

    Args:
        padded: batches have padding, so that attention gets a mask.
        autocast: the dtype in which a GPU computes products, whatever dtype weights have; there the loss also keeps the
            gradient of its logits beside them. None: no GPU.
    """
    import torch
    from transformers import masking_utils

    rows, linear = 2, torch.nn.functional.linear
    for module in model.modules():
        vars(module).pop("hf_device_map", None)  # PEFT would look for each layer in it
        if autocast is not None and "cast_input_dtype_enabled" in vars(module):
            module.cast_input_dtype_enabled = False  # PEFT leaves that to autocast, where there is one
    prompts = hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning

    def step(width: int, few: bool) -> None:
        given: dict[str, Any] = {"input_ids": torch.zeros((rows, width), dtype=torch.long, device="meta")}
        if padded and not prompts:  # whether a mask of two dimensions hides anything cannot be asked of a shape
            given["attention_mask"] = torch.ones((rows, 1, width, width), dtype=torch.bool, device="meta")
        logits_BTV = model(**given, use_cache=False, logits_to_keep=footprint.LABELS).logits
        logits_BTV.float().sum().backward()

    def product(x, weight, bias=None):  # torch.autocast knows no meta device
        return linear(x.to(autocast), weight.to(autocast), None if bias is None else bias.to(autocast))

    vocabulary = model.get_output_embeddings().weight.shape[0]
    with (
        replaced(torch.nn.functional, "linear", linear if autocast is None else product),
        replaced(torch.nn.functional, "scaled_dot_product_attention", _fused),
        replaced(masking_utils, "find_packed_sequence_indices", lambda positions: None),  # it asks for values
    ):
        return footprint.moments(model, step, rows, label_bytes=4 * vocabulary * (1 if autocast is None else 2))


def _fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fused attention, which keeps no T x T products; on the meta device torch would choose one that does."""
    import torch

    query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast does
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def shallow(place: str, layers: int, folder: Path) -> None:
    """Save a model of fewer layers with random weights, and the tokenizer, in a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = located(place)
    config = AutoConfig.from_pretrained(place)
    text = config.get_text_config()
    for name, value in vars(text).items():  # some configs say of each layer what it is
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(place).save_pretrained(folder)
