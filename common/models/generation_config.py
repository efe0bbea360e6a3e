"""Repairs of a model's generation_config.json that transformers refuses to save."""

import re
from typing import Any

SAMPLING = {"temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}


def make_savable(model: Any, name: str) -> None:
    """Change what transformers (5.17) reads but refuses to save, as in many older models (Vicuna, early Llama 2), and
    print it: sampling values get their do_sample, others without effect are removed."""
    config, done = model.generation_config, []
    while wrong := _refused(config):
        if wrong & SAMPLING and not config.do_sample:
            done.append(f"do_sample is set, as it asks for {_listed(config, wrong & SAMPLING)}")
            config.do_sample = True
            continue
        done.append(f"taken out, as without effect here: {_listed(config, wrong)}")
        for field in wrong:
            setattr(config, field, None)
    if done:
        print(f"generation_config.json of {name}, which transformers would not save: {'; '.join(done)}")


def _refused(config: Any) -> set[str]:
    """The fields that keep a generation config from being saved."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        text = str(error)
        names = re.findall(r"^- `(\w+)`:", text, re.MULTILINE) or re.findall(r"`(\w+)`", text)[:1]
        return {name for name in names if vars(config).get(name) is not None}
    return set()


def _listed(config: Any, fields: set[str]) -> str:
    return ", ".join(f"{field} {getattr(config, field)}" for field in sorted(fields))
