"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751) on a frozen causal language model of any usual shape.

Each is a down-projection, a non-linearity, an up-projection and a residual: h + up(act(down(h))). One follows the
attention and one the MLP of every decoder layer, on the sub-layer's output, before it joins the residual stream. That
is Houlsby's place; his BERT then normalizes the sum, where a pre-norm model (Llama, Qwen, GPT-2) passes it on as it is,
and Gemma 2 and 3 normalize the adapter's output first. `up` begins as zero, so that a fresh adapter changes no bit.

They are hooks on the base's own modules: its class, and the names and values of its weights, stay what they were. They
cannot be merged into the base: a non-linearity cannot be folded into a weight.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tunebook.common import files
from tunebook.common.errors import UserError, nearest
from tunebook.common.models.bottleneck import ACTIVATIONS, ATTENTION, MLP, Attached, Bottleneck, parts

CONFIG, WEIGHTS, VERSION = "bottleneck.json", "bottleneck.safetensors", 1
FIELDS = ("bottleneck", "activation", "dropout", "layers", "attention", "mlp")  # arguments of `attach` that are kept


def attach(
    model: Any,
    name: str,
    bottleneck: int = 64,
    activation: str = "gelu",
    dropout: float = 0.0,
    layers: Sequence[int] | None = None,
    attention: str | Sequence[str] = ATTENTION,
    mlp: str | Sequence[str] = MLP,
    seed: int = 0,
) -> list[torch.nn.Parameter]:
    """Put a new adapter on a model, in float32 whatever the base is; it is what trains and what is used.

    2 · layers · (2 · width · bottleneck + bottleneck + width) weights. While there are adapters, a Trainer's
    checkpoints and `save_pretrained` hold them alone: the base must stay frozen.

    Args:
        bottleneck: width of the inner layer.
        activation: gelu, relu or silu.
        dropout: share of the inner values that is dropped while training.
        layers: numbers of the decoder layers that get one, from 0; None: all.
        attention, mlp: names of the two parts of a decoder layer; the first that is there.
        seed: of the down-projections; the global random state is not touched.

    Returns:
        The parameters that train.

    Raises:
        UserError: the name is taken or unfit, a value is out of range, or a layer has no such part.
    """
    config = {"bottleneck": bottleneck, "activation": activation, "dropout": dropout, "layers": layers}
    _add(model, name, config | {"attention": attention, "mlp": mlp}, seed)
    train(model, name)
    return list(tensors(model, name).values())


def _add(model: Any, name: str, config: dict[str, Any], seed: int = 0) -> None:
    """Put a new, frozen adapter on the model; `config` holds the arguments of `attach`."""
    pairs = parts(model, config["attention"], config["mlp"])
    layers = config["layers"]
    config = config | {"layers": list(range(len(pairs))) if layers is None else sorted(set(layers))}
    _check(name, config, names(model), len(pairs))
    if not names(model):
        model.bottlenecks = Attached(model)
    model.bottlenecks.configs[name] = config
    shape = {field: config[field] for field in ("bottleneck", "activation", "dropout")}
    width, generator = model.config.get_text_config().hidden_size, torch.Generator().manual_seed(seed)
    for part in (part for number in config["layers"] for part in pairs[number]):
        adapter = Bottleneck(width, **shape, generator=generator).requires_grad_(False)
        adapter.to(next(part.parameters()).device).train(part.training)
        model.bottlenecks.site(part).add(name, adapter)


def _check(name: str, config: dict[str, Any], taken: list[str], count: int) -> None:
    problems, layers, activation = [], config["layers"], config["activation"]
    if not re.fullmatch(r"[\w-]+", name):
        problems.append(f"name {name!r}: letters, digits, - and _")
    if name in taken:
        problems.append(f"name {name}: there is one already")
    if config["bottleneck"] < 1:
        problems.append(f"bottleneck {config['bottleneck']}: 1 or more")
    if activation not in ACTIVATIONS:
        problems.append(f"activation {activation}: {', '.join(ACTIVATIONS)}{nearest(activation, ACTIVATIONS)}")
    if not 0 <= config["dropout"] < 1:
        problems.append(f"dropout {config['dropout']}: from 0 to less than 1")
    if not layers or layers[0] < 0 or layers[-1] >= count:
        problems.append(f"layers {layers}: numbers from 0 to {count - 1}")
    if problems:
        raise UserError("adapters: " + "; ".join(problems))


def names(model: Any) -> list[str]:
    """The adapters that are on the model."""
    return list(model.bottlenecks.configs) if "bottlenecks" in vars(model) else []


def use(model: Any, name: str | None) -> None:
    """Compute with this adapter from now on; None: with the base alone. What trains stays as it is."""
    if name is not None and name not in names(model):
        raise UserError(f"adapters: there is no {name}; on the model: {', '.join(names(model)) or 'none'}")
    if names(model):
        model.bottlenecks.use(name)


def train(model: Any, name: str) -> None:
    """Use this adapter, and let it train alone."""
    use(model, name)
    model.requires_grad_(False)
    for weight in tensors(model, name).values():
        weight.requires_grad_(True)


def remove(model: Any) -> None:
    """Take all adapters off. The model is what it was before the first: weights, names, hooks, and what trains."""
    if names(model):
        model.bottlenecks.undo(model)
        del model.bottlenecks


def save(model: Any, folder: str | Path, name: str) -> None:
    """Write one adapter: its weights, and a config that says what they are, what base they are for, and their hash.

    Each file is replaced whole; the config comes last, and its hash tells whether the weights beside it are its own.
    """
    if name not in names(model):
        raise UserError(f"adapters: there is no {name} to save; on the model: {', '.join(names(model)) or 'none'}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: weight.detach().cpu().contiguous() for key, weight in tensors(model, name).items()}
    config = {"version": VERSION, "name": name, **model.bottlenecks.configs[name], "base": _base(model)}
    config["parameters"] = sum(weight.numel() for weight in weights.values())
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    config["sha256"] = hashlib.sha256(data).hexdigest()
    for file, content in ((WEIGHTS, data), (CONFIG, (json.dumps(config, indent=1) + "\n").encode())):
        with files.atomic(folder / file) as part:
            part.write_bytes(content)


def load(model: Any, folder: str | Path, name: str | None = None) -> str:
    """Put a saved adapter on the model, beside those it has, and use it. It is frozen; `train` lets it train.

    Args:
        name: what to call it; None: what it was saved as.

    Returns:
        Its name.

    Raises:
        UserError: no adapter of ours is there, its files do not belong together, or it is for another base.
    """
    config, weights = _read(Path(folder))
    base, mine = config["base"], _base(model)
    keys = [key for key in ("model_type", "layers", "width") if base[key] != mine[key]]
    if keys:
        other = ", ".join(f"{key} {base[key]} (here {mine[key]})" for key in keys)
        raise UserError(f"{folder}: this adapter is for another base, {base['name']}: {other}")
    if base["name"] != mine["name"]:
        print(f"{folder}: this adapter was trained on {base['name']}; the base here is {mine['name']}")
    called: str = config["name"] if name is None else name
    _add(model, called, {field: config[field] for field in FIELDS})
    for key, weight in tensors(model, called).items():
        weight.data.copy_(weights[key])
    use(model, called)
    return called


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not (folder / CONFIG).exists():
        peft = "; it holds an adapter of PEFT" if (folder / "adapter_config.json").exists() else ""
        raise UserError(f"{folder}: no {CONFIG} is there, so it is no bottleneck adapter{peft}")
    try:
        config, data = json.loads((folder / CONFIG).read_text(encoding="utf-8")), (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the adapter cannot be read: {error}") from None
    lacking = [field for field in ("version", "name", "base", "sha256", *FIELDS) if field not in config]
    if lacking or config["version"] != VERSION:
        what = f"lacks {', '.join(lacking)}" if lacking else f"is of version {config['version']}, not {VERSION}"
        raise UserError(f"{folder / CONFIG} {what}")
    if hashlib.sha256(data).hexdigest() != config["sha256"]:
        raise UserError(f"{folder}: {WEIGHTS} is not the file that {CONFIG} was written for; save the adapter again")
    weights, width, inner = safetensors.torch.load(data), config["base"]["width"], config["bottleneck"]
    shapes = {"down.weight": (inner, width), "down.bias": (inner,), "up.weight": (width, inner), "up.bias": (width,)}
    sites = [f"{number}.{place}" for number in config["layers"] for place in ("attention", "mlp")]
    expected = {f"{site}.{key}": shape for site in sites for key, shape in shapes.items()}
    if {key: tuple(weight.shape) for key, weight in weights.items()} != expected:
        raise UserError(f"{folder}: the weights have not the shapes that {CONFIG} gives; it has been changed")
    return config, weights


def _base(model: Any) -> dict[str, Any]:
    """What an adapter must find again in a base, and its name."""
    text = model.config.get_text_config()
    shape = {"model_type": text.model_type, "layers": text.num_hidden_layers, "width": text.hidden_size}
    return {"name": model.config._name_or_path, **shape}


def tensors(model: Any, name: str) -> dict[str, Any]:
    """An adapter's weights by layer and place, whatever the base calls its parts: 3.mlp.down.weight."""
    config = model.bottlenecks.configs[name]
    pairs = parts(model, config["attention"], config["mlp"])
    return {
        f"{number}.{place}.{key}": weight
        for number in config["layers"]
        for place, part in zip(("attention", "mlp"), pairs[number], strict=True)
        for key, weight in part.bottlenecks.get(name).named_parameters()
    }
