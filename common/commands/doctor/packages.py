"""What `tunebook doctor` says of the installed packages: are they there, and the versions that were tested?"""

import importlib.metadata
import platform
import re
from pathlib import Path

from tunebook.common.commands.doctor.finding import GOOD, NOTE, WRONG, Finding
from tunebook.common.provenance import commit, version

ROOT = Path(__file__).resolve().parents[3]  # holds the pins in a checkout
INSTALL = "run `make install` in the checkout"


def examine() -> list[Finding]:
    """Python, this collection, each package it needs, and Unsloth."""
    return [_python(), _tunebook(), *_required(), *_unsloth(), *_misfits()]


def pins(file: str) -> dict[str, str]:
    """name -> exact version from a requirements file of the checkout; {} where the file is not there."""
    path = ROOT / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = (re.match(r"([\w.-]+)==([\w.!+]+)", line) for line in lines)
    return {_plain(match[1]): match[2] for match in found if match}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python() -> Finding:
    from packaging.specifiers import SpecifierSet

    try:
        wanted = importlib.metadata.metadata("tunebook")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        wanted = ""
    now = platform.python_version()
    good = SpecifierSet(wanted).contains(now, prereleases=True)
    remedy = "" if good else f"make the environment with a Python {wanted}: make install PYTHON=python3.12"
    return Finding("python", GOOD if good else WRONG, f"{now} on {platform.system()} {platform.machine()}", remedy)


def _tunebook() -> Finding:
    found = version("tunebook")
    if found is None:
        return Finding("tunebook", WRONG, "not installed", f"{INSTALL}: recipes run from other folders then, too")
    return Finding("tunebook", GOOD, f"{found}, commit {commit() or 'unknown (not a checkout)'}")


def _required() -> list[Finding]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("tunebook") or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    tested, found = pins("constraints.txt"), []
    for item in wanted:
        if item.marker is None or item.marker.evaluate({"extra": ""}):
            found.append(_package(item.name, str(item.specifier), tested.get(_plain(item.name))))
    return found


def _package(name: str, allowed: str, tested: str | None) -> Finding:
    from packaging.specifiers import SpecifierSet

    now = version(name)
    if now is None:
        return Finding(name, WRONG, f"not installed, {allowed} is needed", INSTALL)
    if not SpecifierSet(allowed).contains(now, prereleases=True):
        return Finding(name, WRONG, f"{now}, {allowed} is needed", INSTALL)
    if tested and now.partition("+")[0] != tested:
        return Finding(name, NOTE, f"{now}; tested with {tested}", f"if something breaks, {INSTALL}")
    return Finding(name, GOOD, now)


def _unsloth() -> list[Finding]:
    found = []
    for name, pin in (pins("requirements-unsloth.txt") or {"unsloth": "", "unsloth-zoo": ""}).items():
        now = version(name)
        if now is None:
            found.append(Finding(name, WRONG, "not installed; recipes train through it", INSTALL))
        elif pin and now != pin:
            found.append(Finding(name, WRONG, f"{now}, {pin} is needed", INSTALL))
        else:
            found.append(Finding(name, GOOD, now))
    return found


def _misfits() -> list[Finding]:
    """Packages that are known to break others by being there."""
    import torch

    vision = version("torchvision")
    if vision and torch.version.cuda is None and "+cpu" not in vision:
        return [Finding("torchvision", WRONG, f"{vision} is for CUDA and torch is for the CPU: `import unsloth` fails",
                        "pip uninstall torchvision (text needs none)")]  # fmt: skip
    return []
