"""Models and tokenizers: loaded through Unsloth or transformers, in the precision that suits the device."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunebook.common import local_models
from tunebook.common.data import hub
from tunebook.common.errors import UserError, cannot_load
from tunebook.common.models import complete_weights, device, generation_config, module_kinds, moe, parameter_table
from tunebook.common.process import progress
from tunebook.common.tokens import tokenization

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve(name: str, max_length: int | None = None, weights: bool = True) -> str:
    """The folder or Hub name behind `--model`, checked before anything heavy is imported.

    Args:
        max_length: tokens that the model must take in; looked up in a local folder's config.
        weights: they must be there. A plan needs none.

    Raises:
        UserError: a local folder lacks config, weights or tokenizer; or the name is neither folder nor Hub name; or
            the model takes fewer tokens than max_length.
    """
    if place := local_models.folder(name):
        _check_length(name, json.loads((place / "config.json").read_text(encoding="utf-8")), max_length)
        return str(place)
    path = Path(name)
    if not name or not path.exists():  # no name is not the folder one is in: a variable of the shell was empty
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(
                f"--model {name}: no such folder; name a folder, a Hub model like org/name, a .gguf file, smollm2 or "
                "pocket"
            )
        hub.require(name, "--model")
        return name
    if not path.is_dir():
        raise UserError(f"--model {name} is a file; name the folder that holds config.json and the weights")
    if (path / "bottleneck.json").exists():  # a checkpoint has a config.json, too, but none of the base's weights
        raise UserError(f"--model {name}: the folder holds an adapter alone; give it as --adapter, its base as --model")
    missing = []
    if not (path / "config.json").exists():
        adapter = (
            ""
            if not (path / "adapter_config.json").exists()
            else (
                " (it holds an adapter: give its base as --model, or what tunebook export --to merged makes of the two)"
            )
        )
        missing.append(f"config.json{adapter}")
    if weights and not device.planned() and not any((path / file).exists() for file in WEIGHTS):
        missing.append("weights (model.safetensors)")
    if not any((path / file).exists() for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        missing.append("tokenizer (tokenizer.json)")
    if missing:
        raise UserError(f"--model {name}: the folder has no " + ", no ".join(missing))
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"--model {name}: config.json holds no object; is it a model's?")
    _check_length(name, config, max_length)
    return str(path)


def _check_length(name: str, config: dict[str, Any], max_length: int | None) -> int | None:
    """The tokens that a model takes by its config, which must be at least max_length; None where it names no limit.

    Read before the model is loaded: Unsloth stretches the positions of a model to what is asked for (linear RoPE
    scaling), after which nothing tells that another model trains than the one that is served.
    """
    config = config.get("text_config") or config
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if max_length is not None and isinstance(limit, int) and limit < max_length:
        raise UserError(f"--max_length {max_length}: {name} takes {limit} tokens at most")
    return limit if isinstance(limit, int) else None


def load(name: str, max_length: int, four_bit: bool = False, full: bool = False, fast: bool = True) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, on this machine's device; in a plan, without weights.

    Args:
        name: as `resolve`.
        four_bit: weights in NF4 with double quantization; compute stays in the device's dtype.
        full: all weights are to train.
        fast: load through Unsloth, for its kernels. Not for methods that act where its forwards do not look (virtual
            tokens, hooks on layers): on a GPU it replaces PEFT's forward, for all models of the process, by one that
            passes virtual tokens over, and it decodes without calling the layers.

    Raises:
        UserError: the model cannot be loaded, has no end token, or takes fewer tokens than max_length.
    """
    import unsloth  # noqa: F401  first: it patches transformers

    if (plan := device.planned()) and plan.loader:
        return plan.loader(name, max_length, four_bit, full)
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    device.set_threads()
    place = resolve(name)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        limit = _check_length(name, config.to_dict(), max_length)
        if fast:
            with progress.start("loading the model"), complete_weights.required(f"--model {name}"):
                model, tokenizer = _load_by_unsloth(place, limit or max_length, four_bit, full)
        else:
            model = load_plain(name, four_bit)
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # of many kinds, for a file that is damaged
        raise cannot_load(f"--model {name}", error) from error
    tokenization.check(tokenizer, f"--model {name}")
    for line in tokenization.problems(tokenizer, Path(place)):
        print(f"tokenizer of {name}: {line}")
    for line in tokenization.bind(tokenizer, model):
        print(f"tokenizer of {name}: {line}")
    generation_config.make_savable(model, name)
    moe.ask_for_router_logits(model, False)
    for part, parameter in model.named_parameters():
        if full and module_kinds.beside_text(part):
            parameter.requires_grad_(False)  # the data are texts: it would be saved as trained
    if four_bit:
        complete_weights.check_shapes(model, f"--model {name}")
        parameter_table.check_four_bit(model, name)
    return model, tokenizer


def _load_by_unsloth(place: str, limit: int, four_bit: bool, full: bool) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    # max_seq_length is the model's own limit, not --max_length: Unsloth cuts every input to it, those of lm-eval and of
    # a long prompt, too. It costs a table of sines; caches grow as they are needed.
    return FastLanguageModel.from_pretrained(
        model_name=place,
        max_seq_length=limit,
        dtype=device.current().dtype,
        load_in_4bit=four_bit,
        full_finetuning=full,
        use_gradient_checkpointing=False,
        trust_remote_code=False,
        use_exact_model_name=True,  # else a 4-bit Hub name is one that Unsloth has quantized in another way
    )


@contextmanager
def preserve_modes(model: Any) -> Iterator[None]:
    """Training mode and activation checkpointing of every module are afterwards what they were.

    Unsloth's `generate` turns checkpointing off and, for a model in evaluation mode, leaves it off: the rest of a run
    would keep all its activations.
    """
    modes = [(module, module.training) for module in model.modules()]
    modules = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    checkpoints = [(module, module.gradient_checkpointing) for module in modules]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, on in checkpoints:
            module.gradient_checkpointing = on


def unwrap(model: Any) -> Any:
    """The model without the autocast that accelerate has put around its forward: it computes as it will be served."""
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
    return model


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Save a base so that plain transformers computes with it what it computes here.

    On a CPU, 4-bit weights are written as the float32 values they stand for: bitsandbytes' own kernel is in bfloat16.
    """
    import torch

    if getattr(model, "is_loaded_in_4bit", False) and model.device.type == "cpu":
        from bitsandbytes.functional import dequantize_4bit
        from transformers import AutoModelForCausalLM
        from transformers.pytorch_utils import Conv1D

        dtype, values = device.current().dtype, model.config.to_dict()
        values.pop("quantization_config")
        with torch.device("meta"):
            config = type(model.config).from_dict(values)
            plain = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        # The state holds each quantized weight with the parts of its quantization, which have longer names.
        weights = {name: value for name, value in model.state_dict().items() if ".weight." not in name}
        for name, weight in model.named_parameters():
            if hasattr(weight, "quant_state"):
                weights[name] = dequantize_4bit(weight.data, weight.quant_state).to(dtype)
                if isinstance(plain.get_submodule(name.removesuffix(".weight")), Conv1D):  # as GPT-2 has it
                    weights[name] = weights[name].T.contiguous()
        plain.load_state_dict(weights, assign=True)
        plain.tie_weights()
        model = plain
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_in_float32(model: Any) -> None:
    """Weights that train in float32, whatever computes: TRL makes the adapters of a 4-bit base bfloat16, where small
    updates are lost and a checkpoint does not hold what the optimizer would resume from."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def decoder_layers(model: Any) -> Any:
    """The torch.nn.ModuleList of a model's decoder layers, whatever it is called there.

    Raises:
        UserError: no list of modules in the model is as long as its config says it has layers.
    """
    import torch

    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"no list of {count} decoder layers in {type(model).__name__}; name the layers in the recipe")


def parameters(model: Any) -> tuple[int, int]:
    """Trainable and all parameters. A 4-bit weight counts as the values it stands for, not as its packed bytes."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def load_plain(name: str, four_bit: bool = False) -> Any:
    """A causal language model on this machine's device, by transformers alone; `four_bit` as in `load`.

    Raises:
        UserError: it is not there or cannot be loaded.
    """
    with progress.start("loading the model"):  # and what it takes to do so: a command's first import of torch
        return _load_plain(name, four_bit)


def _load_plain(name: str, four_bit: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = device.current().dtype
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    kind, what = "cuda" if torch.cuda.is_available() else "cpu", f"--model {name}{' in 4 bits' * four_bit}"
    # bitsandbytes quantizes where it loads
    given = dict(quantization_config=quantization, device_map={"": kind}) if four_bit else {}
    try:
        with complete_weights.required(f"--model {name}"):
            place = resolve(name)
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, trust_remote_code=False, **given)
    except UserError:
        raise
    except Exception as error:
        raise cannot_load(what, error) from error
    if four_bit:
        complete_weights.check_shapes(model, f"--model {name}")
    generation_config.make_savable(model, name)
    moe.ask_for_router_logits(model, False)
    return (model if four_bit else model.to(kind)).eval()
