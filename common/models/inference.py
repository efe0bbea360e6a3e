"""A base model with adapters that are put on it one at a time, and the template that each was trained with."""

import gc
import json
import warnings
from pathlib import Path
from typing import Any

from tunebook.common.data import hub
from tunebook.common.errors import UserError, cannot_load, nearest
from tunebook.common.models import loading
from tunebook.common.tokens import templates, tokenization

PEFT, BOTTLENECK = "adapter_config.json", "bottleneck.json"  # files that tell the two kinds of adapters
NONE = "none"  # the name of no adapter


class InferenceModel:
    """A model to talk to, loaded by transformers: Unsloth is for training, and takes longer to start.

    Args:
        model: as models.resolve, or the folder of a run that holds `model/`; "": the base that the first adapter names,
            or pocket.
        adapters: folders or Hub names, each also as NAME=FOLDER; of a run's folder its `adapter/`. The first is used.
        template: the name of a template for all of them; "": the one that was saved with the adapter or model, else
            the tokenizer's own, else Alpaca.

    Attributes:
        current: the name of the adapter in use, or None.
        notes: for the user, a sentence each; cleared by whoever prints them.

    Raises:
        UserError: a folder is not there or holds something else, or an adapter is not for this base.
    """

    def __init__(self, model: str = "", adapters: list[str] | None = None, template: str = ""):
        self.folders = named(adapters or [])
        self.notes: list[str] = []
        self.name = model_folder(model) or next(map(base_of, self.folders.values()), "") or "pocket"
        self.place = loading.resolve(self.name)
        if self.place == loading.resolve("pocket"):  # a run's adapter names its folder
            self.name = "pocket"
        self._wanted, self.current, self._bottleneck = template, None, False
        self.tokenizer, problems = tokenization.load(self.place)
        self._own_tokenizer = self.tokenizer
        self.notes += [f"tokenizer of {self.name}: {problem}" for problem in problems]
        self.model: Any = loading.load_plain(self.name)
        self.notes += [f"tokenizer of {self.name}: {line}" for line in tokenization.bind(self.tokenizer, self.model)]
        self.template = self._template(Path(self.place))
        if self.folders:
            self.use(next(iter(self.folders)))

    def use(self, name: str | None) -> None:
        """Replace the adapter in use; None: the base alone, with the template as it is.

        Raises:
            UserError: there is no such adapter, or it does not fit; the base alone is in use then.
        """
        if name is not None and name not in self.folders:
            known = [*self.folders, NONE]
            raise UserError(f"--adapter {name}: there is {', '.join(known)}{nearest(name, known)}")
        self._unload()
        if name is None:
            return
        folder = self.folders[name]
        try:
            self.model = attach_adapter(self.model, folder).eval()
        except UserError:
            self.model = loading.load_plain(self.name)  # it may have been put on in part
            raise
        self._bottleneck = is_bottleneck(folder)
        self.current = name
        own = Path(folder) / "tokenizer_config.json"
        self.tokenizer = tokenization.load(folder)[0] if own.exists() else self._own_tokenizer
        tokenization.bind(self.tokenizer, self.model)
        self.template = self._template(Path(folder))
        base = base_of(folder)
        if base and base != self.name and Path(base).resolve() != Path(self.place).resolve():
            self.notes.append(f"adapter {name} was trained on {base}; here it is on {self.name}")

    def _unload(self) -> None:
        """Restore the base, bit for bit."""
        if self.current is None:
            return
        self.current = None
        if self._bottleneck:
            from tunebook.common.models import bottleneck_adapters  # loads torch

            bottleneck_adapters.remove(self.model)
            self._bottleneck = False
            return
        self.model = unload_adapter(self.model)
        if self.model is None:  # its adapter had changed weights of the base
            gc.collect()
            self.model = loading.load_plain(self.name)

    def _template(self, folder: Path) -> templates.AnyTemplate:
        if self._wanted:
            return templates.get(self._wanted, self.tokenizer)
        if (folder / templates.FILE).exists():
            return templates.load(folder)
        if isinstance(self.tokenizer.chat_template, str):
            return templates.get("tokenizer", self.tokenizer)
        self.notes.append(f"no {templates.FILE} and no chat template in {folder}: Alpaca's is used; --template NAME")
        return templates.ALPACA


def named(words: list[str]) -> dict[str, str]:
    """Adapters by name. A folder called adapter/ is named by the run that it is in.

    Raises:
        UserError: a folder does not exist or holds no adapter, or two have one name.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).exists():
            name, folder = "", word
        path = Path(folder)
        if path.exists():
            inside = path / "adapter"
            path = inside if not has_adapter(path) and inside.is_dir() else path
            if not has_adapter(path):
                names = f"neither {PEFT} nor {BOTTLENECK}, nor adapter/ with one"
                raise UserError(f"--adapter {folder}: the folder holds {names}")
            folder = str(path)
            path = path.resolve()
            name = name or (path.parent.name if path.name == "adapter" else path.name)
        elif folder.count("/") != 1 or folder.startswith((".", "/", "~")):
            raise UserError(f"--adapter {folder}: no such folder; name a run's folder, its adapter/, or a Hub name")
        name = name or folder.rpartition("/")[2]
        if name in found or name == NONE:
            raise UserError(f"--adapter: two would be called {name}; name them apart: --adapter NAME=FOLDER")
        found[name] = folder
    return found


def has_adapter(folder: Path) -> bool:
    return (folder / PEFT).exists() or (folder / BOTTLENECK).exists()


def is_bottleneck(folder: str) -> bool:
    return (Path(folder) / BOTTLENECK).exists()


def attach_adapter(model: Any, folder: str) -> Any:
    """The model with an adapter on it, of PEFT or of bottleneck_adapters.py.

    Raises:
        UserError: it cannot be read, or was made for another model.
    """
    if not is_bottleneck(folder):
        return load_adapter(model, folder)
    from tunebook.common.models import bottleneck_adapters  # loads torch

    bottleneck_adapters.load(model, folder)
    return model


def base_of(folder: str) -> str:
    """The model that an adapter was trained on, as its config names it; "" for an adapter on the Hub."""
    for file, keys in ((PEFT, ("base_model_name_or_path",)), (BOTTLENECK, ("base", "name"))):
        path = Path(folder) / file
        if path.exists():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                for key in keys:
                    value = value[key]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} cannot be read: {error!r}") from None
            if not isinstance(value, str | None):
                raise UserError(f"{path}: {' '.join(keys)} is {value!r}, and no name of a model")
            return value or ""
    return ""


def model_folder(name: str) -> str:
    """The folder of a run's model, where a run's folder was named."""
    inside = Path(name) / "model"
    is_run = name and (inside / "config.json").exists() and not (Path(name) / "config.json").exists()
    return str(inside) if is_run else name


def load_adapter(model: Any, folder: str, trains: bool = False) -> Any:
    """The model with any adapter of PEFT, for inference or further training.

    Raises:
        UserError: it cannot be read, or was made for another model: PEFT itself takes one for more or fewer layers of
            the same width, and leaves the rest of either as it is.
    """
    from peft import PeftModel

    base = base_of(folder)
    wrong = f"--adapter {folder}{f', trained on {base},' if base else ''} cannot be put on this model"
    if not Path(folder).is_dir():
        hub.require(folder, "--adapter", PEFT)
    try:
        rows = _rows(model, folder)
        if rows not in (None, model.config.get_text_config().vocab_size):
            model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter has all of the rows
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            warnings.filterwarnings("ignore", message=".*from a non-meta parameter")  # a plan has no weights
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match")  # they hold for fused experts
            found = PeftModel.from_pretrained(model, folder, is_trainable=trains)
            said = found.load_adapter(folder, "default", is_trainable=trains)  # which from_pretrained keeps to itself
    except UserWarning as error:
        names = str(error).split("'")[1::2]
        raise UserError(f"{wrong}: it has nothing for {len(names)} weights, such as {names[0]}") from error
    except UserError:
        raise
    except Exception as error:  # PEFT and safetensors raise many kinds for a file that is damaged
        first, *more = [line.strip() for line in str(error).splitlines() if "size mismatch" in line] or [""]
        if not first:
            raise cannot_load(f"--adapter {folder}", error) from error
        raise UserError(f"{wrong}: {first}{f' and {len(more)} more' if more else ''}") from error
    over = [name for name in said.unexpected_keys if name != "prompt_embeddings"]  # those are set, not loaded
    if over:
        raise UserError(f"{wrong}: it has {len(over)} weights for what is not there, such as {over[0]}")
    found.over_embeddings = rows is not None  # pyright: ignore[reportArgumentType]  no parameter, but a mark
    if any(getattr(config, "use_dora", False) for config in found.peft_config.values()):
        for module in found.modules():  # DoRA reads the weights; on some CPUs bitsandbytes packs 4-bit ones anew
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]  of Linear4bit
    return found.train(trains)


def _rows(model: Any, folder: str) -> int | None:
    """Rows of the embeddings that an adapter's file holds, as where tokens were added before training; None: none."""
    file = Path(folder) / "adapter_model.safetensors"
    name = next((name for name, module in model.named_modules() if module is model.get_input_embeddings()), None)
    if not file.exists() or name is None:
        return None
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        keys = {key.replace(".base_layer", ""): key for key in weights.keys()}  # noqa: SIM118  it is no dict
        key = keys.get(f"base_model.model.{name}.weight")
        return weights.get_slice(key).get_shape()[0] if key else None


def unload_adapter(model: Any) -> Any | None:
    """The base under an adapter of PEFT as it was before; None where the adapter has changed the base's own weights
    (PiSSA and its like, modules that were trained whole, embeddings of added tokens): it must be loaded again."""
    config = model.active_peft_config
    if getattr(model, "over_embeddings", False):
        return None
    if config.is_prompt_learning:
        return model.get_base_model()
    start = getattr(config, "init_lora_weights", True)
    changed = [
        getattr(config, name, None)
        for name in ("modules_to_save", "trainable_token_indices", "bias", "layer_replication")
    ]
    if any(value not in (None, "none") for value in changed) or start not in (True, False, "gaussian"):
        return None
    return model.unload()
