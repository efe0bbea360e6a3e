"""What a run has trained, for a server: merged weights, GGUF, an adapter, or a Modelfile, with a proof.

    tunebook export runs/lora_alpaca --to merged --output_dir served
    tunebook export runs/lora_alpaca --to gguf --quantization f16 q8_0 --output_dir served_gguf
    tunebook export runs/lora_alpaca --to merged --output_dir served --push_to_hub me/my-model
    tunebook export --model my_base/ --adapter my_adapter/ --dataset my_rows.jsonl --to merged --output_dir served

The proof compares 20 held-out conversations with the trained model: prompts, weights, probabilities, answers. It is
printed and written to export.json; exit code 1 where it fails. Base, template and tokenizer are found from the run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tunebook.common.errors import UserError


@dataclass
class Args:
    # Folder of a run, or of its adapter.
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = ""
    to: str = "merged"  # merged, gguf, adapter or ollama
    output_dir: str = ""  # new folder for the export
    model: str = ""  # in place of a run's: a model, or the base of --adapter
    adapter: str = ""  # in place of a run: an adapter's folder or Hub name
    template: str = ""  # where none was saved: alpaca, chatml, llama2, llama3, tokenizer or FILE.jinja
    dataset: list[str] = field(default_factory=list)  # rows for the proof; default: the run's own test rows
    dtype: str = "auto"  # bfloat16, float16 or float32; auto: the base's own 16 bits, else float16
    merge_into: Literal["dequantized", "original"] = "dequantized"  # the base, where training had it in 4 bits
    quantization: list[str] = field(default_factory=lambda: ["f16"])  # of GGUF files: f16, q8_0, q4_k_m
    as_lora: bool = False  # with --to gguf: the base's GGUF, and the LoRA as an adapter in GGUF
    llama_cpp: str = ""  # a checkout of llama.cpp, whose converter is used; default: the installed one
    pre_tokenizer: str = ""  # llama.cpp's name of the tokenizer's pre-tokenizer; default: found, and proved
    base_name: str = ""  # what the model card and an adapter call the base: ORG/NAME
    license: str = ""  # for the model card: apache-2.0, llama3.2 ...
    push_to_hub: str = ""  # ORG/NAME on the Hub, after the proof holds; private
    public: bool = False  # with --push_to_hub: for everybody


def main(args: Args) -> None:
    from tunebook.common.export import folder, source

    if not args.output_dir:
        raise UserError("--output_dir: name a new folder for the export")
    found = source.find(args.run, args.model, args.adapter, args.dataset)
    source.check_target(found, args.to, args.merge_into)
    place = folder.check_new(args.output_dir)
    check(args, found)

    from tunebook.common.export import exporting, hub, model_card, proof, serving
    from tunebook.common.export.reference import Reference

    reference = Reference(found, args.template, args.merge_into)
    options = exporting.Options(
        args.dtype, args.quantization, args.as_lora, args.llama_cpp, args.pre_tokenizer, args.base_name, place.name
    )

    def finish(proofs: list[proof.Proof], part: Path) -> None:
        proof.write(proofs, exporting.about(found, args.to), part / proof.FILE)
        model_card.write(reference, proofs, args.to, args.base_name, args.license, part, place.name)

    proofs = exporting.export(reference, args.to, place, options, finish)
    print(f"export: {place}")
    proof.conclude(proofs, place / proof.FILE)
    # Servers know no models of ours by name; a folder or ORG/NAME is theirs, too.
    base = found.base if "/" in found.base or args.to != "adapter" else found.base_folder()
    for command in serving.commands(args.to, place, args.output_dir, base):
        print(f"serve it: {command}")
    if args.push_to_hub:
        print(f"pushed: {hub.push(place, args.push_to_hub, args.public)}")


def check(args: Args, found: Any) -> None:
    """Flags that go together, and with what is exported, before anything heavy is loaded.

    Args:
        found: source.Source.

    Raises:
        UserError: one has no effect, or its value is none.
    """
    from tunebook.common.export import gguf_adapter, gguf_files, hub, merge

    makes_gguf = args.to in ("gguf", "ollama")
    for name, on in (
        ("quantization", args.quantization != ["f16"]),
        ("as_lora", args.as_lora),
        ("llama_cpp", bool(args.llama_cpp)),
        ("pre_tokenizer", bool(args.pre_tokenizer)),
    ):
        if on and not makes_gguf:
            raise UserError(f"--{name} has no effect with --to {args.to}; it is for gguf and ollama")
    if args.as_lora and args.to == "ollama":
        raise UserError("--as_lora has no effect with --to ollama; the Modelfile is of one merged GGUF")
    if args.as_lora and args.quantization != ["f16"]:
        raise UserError("--quantization has no effect with --as_lora: the base is written in f16")
    if args.public and not args.push_to_hub:
        raise UserError("--public has no effect without --push_to_hub ORG/NAME")
    if args.dtype != "auto" and args.to == "adapter":
        raise UserError("--dtype has no effect with --to adapter: the adapter's weights are copied")
    if args.dataset and not all(args.dataset):
        raise UserError("--dataset: a name is empty")
    merge.dtype_for(args.dtype, {})
    if args.as_lora:
        gguf_adapter.check(found)
    if makes_gguf:
        gguf_files.check(args.quantization, args.llama_cpp)
    if args.push_to_hub:
        hub.check(args.push_to_hub)
