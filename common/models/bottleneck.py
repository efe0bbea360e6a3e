"""The parts of bottleneck adapters: the layers themselves, where they go in a model, and the hooks that call them."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tunebook.common.errors import UserError

ATTENTION = ("self_attn", "attn", "attention", "self_attention")  # names of the parts in the models of transformers
MLP = ("mlp", "feed_forward")
ACTIVATIONS = {"gelu": nn.functional.gelu, "relu": nn.functional.relu, "silu": nn.functional.silu}


class Bottleneck(nn.Module):
    """h + up(dropout(act(down(h)))) over the last axis; computes in the dtype of its weights, answers in that of h.

    `up` begins as zero and `down` as torch's own linear layers do (uniform within 1/sqrt(width)), from `generator`.
    """

    def __init__(self, width: int, bottleneck: int, activation: str, dropout: float, generator: torch.Generator):
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck, device="meta"), nn.Linear(bottleneck, width, device="meta")
        self.to_empty(device="cpu")  # made so, the layers draw nothing from the global random state
        self.act, self.dropout = ACTIVATIONS[activation], nn.Dropout(dropout)
        for weight in self.down.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
        for weight in self.up.parameters():
            nn.init.zeros_(weight)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        inner_BTK = self.act(self.down(hidden_BTD.to(self.down.weight.dtype)))
        return hidden_BTD + self.up(self.dropout(inner_BTK)).to(hidden_BTD.dtype)


class Site(nn.Module):
    """The adapters behind one attention or MLP, as children by name; it is that module's child `bottlenecks`."""

    active: str | None = None
    ran = False

    def add(self, name: str, adapter: Bottleneck) -> None:
        self.add_module(f"adapter_{name}", adapter)

    def get(self, name: str | None) -> Any:
        return self._modules.get(f"adapter_{name}")


class Attached:
    """The adapters that a model has, and what takes them off again: the model's attribute `bottlenecks`."""

    def __init__(self, model: Any):
        self.configs: dict[str, dict[str, Any]] = {}
        self.active: str | None = None
        self.parents: list[Any] = []  # the modules that have a Site
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.unsaved = model._keys_to_ignore_on_save
        model._keys_to_ignore_on_save = {*(self.unsaved or ()), *model.state_dict()}
        self.handles = [
            model.register_forward_pre_hook(_begin),
            model.register_forward_hook(_end),
            model.register_load_state_dict_post_hook(_base_is_here),
        ]
        model.requires_grad_(False)

    def site(self, parent: Any) -> Site:
        """The module's Site, made where it has none."""
        if "bottlenecks" not in parent._modules:
            parent.bottlenecks = Site()
            self.parents.append(parent)
            self.handles.append(parent.register_forward_hook(_apply))
        return parent.bottlenecks

    def use(self, name: str | None) -> None:
        self.active = name
        for parent in self.parents:
            parent.bottlenecks.active = name

    def undo(self, model: Any) -> None:
        for handle in self.handles:
            handle.remove()
        for parent in self.parents:
            del parent.bottlenecks
        model._keys_to_ignore_on_save = self.unsaved
        for weight in self.trained:
            weight.requires_grad_(True)


def _begin(model: Any, _args: Any) -> None:
    for parent in model.bottlenecks.parents:
        parent.bottlenecks.ran = False


def _apply(module: Any, _args: Any, output: Any) -> Any:
    site = module.bottlenecks
    site.ran = True
    adapter = site.get(site.active)
    if adapter is None:
        return output
    return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)


def _end(model: Any, _args: Any, _output: Any) -> None:
    skipped = sum(not parent.bottlenecks.ran for parent in model.bottlenecks.parents)
    if skipped and model.bottlenecks.active is not None:
        raise UserError(
            f"{skipped} adapters were passed by: this model computes its layers without calling them, as Unsloth's own "
            "decoding on a GPU does. Load the base through unsloth.FastModel or transformers"
        )


def _base_is_here(model: Any, incompatible: Any) -> None:
    """A checkpoint holds the adapters alone; the base's weights that it lacks are in the model already."""
    known = model._keys_to_ignore_on_save
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in known]


def parts(model: Any, attention: str | Sequence[str] = ATTENTION, mlp: str | Sequence[str] = MLP) -> list[list[Any]]:
    """[attention, MLP] of each decoder layer: its children under the first of these names that is there.

    Raises:
        UserError: there is no list of decoder layers, or one of them has no such part.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    stack = next((stack for stack in lists if len(stack) == count), None)
    if stack is None:
        raise UserError(f"adapters: {type(model).__name__} has no list of {count} layers to put them in")
    found: list[list[Any]] = []
    for number, layer in enumerate(stack):
        children = dict(layer.named_children())
        found.append([])
        for kind, names in (("attention", attention), ("mlp", mlp)):
            names = [names] if isinstance(names, str) else list(names)
            part = next((children[name] for name in names if name in children), None)
            if part is None:
                raise UserError(
                    f"adapters: layer {number} of {type(model).__name__}, a {type(layer).__name__}, has no {kind} "
                    f"under the names {', '.join(names)}; its parts are {', '.join(children)}. Say which it is: "
                    f'{kind}="NAME"'
                )
            if "residual" in inspect.signature(part.forward).parameters:
                raise UserError(f"adapters: {type(part).__name__} adds the residual itself; none can stand before that")
            found[-1].append(part)
    return found
