"""Versions of the libraries, and the commit of this collection."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth", "lm_eval")


def version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of PACKAGES."""
    return {"python": platform.python_version()} | {name: version(name) or "not installed" for name in PACKAGES}


def commit() -> str | None:
    """The commit of the collection, with + where the tree differs from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        options = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
        name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return name + ("+" if changed else "")
