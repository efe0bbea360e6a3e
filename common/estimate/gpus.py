"""The GPU that a plan is for: this machine's, as nvidia-smi tells of it, or one that is named. Nothing is put on it."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from tunebook.common.errors import UserError

GIB = 2**30
QUERY = "index,uuid,memory.free,compute_cap,name"
BFLOAT16_FROM = 8.0  # compute capability; a card before Ampere trains in float16


@dataclass
class Card:
    """A device in words; the bytes of its GPU that can be had, or None without one; whether that has bfloat16."""

    words: str
    free: int | None = None
    bf16: bool = True


def here() -> Card:
    """This machine's device: the first card that CUDA_VISIBLE_DEVICES lets a run see.

    Raises:
        UserError: that names a card which is not here, or one of which nvidia-smi does not tell the free memory.
    """
    asked, cpu = os.environ.get("CUDA_VISIBLE_DEVICES"), Card("this device (CPU)")
    if shutil.which("nvidia-smi") is None or asked in ("", "-1"):
        return cpu
    query = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return cpu
    found = [[value.strip() for value in line.split(",", 4)] for line in done.stdout.strip().splitlines()]
    first = (asked if asked is not None else found[0][0]).split(",")[0].strip()
    cards = [card for card in found if first == card[0] or (first.startswith("GPU-") and card[1].startswith(first))]
    other = 'give its memory: --gpu "16 GB"'
    if len(cards) != 1:
        there = ", ".join(f"{index} ({name})" for index, *_, name in found)
        raise UserError(f"CUDA_VISIBLE_DEVICES={asked}: nvidia-smi tells of no such card, only of {there}; {other}")
    _, _, free, capability, name = cards[0]
    if not free.isdigit():
        raise UserError(f"nvidia-smi does not tell the free memory of {name} ({free}); {other}")
    return Card(f"this device ({name})", int(free) * 2**20, float(capability) >= BFLOAT16_FROM)


def named(words: str) -> Card:
    """The card of "16 GB", or of "16 GB fp16", which has no bfloat16. GB means GiB, as cards are sold.

    Raises:
        UserError: it says something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gb|gib|g)?\s*(fp16)?\s*", words, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(
            f'--gpu {words!r}: expected the memory of the GPU, like "16 GB" or 24; "16 GB fp16" for one without '
            f"bfloat16, as T4 and V100"
        )
    size = float(found[1])
    return Card(f"a GPU of {size:g} GiB", int(size * GIB), bf16=found[2] is None)
