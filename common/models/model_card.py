"""The model card that PEFT writes beside an adapter (README.md), without the paths of this machine."""

from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.flags import redaction


def hide_paths(model: Any) -> None:
    """Let the cards of a PEFT model name its base by its folder's name alone: they go to the Hub with the adapter. Its
    adapter_config.json keeps the path, which loading needs. Other models write no such card."""
    write = getattr(model, "create_or_update_model_card", None)
    if write is None or vars(model).get("create_or_update_model_card") is not None:
        return
    base = str(getattr(model.get_base_model().config, "_name_or_path", ""))

    def write_card(folder: str) -> None:
        write(folder)
        card = Path(folder) / "README.md"
        text = card.read_text(encoding="utf-8")
        if (place := Path(base).resolve()).is_dir():
            text = text.replace(base, place.parent.name if place.name == "model" else place.name)  # of a run, of pocket
        files.write_atomic(card, redaction.without_paths(redaction.without_secrets(text), Path(folder)))

    model.create_or_update_model_card = write_card
