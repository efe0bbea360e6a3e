"""A model's files must hold the weights that its config describes: transformers draws at random what is missing, passes
over what is too much, and says so in a table among its warnings."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.models import module_kinds

BELONG = "its config.json and its files of weights do not belong together"
REMEDY = "Give it the config.json that came with these files"


@contextmanager
def required(what: str) -> Iterator[None]:
    """Inside, a model that is loaded by transformers, whoever calls it, has all of its weights from its files.

    Args:
        what: the flag and its value, for the message.

    Raises:
        UserError: some are missing, of another shape, or are too many in what the model is built of.
    """
    from transformers import modeling_utils

    library: Any = modeling_utils
    report = library.log_state_dict_report

    def refuse(*words: Any, **named: Any) -> None:
        info = next(value for value in (*words, *named.values()) if hasattr(value, "mismatched_keys"))
        model = next(value for value in (*words, *named.values()) if hasattr(value, "get_submodule"))
        if problem := _problem(model, info):
            raise UserError(f"{what}: {BELONG}: {problem}. {REMEDY}")
        if info.unexpected_keys:
            print(f"{what}: {_some(info.unexpected_keys)} of its files {_are(info.unexpected_keys)} not used")
        info.unexpected_keys = set()  # that was the report
        report(*words, **named)

    library.log_state_dict_report = refuse
    try:
        yield
    finally:
        library.log_state_dict_report = report


def check_shapes(model: Any, what: str) -> None:
    """The same of the shapes of a model in 4 bits, which transformers (5.17) loads whatever they are.

    Raises:
        UserError: one is another than the config's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    values = model.config.to_dict()
    values.pop("quantization_config", None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(values), trust_remote_code=False)
    needed = {name: parameter.shape for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        found = parameter.shape if state is None else state.shape
        if name in needed and sorted(found) != sorted(needed[name]):  # GPT-2's are transposed in 4 bits
            raise UserError(f"{what}: {BELONG}: {_shapes(name, found, needed[name])}. {REMEDY}")


def _problem(model: Any, info: Any) -> str:
    if info.mismatched_keys:
        first = min(info.mismatched_keys)
        more = f" (and {len(info.mismatched_keys) - 1} more)" if len(info.mismatched_keys) > 1 else ""
        return _shapes(*first) + more
    missing = [name for name in info.missing_keys if not module_kinds.beside_text(name)]
    if missing:
        return f"{_some(missing)} {_are(missing)} in none of them, and would be random"
    # A file may hold more than a language model (a value head, layers for drafts); not more of its own layers.
    over = [name for name in info.unexpected_keys if _inside(model, name)]
    return f"{_some(over)} {_are(over)} in them, and without a place in the model" if over else ""


def _inside(model: Any, name: str) -> bool:
    """Whether a weight belongs to a decoder layer, one that is there or one too many."""
    import torch

    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            for prefix in ("", f"{model.base_model_prefix}."):
                try:
                    return isinstance(model.get_submodule(prefix + ".".join(parts[:place])), torch.nn.ModuleList)
                except AttributeError:
                    continue
    return False


def _some(names: Collection[str]) -> str:
    one, *more = sorted(names)
    return f"{len(names)} weights, such as {one}," if more else one


def _are(names: Collection[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _shapes(name: str, found: Any, needed: Any) -> str:
    return f"{name} is {' x '.join(map(str, found))} in them, and {' x '.join(map(str, needed))} by the config"
