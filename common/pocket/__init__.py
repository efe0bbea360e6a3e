"""The bundled base model, its small world and its Alpaca-format rows."""

from pathlib import Path

FOLDER = Path(__file__).parent
