"""What `tunebook doctor` says of what a run writes to and reads from: disks, caches, home, locale, settings."""

import os
import re
import shutil
from pathlib import Path

from tunebook.common.commands.doctor.finding import GOOD, NOTE, WRONG, Finding

GIB = 2**30
LOW_DISK = 5 * GIB
SETTINGS = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT",
    "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "UNSLOTH_RETURN_LOGITS",
    "WANDB_MODE", "WORLD_SIZE", "LOCAL_RANK",
)  # fmt: skip


def examine() -> list[Finding]:
    """Room for outputs and caches, the home folder, the locale, environment variables."""
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    words = " ".join(f"{name}={value}" for name, value in settings.items()) or "none that matter here"
    return [*_home(), _output(), *_caches(), _locale(), Finding("settings", GOOD, words)]


def _home() -> list[Finding]:
    try:
        home = Path.home()
    except RuntimeError:
        return [Finding("home", WRONG, "none: caches have no place", "export HOME=FOLDER_YOU_OWN")]
    if os.access(home, os.W_OK):
        return []
    return [Finding("home", NOTE, f"{home} cannot be written", "export HOME=FOLDER_YOU_OWN")]


def _output() -> Finding:
    return _room("outputs", Path.cwd(), "set --output_dir to another disk, or free some of this one", WRONG)


def _caches() -> list[Finding]:
    """That of the Hub, for models; and ours, for .gguf files that were converted."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return [
        _room("Hub cache", hub, "export HF_HOME=FOLDER_YOU_OWN", WRONG),
        _room("cache", cache / "tunebook", "export XDG_CACHE_HOME=FOLDER_YOU_OWN", NOTE),
    ]


def _room(topic: str, place: Path, remedy: str, unwritable: str) -> Finding:
    """Whether a folder can be written, or made, and the room of its disk."""
    place = Path(os.path.expanduser(place))  # without a home it stays as it is
    near = next((one for one in (place, *place.parents) if one.exists()), Path.cwd())
    if not os.access(near, os.W_OK):
        return Finding(topic, unwritable, f"{place} cannot be written", remedy)
    disk = shutil.disk_usage(near)
    found = f"{disk.free / GIB:.0f} GiB free of {disk.total / GIB:.0f} in {place}"
    return Finding(topic, NOTE, found, remedy) if disk.free < LOW_DISK else Finding(topic, GOOD, found)


def _locale() -> Finding:
    name = next((os.environ[one] for one in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(one)), "C")
    if re.search(r"utf-?8", name, re.IGNORECASE):
        return Finding("locale", GOOD, name)
    if name in ("C", "POSIX"):
        return Finding("locale", GOOD, f"{name}, which Python reads as UTF-8")
    return Finding("locale", NOTE, f"{name} is not UTF-8: libraries read files in it", "export LC_ALL=C.UTF-8")
