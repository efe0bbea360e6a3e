"""The weights of the trained model in float32, one at a time: those of its base, and what training has added.

PEFT itself merges each layer, alone in a model of this one layer: every kind of LoRA is what PEFT makes of it, and
memory is that of one layer.
"""

import copy
import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.export.base_weights import BaseWeights

PREFIX, ADAPTER = "base_model.model.", "adapter_model.safetensors"
# LoRA starts of which the base is known afterwards: it is as it was, or PEFT computes the same change again.
STARTS = {"true", "false", "gaussian", "eva", "orthogonal", "pissa", "olora"}
REFUSED = {
    "layer_replication": "layers that stand in the model several times",
    "alora_invocation_tokens": "an adapter that acts only after its invocation tokens",
    "megatron_config": "an adapter of a Megatron model",
    "arrow_config": "a router over several adapters",
    "use_bdlora": "block-diagonal LoRA",
}


class FineTunedWeights:
    """Of a run that trained the model itself.

    Attributes:
        base: what it started from, where that is at hand.
        files: what is read from the disk, with what is no weight.
        touched: names of the weights that training may have changed.
        shapes: of all weights. tied: as BaseWeights.tied, after training.
        whole: as BaseWeights.
    """

    def __init__(self, base: BaseWeights | None, folder: Path):
        self.files = BaseWeights(folder)
        self.base, self.tied, self.config = base, self.files.tied, self.files.config
        self.whole, self.skeleton = self.files.whole, self.files.model
        self.touched = [name for name in self.files.parameters if name not in self.tied]
        self.shapes = self.files.parameters

    def read(self, name: str) -> Any:
        """A weight in float32."""
        return self.files.read(name)


class AdaptedWeights:
    """Of a LoRA adapter on its base.

    Raises:
        UserError: the adapter is of a kind that cannot be merged, is empty, or is not for this base.
    """

    def __init__(self, base: BaseWeights, adapter: Path):
        from safetensors import safe_open

        self.base, self.files, self.config = base, base, dict(base.config)
        self.skeleton, self.whole = base.model, base.whole
        self.lora = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        check(self.lora, adapter)
        self._file = adapter / ADAPTER
        if not self._file.exists():
            raise UserError(f"{adapter}: no {ADAPTER}; save the adapter again, as safetensors")
        self._layers: dict[str, list[str]] = defaultdict(list)  # module -> keys of its LoRA
        self._replaced: dict[str, str] = {}  # weight -> key of what stands in its place
        self._rows: dict[str, str] = {}  # embeddings -> key of rows that were trained
        self.shapes = dict(base.parameters)
        with safe_open(self._file, "pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no dict
                self._sort(key, file)
        self.touched = list(dict.fromkeys([*self._of_layers(), *self._replaced, *self._rows]))
        self.tied = {head: embedding for head, embedding in base.tied.items() if self._shared(head, embedding)}
        if not self.touched:
            raise UserError(f"{adapter}: the adapter is empty: it has no weights, and serving it would serve the base")

    def _sort(self, key: str, file: Any) -> None:
        name = key.removeprefix(PREFIX).replace(".modules_to_save", "")
        if ".lora_" in name:
            module = name.partition(".lora_")[0]
            while module.endswith(".base_layer"):
                module = module.removesuffix(".base_layer")
            self._layers[module].append(key)
            return
        if "trainable_tokens_" in name:
            self._rows[name.partition(".token_adapter")[0].partition(".trainable_tokens")[0] + ".weight"] = key
            return
        name, shape = name.replace(".base_layer", ""), tuple(file.get_slice(key).get_shape())
        known = self.shapes.get(name)
        if name in self.base.tied and known is None:
            known = self.shapes[self.base.tied[name]]
        if known is None or known[1:] != shape[1:]:
            raise UserError(
                f"{self._file.parent}: its {name} is not one of {self.base.folder}; name its base as --model"
            )
        self._replaced[name] = key
        self.shapes[name] = shape

    def _of_layers(self) -> list[str]:
        found = []
        for module in self._layers:
            try:
                layer = self.skeleton.get_submodule(module)
            except AttributeError:
                raise UserError(
                    f"{self._file.parent}: it adapts {module}, which {self.base.folder} does not have; "
                    "it was trained on another base: name that as --model"
                ) from None
            wanted = self.lora.get("target_parameters") or []
            own = [name for name, _ in layer.named_parameters(recurse=False)]
            whole = f"{module}."
            chosen = [name for name in own if any((whole + name).endswith(one) for one in wanted)]
            bias = ["bias"] if "bias" in own and self.lora.get("lora_bias") else []
            found += [whole + name for name in chosen or ["weight", *bias]]
        return found

    def _shared(self, head: str, embedding: str) -> bool:
        """Whether the output layer is still the embeddings: what PEFT does to one, it does to the other only where it
        was asked to, where rows of both train, or where all of both was saved because tokens were added."""
        changed = {name for name in (head, embedding) if name.removesuffix(".weight") in self._layers}
        saved = {name.rpartition(".")[2] for name in self.lora.get("modules_to_save") or []}
        changed |= {name for name in (head, embedding) if name.split(".")[-2] in saved}
        return not changed or bool(self.lora.get("ensure_weight_tying"))

    def read(self, name: str) -> Any:
        """A weight in float32."""
        if name in self.tied:
            name = self.tied[name]
        module = name.rpartition(".")[0]
        if name in self.touched and module in self._layers and name not in self._replaced:
            return self._merged(module)[name]
        if name in self._replaced:
            return self._merged(module)[name] if module in self._layers else self._key(self._replaced[name]).float()
        value = self.base.read(name)
        if name in self._rows:
            value = value.clone()
            places = self.lora.get("trainable_token_indices")
            if isinstance(places, dict):
                places = next(rows for part, rows in places.items() if module.endswith(part))
            value[places] = self._key(self._rows[name]).float()
        return value

    def _key(self, key: str) -> Any:
        from safetensors import safe_open

        with safe_open(self._file, "pt") as file:
            return file.get_tensor(key).clone()

    def scale(self, module: str) -> float:
        """By which PEFT multiplies a layer's two matrices."""
        return float(self._alone(module)[0].get_submodule(module).scaling["default"])

    @lru_cache(maxsize=1)  # noqa: B019  a layer's weights follow one another, and there is one such object
    def _merged(self, module: str) -> dict[str, Any]:
        """The weights of a module with its LoRA merged in."""
        root, lora = self._alone(module)
        try:
            merged = lora.merge_and_unload(safe_merge=True).get_submodule(module)
        except ValueError as error:  # not a number
            raise CheckFailed(f"{self._file.parent}: {module}: {error}") from error
        del root
        return {f"{module}.{name}": value.detach().float() for name, value in merged.named_parameters(recurse=False)}

    def _alone(self, module: str) -> tuple[Any, Any]:
        """A model of one module with its LoRA on it, and PEFT's object around it."""
        import torch
        from peft import LoraConfig, LoraModel, set_peft_model_state_dict

        layer = copy.deepcopy(self.skeleton.get_submodule(module))
        for name, _ in list(layer.named_parameters(recurse=False)):
            whole = f"{module}.{name}"
            value = self._key(self._replaced[whole]).float() if whole in self._replaced else self.base.read(whole)
            layer.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        _resize(layer)
        root = parent = torch.nn.Module()
        *above, last = module.split(".")
        for part in above:
            child = torch.nn.Module()
            parent.add_module(part, child)
            parent = child
        parent.add_module(last, layer)
        state = {key.removeprefix(PREFIX): self._key(key) for key in self._layers[module]}
        try:
            lora = LoraModel(root, LoraConfig(**self._config_for(module, layer)), "default")
            said = set_peft_model_state_dict(root, state)
            if said.unexpected_keys:
                raise RuntimeError(f"{said.unexpected_keys[0]} has no place")
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{self._file.parent}: {module} does not fit {self.base.folder}: {first}") from error
        return root, lora

    def _config_for(self, module: str, layer: Any) -> dict[str, Any]:
        """The adapter's config, of one module."""
        import dataclasses

        from peft import LoraConfig

        known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
        config = {name: value for name, value in self.lora.items() if name in known}
        wanted = self.lora.get("target_parameters") or []
        own = [f"{module}.{name}" for name, _ in layer.named_parameters(recurse=False)]
        inside = [one for one in wanted if any(name.endswith(one) for name in own)]
        alone = dict(
            target_modules=[] if inside else [module],
            target_parameters=inside or None,
            bias="none",
            inference_mode=True,
            ensure_weight_tying=False,
        )
        none = (
            "modules_to_save",
            "trainable_token_indices",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
        )
        config = {**config, **dict.fromkeys(none), **alone}
        if str(config.get("init_lora_weights")).lower() in ("eva", "orthogonal"):
            config["init_lora_weights"] = True
            config["eva_config"] = None
        return config


def _resize(layer: Any) -> None:
    """The sizes that a layer names for itself, where its weight has more rows than it was made for."""
    rows = layer.weight.shape[0] if hasattr(layer, "weight") else None
    for name in ("num_embeddings", "out_features"):
        if rows is not None and hasattr(layer, name):
            setattr(layer, name, rows)


def check(lora: dict[str, Any], adapter: Path) -> None:
    """Refuse by name what cannot be merged exactly.

    Raises:
        UserError: it is one of those.
    """
    kind = lora.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{adapter}: {kind} is not merged here, only LoRA; `--to adapter` exports it for PEFT as it is")
    for name, what in REFUSED.items():
        if lora.get(name):
            raise UserError(f"{adapter}: {name}: {what} cannot be merged; `--to adapter` exports it for PEFT as it is")
    start = str(lora.get("init_lora_weights", True)).lower()
    if start not in STARTS:
        raise UserError(
            f"{adapter}: init_lora_weights={start} changes the base before training in a way that cannot be computed "
            "again; convert it to a plain LoRA where it was trained: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
