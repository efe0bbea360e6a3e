"""What a server reads beside the weights: tokenizer, chat template and generation config, as training saved them."""

import json
import shutil
from pathlib import Path
from typing import Any

from tunebook.common.export import source as sources
from tunebook.common.export.source import Source

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "template.json",
)
FOLDER = "additional_chat_templates"
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")  # what a base recommends; other values are left out


def write(source: Source, tokenizer: Any, template: Any, ends: list[int], rows: int, folder: Path) -> list[str]:
    """Copy the files byte for byte, and write generation_config.json.

    Args:
        tokenizer: of the training. ends: ids at which an answer ends; the first is training's.
        rows: of the model's embeddings.

    Returns:
        What a user should know, a sentence each.
    """
    notes = []
    if (source.trained / "chat_template.jinja").exists() and (source.trained / "tokenizer_config.json").exists():
        for name in FILES:
            if (source.trained / name).exists():
                shutil.copyfile(source.trained / name, folder / name)
        if (source.trained / FOLDER).is_dir():
            shutil.copytree(source.trained / FOLDER, folder / FOLDER)
    else:  # saved before templates travelled with the weights, or by others
        from tunebook.common.training import served_tokenizer

        tokenizer.chat_template = served_tokenizer.jinja(template, tokenizer)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
        tokenizer.save_pretrained(folder)
        template.save(folder)
        notes.append(f"{source.trained} has no chat template: that of the training is written ({template.name})")
    if "strftime_now" in (getattr(template, "jinja", "") or ""):
        notes.append(f"the chat template {template.name} writes the day's date, which is another one than in training")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    pad, said = padding(tokenizer, ends, rows)
    if said:
        notes.append(said)
        config["pad_token"] = tokenizer.convert_ids_to_tokens(pad) if pad is not None else None
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    generation = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": pad}
    if tokenizer.bos_token_id is not None:
        generation["bos_token_id"] = tokenizer.bos_token_id
    generation |= _recommended(sources.generation_config(source))
    generation = {name: value for name, value in generation.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return notes


def padding(tokenizer: Any, ends: list[int], rows: int) -> tuple[int | None, str]:
    """An id to pad with that ends no answer, and what to say where it is not the tokenizer's own."""
    own = tokenizer.pad_token_id
    if own is not None and own not in ends:
        return own, ""
    why = "it has none" if own is None else f"its own, {tokenizer.pad_token}, is an end token"
    control = sorted(tokenizer.added_tokens_decoder.items())
    names = ("pad", "unk", "reserved", "unused", "endoftext")
    for wanted in names:
        for number, token in control:
            if wanted in token.content.lower() and number not in ends and number < rows:
                return number, f"the padding token is {token.content}: {why}"
    return None, f"no padding token is set: {why}, and no other token is free for it; servers need none"


def _recommended(values: dict[str, Any]) -> dict[str, Any]:
    """How the base's makers sample from it; as transformers takes it, which refuses a temperature without do_sample."""
    found = {name: values[name] for name in SAMPLING if values.get(name) is not None}
    if found.get("do_sample") is False:
        return {}
    return {"do_sample": True, **found} if found else {}


def ends(source: Source, tokenizer: Any, template: Any) -> list[int]:
    """The ids at which an answer ends: first what training puts there, then what the base ends with."""
    from tunebook.common import generation

    first = generation.end_of_turn(tokenizer, template)
    more = sources.token_ids(sources.generation_config(source).get("eos_token_id"))
    return list(dict.fromkeys([first, *more, int(tokenizer.eos_token_id)]))
