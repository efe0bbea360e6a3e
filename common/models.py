"""Models and tokenizers: loaded through Unsloth, in the precision that suits the device."""

import os
from pathlib import Path
from typing import Any

from common import mixtures, module_kinds, parameter_table, tokenizers
from common.cli import UserError
from common.pocket import FOLDER as POCKET

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BUNDLED = {"pocket": "model", "pocket_teacher": "teacher"}  # name of --model -> its folder


def locate(name: str) -> str:
    """The folder or Hub name behind `--model`, checked before anything heavy is imported.

    Raises:
        UserError: a local folder lacks config, weights or tokenizer; or the name is neither folder nor Hub name.
    """
    if name in BUNDLED:
        return str(POCKET / BUNDLED[name])
    path = Path(name)
    if not path.exists():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(f"--model {name}: no such folder; name a folder, a Hub model like org/name, or pocket")
        return name
    if not path.is_dir():
        raise UserError(f"--model {name} is a file; name the folder that holds config.json and the weights")
    missing = []
    if not (path / "config.json").exists():
        adapter = " (it holds an adapter: give its base as --model)" if (path / "adapter_config.json").exists() else ""
        missing.append(f"config.json{adapter}")
    if not any((path / file).exists() for file in WEIGHTS):
        missing.append("weights (model.safetensors)")
    if not any((path / file).exists() for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise UserError(f"--model {name}: the folder has no " + " and no ".join(missing))
    return str(path)


def dtype() -> Any:
    """torch dtype of weights and compute: bfloat16 on a GPU that has it, float16 on an older one, float32 on a CPU.

    A CPU gets float32 even where it has bfloat16: weights that train in pure bfloat16 lose small updates.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def precision() -> dict[str, bool]:
    """The two SFTConfig fields that go with `dtype`."""
    name = str(dtype()).removeprefix("torch.")
    return {"bf16": name == "bfloat16", "fp16": name == "float16"}


def mixed_precision() -> str:
    """The same for accelerate: bf16, fp16 (with a loss scaler) or no."""
    return {"bfloat16": "bf16", "float16": "fp16"}.get(str(dtype()).removeprefix("torch."), "no")


def checkpointing() -> str | bool:
    """Unsloth's activation checkpointing on a GPU, where memory is short; none on a CPU, where time is."""
    import torch

    return "unsloth" if torch.cuda.is_available() else False


def use_all_cores() -> None:
    """Undo the one thread that `accelerate launch` sets for a single process on a CPU (OMP_NUM_THREADS=1)."""
    import torch

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and not torch.cuda.is_available() and "ACCELERATE_MIXED_PRECISION" in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def device() -> str:
    """The device in words, for prints and reports."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads"


def load(name: str, max_length: int, four_bit: bool = False, full: bool = False) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, loaded by Unsloth.

    Args:
        name: what `locate` takes.
        max_length: tokens that the model must take in.
        four_bit: weights in NF4 with double quantisation; compute stays in `dtype`.
        full: all weights are to train.

    Raises:
        UserError: the model cannot be loaded, has no end token, or takes fewer tokens than max_length.
    """
    from unsloth import FastLanguageModel  # noqa: I001  first: it patches transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    use_all_cores()
    place = locate(name)
    try:
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=place,
            max_seq_length=max_length,
            dtype=dtype(),
            load_in_4bit=four_bit,
            full_finetuning=full,
            use_gradient_checkpointing=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--model {name} cannot be loaded: {error}") from error
    tokenizers.check(tokenizer, f"--model {name}")
    for line in tokenizers.problems(tokenizer, Path(place)):
        print(f"tokenizer of {name}: {line}")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < max_length:
        raise UserError(f"--max_length {max_length}: {name} takes {limit} tokens at most")
    mixtures.ask_for_router_logits(model, False)
    for part, parameter in model.named_parameters():
        if full and module_kinds.beside_text(part):
            parameter.requires_grad_(False)  # the data are texts: it would be saved as trained
    if four_bit:
        parameter_table.check_four_bit(model, name)
    return model, tokenizer


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Save a base so that plain transformers computes with it what it computes here.

    On a CPU, 4-bit weights are written as the float32 values they stand for: bitsandbytes' own kernel is in bfloat16.
    """
    import torch

    if getattr(model, "is_loaded_in_4bit", False) and model.device.type == "cpu":
        from bitsandbytes.functional import dequantize_4bit
        from transformers import AutoModelForCausalLM
        from transformers.pytorch_utils import Conv1D

        values = model.config.to_dict()
        values.pop("quantization_config")
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(values), dtype=dtype())
        # The state holds each quantised weight with the parts of its quantisation, which have longer names.
        weights = {name: value for name, value in model.state_dict().items() if ".weight." not in name}
        for name, weight in model.named_parameters():
            if hasattr(weight, "quant_state"):
                weights[name] = dequantize_4bit(weight.data, weight.quant_state).to(dtype())
                if isinstance(plain.get_submodule(name.removesuffix(".weight")), Conv1D):  # as GPT-2 has it
                    weights[name] = weights[name].T.contiguous()
        plain.load_state_dict(weights, assign=True)
        plain.tie_weights()
        model = plain
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_in_float32(model: Any) -> None:
    """Weights that train in float32, whatever computes: TRL makes the adapters of a 4-bit base bfloat16, where small
    updates are lost and a checkpoint does not hold what the optimiser would go on from."""
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


def world_size() -> int:
    """Processes in this run. Refuses where more were asked for than there are: some launchers start one, silently."""
    import torch

    asked = int(os.environ.get("WORLD_SIZE", "1"))
    found = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if asked != found:
        raise UserError(f"{asked} processes were asked for and {found} run; use torchrun --nproc_per_node {asked}")
    return found


def load_plain(name: str) -> Any:
    """A causal language model to answer with, on this machine's device, by transformers alone.

    Raises:
        UserError: it is not there or cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(locate(name), dtype=dtype())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--model {name} cannot be loaded: {error}") from error
    mixtures.ask_for_router_logits(model, False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
