"""Models without weights, for planning: a recipe runs as it is up to its forecast, with a model on the meta device."""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import footprint
from common.cli import UserError
from common.rehearsal import Actor
from common.workload import Workload, of_loader, of_trainer


class Planned(Exception):
    """A recipe has come to its forecast: what it would have trained, on which batches."""

    def __init__(self, actor: Actor, workload: Workload, optimizer: str, recomputes: bool):
        super().__init__("planned")
        self.actor, self.workload, self.optimizer, self.recomputes = actor, workload, optimizer, recomputes


@dataclass
class Target:
    """The device that is planned for.

    Args:
        gpu: a GPU, whose recipes train in bfloat16 and recompute activations; else a CPU, in float32.
        four_bit: load the base in 4 bits or not, whatever the recipe says; None: as it says.
    """

    gpu: bool
    four_bit: bool | None = None

    @property
    def dtype(self) -> Any:
        import torch

        return torch.bfloat16 if self.gpu else torch.float32


@contextmanager
def planned(target: Target) -> Iterator[None]:
    """Inside, recipes get models without weights, and their forecast raises Planned."""
    from common import checks, forecast, models, trainers

    asked: dict[str, str] = {}

    def rehearse(trainer: Any, find_batch_size: bool = False) -> None:
        recomputes = trainer.args.gradient_checkpointing or trainer.model.is_gradient_checkpointing
        raise Planned(trainers.actor(trainer), of_trainer(trainer), asked["optim"], recomputes)

    def rehearse_loop(actor: Actor, loader: Any, optimizer: Any, max_steps: int, evaluated: int = 0) -> None:
        workload = of_loader(loader, loader.dataset, actor.accumulation, 0, max_steps)
        raise Planned(actor, workload, forecast.name(optimizer), actor.model.is_gradient_checkpointing)

    def load(name: str, max_length: int, four_bit: bool = False, full: bool = False) -> tuple[Any, Any]:
        stack.enter_context(_first_optimizer(asked))
        wanted = four_bit if target.four_bit is None else target.four_bit
        return shape(name, target.dtype, wanted, full, max_length)

    with ExitStack() as stack:
        for module, name, stand_in in (
            (models, "WEIGHTS", (*models.WEIGHTS, "config.json")),  # a config is enough
            (models, "load", load),
            (models, "dtype", lambda: target.dtype),
            (models, "precision", lambda: {"bf16": False, "fp16": False}),  # there is nothing to compute
            (models, "mixed_precision", lambda: "no"),
            (models, "checkpointing", lambda: "unsloth" if target.gpu else False),
            (checks, "isolation", lambda trainer: 0.0),
            (forecast, "rehearse", rehearse),
            (forecast, "rehearse_loop", rehearse_loop),
        ):
            stack.enter_context(_replaced(module, name, stand_in))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _first_optimizer(asked: dict[str, str]) -> Iterator[None]:
    """The optimiser that a recipe asks for: without a GPU, Unsloth puts another in the place of some."""
    from transformers import TrainingArguments

    def note(self: Any, name: str, value: Any) -> None:
        if name == "optim":
            asked.setdefault("optim", str(getattr(value, "value", value)))
        object.__setattr__(self, name, value)

    with _replaced(TrainingArguments, "__setattr__", note):
        yield


def located(name: str) -> str:
    """What models.locate says of a model, of which the weights may be missing."""
    from common import models

    with _replaced(models, "WEIGHTS", (*models.WEIGHTS, "config.json")):
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


def moments(model: Any, padded: bool, gpu: bool) -> footprint.Moments:
    """What a step of a model on the meta device holds.

    Args:
        padded: batches have padding, so that attention gets a mask.
        gpu: the loss keeps the gradient of its logits beside them.
    """
    import torch
    from transformers import masking_utils

    rows = 2
    for module in model.modules():
        vars(module).pop("hf_device_map", None)  # PEFT would look for each layer in it
    prompts = hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning

    def step(width: int, few: bool) -> None:
        given: dict[str, Any] = {"input_ids": torch.zeros((rows, width), dtype=torch.long, device="meta")}
        if padded and not prompts:  # whether a mask of two dimensions hides anything cannot be asked of a shape
            given["attention_mask"] = torch.ones((rows, 1, width, width), dtype=torch.bool, device="meta")
        logits_BTV = model(**given, use_cache=False, logits_to_keep=footprint.LABELS).logits
        logits_BTV.float().sum().backward()

    vocabulary = model.get_output_embeddings().weight.shape[0]
    with (
        _replaced(torch.nn.functional, "scaled_dot_product_attention", _fused),
        _replaced(masking_utils, "find_packed_sequence_indices", lambda positions: None),  # it asks for values
    ):
        return footprint.moments(model, step, rows, label_bytes=4 * vocabulary * (2 if gpu else 1))


def _fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fused attention, which keeps no T x T products; on the meta device torch would choose one that does."""
    import torch

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


def recipe(file: Path) -> Any:
    """The module of a recipe's file, which need not be on the path."""
    import sys

    spec = importlib.util.spec_from_file_location(f"planned_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and help texts look for it there
    spec.loader.exec_module(module)
    return module
