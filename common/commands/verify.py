"""Whether what is served from a folder or a GGUF file is what a run has trained, whoever made it.

    tunebook verify served --against runs/lora_alpaca
    tunebook verify model-q8_0.gguf --against runs/lora_alpaca --json proof.json

The same proof as that of `tunebook export`, on merged weights, an adapter, or GGUF; exit code 1 where it fails.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tunebook.common.errors import UserError


@dataclass
class Args:
    # Folder with a model, an adapter or GGUF files, or a GGUF file.
    export: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = ""
    against: str = ""  # folder of the run that it is to be, or of its adapter
    model: str = ""  # the base, where the run's is elsewhere
    template: str = ""  # where none was saved: alpaca, chatml, llama2, llama3, tokenizer or FILE.jinja
    dataset: list[str] = field(default_factory=list)  # rows for the proof; default: the run's own test rows
    merge_into: Literal["dequantized", "original"] = "dequantized"  # the base of the export, where training had 4 bits
    json: str = ""  # also write the proof to this file


def main(args: Args) -> None:
    from tunebook.common.export import source

    if not args.export:
        raise UserError("name the folder or GGUF file to verify: tunebook verify DIR --against RUN")
    if not args.against:
        raise UserError("--against: name the run that it is to be")
    place = Path(args.export)
    if not place.exists():
        raise UserError(f"{args.export}: there is no such folder or file")
    if place.is_file() and place.suffix != ".gguf":
        raise UserError(f"{args.export}: only a .gguf file can be verified by itself; else name its folder")
    found = source.find(args.against, args.model, "", args.dataset)
    source.check_target(found, "adapter" if (place / "adapter_config.json").exists() else "merged", args.merge_into)

    from tunebook.common.export import exporting, proof
    from tunebook.common.export.reference import Reference

    proofs = exporting.prove_folder(Reference(found, args.template, args.merge_into), place)
    file = Path(args.json) if args.json else None
    if file:
        proof.write(proofs, exporting.about(found, "verify"), file)
    proof.conclude(proofs, file)
