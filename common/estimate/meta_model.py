"""Models without weights: made on the meta device from a config alone, also in 4 bits, and recipes run with them."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from tunebook.common import models
from tunebook.common.errors import UserError, cannot_load
from tunebook.common.estimate import activations
from tunebook.common.estimate.probe import StepFunctions
from tunebook.common.estimate.schedule import BatchSchedule
from tunebook.common.models import device, model_bytes
from tunebook.common.models.device import Device
from tunebook.common.tokens import tokenization


class PlanReady(Exception):
    """Raised in `plan_mode` where a recipe comes to its forecast.

    Args:
        checkpointing: whether activations are recomputed.
        optimizer: named as in TrainingArguments.optim; None: what the recipe's config asked for.

    Attributes:
        others: bytes of the models that the recipe holds and does not train, such as a teacher.
    """

    def __init__(self, run: StepFunctions, schedule: BatchSchedule, checkpointing: bool, optimizer: str | None = None):
        super().__init__("a recipe that is planned ends here")
        loader: Any = device.current().loader
        self.run, self.schedule, self.checkpointing = run, schedule, checkpointing
        self.optimizer: str = optimizer or loader.optimizer
        trained = {id(part) for part in run.model.modules()}
        gc.collect()
        held = [model for reference in loader.loaded if (model := reference()) is not None]
        self.others = sum(model_bytes.weights(model) for model in held if id(model) not in trained)


@dataclass
class MetaLoader:
    """What models.load calls in a plan."""

    device: Device
    load_in_4bit: bool | None = None
    loaded: list[weakref.ref[Any]] = field(default_factory=list)
    optimizer: str = ""  # what the recipe's config has asked for
    patches: ExitStack = field(default_factory=ExitStack)

    def __call__(self, name: str, max_length: int, four_bit: bool = False, full: bool = False) -> tuple[Any, Any]:
        self.record_optimizer()
        four_bit = four_bit if self.load_in_4bit is None else self.load_in_4bit
        model, tokenizer = meta_model(name, self.device.weights_dtype(full), four_bit, full, max_length)
        self.loaded.append(weakref.ref(model))
        return model, tokenizer

    def record_optimizer(self) -> None:
        """Patch TrainingArguments to record its `optim`: without a GPU, Unsloth replaces some before anything else can
        see them. (Not sooner than here, where the recipe has imported Unsloth.)"""
        from transformers import TrainingArguments

        def record(arguments: Any, name: str, value: Any) -> None:
            if name == "optim":
                self.optimizer = self.optimizer or str(getattr(value, "value", value))
            object.__setattr__(arguments, name, value)

        self.patches.enter_context(patch.object(TrainingArguments, "__setattr__", record))


@contextmanager
def plan_mode(planned: Device, load_in_4bit: bool | None = None) -> Iterator[None]:
    """Inside, recipes get models without weights, and their forecast raises PlanReady.

    Args:
        load_in_4bit: overrides the recipe's own choice, except None.
    """
    loader = MetaLoader(planned, load_in_4bit)
    with loader.patches, device.use(replace(planned, loader=loader)):
        yield


def meta_model(name: str, dtype: Any, four_bit: bool, full: bool, max_length: int = 0) -> tuple[Any, Any]:
    """A model on the meta device from its config alone, and its tokenizer.

    Args:
        name: as models.resolve.
        full: all of it trains.

    Raises:
        UserError: there is no config that transformers knows, or the model takes fewer tokens than max_length.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = models.resolve(name, weights=False)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        raise cannot_load(f"--model {path}", error) from error
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit < max_length:
        raise UserError(f"--max_length {max_length}: {path} takes {limit} tokens at most")
    if four_bit:
        model = _in_four_bits(model, dtype)
    model.requires_grad_(full)
    model.config.use_cache = False
    model.hf_device_map = {"": "meta", "lm_head": "meta"}  # with a map it is left where it is by Trainer and accelerate
    tokenizer, _ = tokenization.load(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.train(), tokenizer


def _in_four_bits(model: Any, dtype: Any) -> Any:
    """Linear layers of bitsandbytes, computing as they do: each use dequantizes the whole weight for a moment."""
    from bitsandbytes.nn.modules import Linear4bit
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    class Dequantized(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(weight)
            return x @ torch.empty(weight.shape, dtype=x.dtype, device=x.device).t()

        @staticmethod
        def backward(ctx, gradient):
            (weight,) = ctx.saved_tensors
            return gradient @ torch.empty(weight.shape, dtype=gradient.dtype, device=gradient.device), None

    class MetaLinear4bit(Linear4bit):
        def forward(self, x):
            return Dequantized.apply(x, self.weight)

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config.bnb_4bit_compute_dtype = dtype
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=config)
    for module in model.modules():
        if type(module) is Linear4bit:
            module.__class__ = MetaLinear4bit
    model.is_loaded_in_4bit = True  # PEFT asks for it
    return model


def profile(model: Any, padded: bool, autocast: Any = None) -> activations.ActivationProfile:
    """The profile of a model on the meta device.

    Three functions are patched: torch's linear, because torch.autocast knows no meta device; its attention, because
    torch would choose one there that keeps T x T products; and transformers' search for packed documents, which reads
    values.

    Args:
        padded: batches have padding, so that attention gets a mask.
        autocast: the dtype in which a GPU computes products, whatever dtype weights have; there the loss also keeps the
            gradient of its logits beside them. None: no GPU.
    """
    from transformers import masking_utils

    rows, linear = 2, functional.linear
    for module in model.modules():
        vars(module).pop("hf_device_map", None)  # PEFT would look for each layer in it
        if autocast is not None and "cast_input_dtype_enabled" in vars(module):
            module.cast_input_dtype_enabled = False  # PEFT leaves that to autocast, where there is one
    prompts = hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning

    def step(width: int, few: bool) -> None:
        batch: dict[str, Any] = {"input_ids": torch.zeros((rows, width), dtype=torch.long, device="meta")}
        if padded and not prompts:  # whether a mask of two dimensions hides anything cannot be asked without values
            batch["attention_mask"] = torch.ones((rows, 1, width, width), dtype=torch.bool, device="meta")
        logits_BTV = model(**batch, use_cache=False, logits_to_keep=activations.LABELS).logits
        logits_BTV.float().sum().backward()

    def autocast_linear(x, weight, bias=None):
        return linear(x.to(autocast), weight.to(autocast), None if bias is None else bias.to(autocast))

    vocabulary = model.get_output_embeddings().weight.shape[0]
    with (
        patch.object(functional, "linear", linear if autocast is None else autocast_linear),
        patch.object(functional, "scaled_dot_product_attention", _fused_attention),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None),
    ):
        label_bytes = 4 * vocabulary * (1 if autocast is None else 2)
        return activations.profile(model, step, rows, label_bytes)


def _fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fused attention, which keeps no T x T products."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast does
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def truncated_copy(name: str, layers: int, folder: Path) -> None:
    """Save a model of fewer layers with random weights, and the tokenizer, in a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = models.resolve(name, weights=False)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    text = config.get_text_config()
    for field_name, value in vars(text).items():  # some configs have a value for each layer
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, field_name, value[:layers])
    text.num_hidden_layers = layers
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path, trust_remote_code=False).save_pretrained(folder)
