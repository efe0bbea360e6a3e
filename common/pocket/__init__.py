"""The bundled models, their small world and their Alpaca-format rows."""

from pathlib import Path

FOLDER = Path(__file__).parent
MODELS = {"pocket": "model", "pocket_teacher": "teacher"}  # name -> folder
ROWS = {"pocket": "", "pocket_chat": "chat_", "pocket_pairs": "pairs_"}  # name -> prefix of its files


def model(name: str) -> Path | None:
    """The folder of a bundled model; None for any other name."""
    return FOLDER / MODELS[name] if name in MODELS else None


def rows(name: str) -> dict[str, Path]:
    """The files of a bundled dataset by split; empty for any other name."""
    splits = ("train", "validation", "test") if name in ROWS else ()
    return {split: FOLDER / f"{ROWS[name]}{split}.jsonl" for split in splits}
