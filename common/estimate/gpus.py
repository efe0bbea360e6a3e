"""The GPU that a plan is for: this machine's, by nvidia-smi, or one named by its memory. Nothing is put on it."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from tunebook.common.errors import UserError

QUERY = "index,uuid,memory.free,compute_cap,name"
BFLOAT16_FROM = 8.0  # compute capability; a card before Ampere trains in float16


@dataclass
class Card:
    words: str
    free: int | None = None  # bytes; None: no GPU
    bf16: bool = True


def here() -> Card:
    """This machine's device: the first card that CUDA_VISIBLE_DEVICES lets a run see.

    Raises:
        UserError: nvidia-smi does not list that card, or not its free memory.
    """
    asked, cpu = os.environ.get("CUDA_VISIBLE_DEVICES"), Card("this device (CPU)")
    if shutil.which("nvidia-smi") is None or asked in ("", "-1"):
        return cpu
    query = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return cpu
    cards = [[value.strip() for value in line.split(",", 4)] for line in done.stdout.strip().splitlines()]
    first = (asked if asked is not None else cards[0][0]).split(",")[0].strip()
    matches = [card for card in cards if first == card[0] or (first.startswith("GPU-") and card[1].startswith(first))]
    remedy = 'give its memory: --gpu "16 GB"'
    if len(matches) != 1:
        listed = ", ".join(f"{index} ({name})" for index, *_, name in cards)
        raise UserError(f"CUDA_VISIBLE_DEVICES={asked}: nvidia-smi tells of no such card, only of {listed}; {remedy}")
    _, _, free, capability, name = matches[0]
    if not free.isdigit():
        raise UserError(f"nvidia-smi does not tell the free memory of {name} ({free}); {remedy}")
    return Card(f"this device ({name})", int(free) * 2**20, float(capability) >= BFLOAT16_FROM)


def named(words: str) -> Card:
    """The card of "16 GB", or of "16 GB fp16", which has no bfloat16. GB means GiB, as cards are sold."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gb|gib|g)?\s*(fp16)?\s*", words, re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(
            f'--gpu {words!r}: expected the memory of the GPU, like "16 GB" or 24; "16 GB fp16" for one without '
            f"bfloat16, as T4 and V100"
        )
    size = float(match[1])
    return Card(f"a GPU of {size:g} GiB", int(size * 2**30), bf16=match[2] is None)
