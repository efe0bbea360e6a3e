"""Exports, and the proof of each: what is written is read again, and compared with the run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export import folder as folders
from tunebook.common.export import merge, proof, serving_files, source
from tunebook.common.export.exported_weights import ExportedFolder
from tunebook.common.export.reference import Reference
from tunebook.common.export.source import Source

QUANTIZED = 4  # bits whose bounds hold where an adapter is merged into another base than it was trained on


@dataclass
class Options:
    """As the flags of `tunebook export`."""

    dtype: str = "auto"
    quantization: list[str] = field(default_factory=lambda: ["f16"])
    as_lora: bool = False
    llama_cpp: str = ""
    pre_tokenizer: str = ""
    base_name: str = ""
    title: str = ""  # of the model in a GGUF


def export(
    reference: Reference, target: str, folder: Path, options: Options, finish: Callable[..., None] | None = None
) -> list[proof.Proof]:
    """Write a folder, all or nothing, and prove what is in it.

    Args:
        finish: proofs and folder -> None: writes what belongs beside the weights, before the folder is in its place.
    """
    writers: dict[str, Callable[..., list[str]]] = {
        "merged": _merged,
        "adapter": _adapter,
        "gguf": _gguf,
        "ollama": _ollama,
    }
    reference.conversations  # noqa: B018  what the proof needs is there before anything is written
    with folders.new_folder(folder) as part:
        for note in writers[target](reference, part, options):
            print(f"note: {note}")
        proofs = prove_folder(reference, part, str(folder))
        if finish:
            finish(proofs, part)
    return proofs


def _merged(reference: Reference, part: Path, options: Options) -> list[str]:
    trained = reference.weights
    dtype = merge.dtype_for(options.dtype, trained.config)
    folders.check_space(part, merge.size(trained, dtype))
    merge.write(trained, part, dtype)
    notes = [*_into(reference), *_beside(reference, part)]
    if trained.whole:
        notes.append("this architecture is saved by transformers as a whole: memory was that of all its weights")
    if trained.files.tied and not trained.tied:
        notes.append(
            "embeddings and output layer have become different: the export keeps both (tie_word_embeddings false)"
        )
    return notes


def _into(reference: Reference) -> list[str]:
    """What the base is that an adapter of a run in 4 bits is merged into, and what that changes."""
    if not reference.source.four_bit:
        return []
    if reference.into == "original":
        return [
            f"merged into the 16-bit weights of {reference.source.base}, which the adapter has not seen: training "
            "computed with their 4 bits. The proof shows what that changes, against the bounds of 4 bits"
        ]
    return [
        f"merged into what the 4 bits of {reference.source.base} stand for, as in training; --merge_into original "
        "takes its 16-bit weights, which are finer but not what the adapter was trained on"
    ]


def _beside(reference: Reference, part: Path) -> list[str]:
    rows = reference.model.get_input_embeddings().weight.shape[0]
    return serving_files.write(reference.source, reference.tokenizer, reference.template, reference.ends, rows, part)


def _adapter(reference: Reference, part: Path, options: Options) -> list[str]:
    from tunebook.common.export import adapter_folder

    notes = adapter_folder.write(reference.source, options.base_name, part)
    return [*notes, *_beside(reference, part)]


def _gguf(reference: Reference, part: Path, options: Options) -> list[str]:
    from tunebook.common.export import gguf_adapter, gguf_files

    kinds = ["f16"] if options.as_lora else list(dict.fromkeys(options.quantization))
    texts = [text for one in reference.conversations for text in _texts(one.messages)]
    extra = ["f16"] if "q4_k_m" in kinds and "f16" not in kinds else []
    merged = part / "merged"
    merged.mkdir()
    notes = _for_converter(reference, merged, options, 1 + sum(gguf_files.SHARES[kind] for kind in [*kinds, *extra]))
    named = (options.llama_cpp, options.pre_tokenizer, options.title or reference.source.trained.parent.name)
    converter = gguf_files.Converter(merged, *named, reference.tokenizer, texts)
    for kind in [*extra, *sorted(kinds, key=gguf_files.QUANTIZATIONS.index)]:
        converter.convert(part / f"model-{kind}.gguf", kind)
    first = part / f"model-{[*extra, *kinds][0]}.gguf"
    if differs := converter.tokenizer_differs(first):
        raise UserError(f"{differs}; serve the merged model by vLLM or `transformers serve`: --to merged")
    if converter.pre:
        notes.append(
            f"llama.cpp's pre-tokenizer is {converter.pre}: it gives equal ids on {len(converter.texts)} texts"
        )
    if options.as_lora:
        base = part / "base-f16.gguf"
        first.rename(base)
        lora: Any = reference.weights
        gguf_adapter.write(lora, reference.source.trained, base, part / "adapter.gguf")
    for kind in extra:
        (part / f"model-{kind}.gguf").unlink()
    _remove(merged)
    return notes


def _for_converter(reference: Reference, merged: Path, options: Options, size: float) -> list[str]:
    """The folder that the converter reads: merged weights, or the base's under a GGUF adapter.

    Args:
        size: of all that is written, by that of the weights in 16 bits.
    """
    from tunebook.common.export.trained_weights import FineTunedWeights

    weights = FineTunedWeights(None, reference.base.folder) if options.as_lora and reference.base else reference.weights
    if options.as_lora and reference.base:
        weights.files.quantized = reference.base.quantized if reference.into == "dequantized" else frozenset()
    dtype = "float16" if options.dtype == "auto" else options.dtype
    folders.check_space(merged, int(size * merge.size(weights, "float16")))
    merge.write(weights, merged, dtype)
    return [*_into(reference), *_beside(reference, merged)]


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    return [turn["content"] for turn in messages if isinstance(turn.get("content"), str)]


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def _ollama(reference: Reference, part: Path, options: Options) -> list[str]:
    from tunebook.common.export import ollama

    text = ollama.modelfile(reference, f"model-{options.quantization[0]}.gguf")
    notes = _gguf(reference, part, options)
    (part / "Modelfile").write_text(text, encoding="utf-8")
    return notes


def prove_folder(reference: Reference, folder: Path, name: str = "") -> list[proof.Proof]:
    """The proof of everything that is served from a folder, or of a single GGUF file.

    Args:
        name: what messages call the folder.

    Raises:
        UserError: nothing that is served is in it.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.gguf"))
    if files:
        return _prove_gguf(reference, files, folder)
    from tunebook.common.export.served import TransformersModel

    if (folder / "adapter_config.json").exists():
        from tunebook.common.export import adapter_folder

        lora = source.is_lora(folder)
        served = TransformersModel(folder, reference.source.base_folder(), name)
        weights = adapter_folder.Weights(folder, reference) if lora else None
        found = proof.prove(reference, served, weights, "the adapter")
        if not lora:
            found.checks.append(adapter_folder.equal(reference.source, folder))
        return [found]
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: neither a model (config.json), an adapter (adapter_config.json) nor a .gguf file in it"
        )
    weights = ExportedFolder(folder, reference.weights)
    served = TransformersModel(folder, name=name)
    return [proof.prove(reference, served, weights, "the merged weights", _coarser(reference))]


def _coarser(reference: Reference) -> int:
    """Bits whose bounds hold for what the export says: those of the base, where the adapter has another one here."""
    return QUANTIZED if reference.source.four_bit and reference.into == "original" else 0


def _prove_gguf(reference: Reference, files: list[Path], folder: Path) -> list[proof.Proof]:
    from tunebook.common.export import gguf_files
    from tunebook.common.export.gguf_model import GgufModel
    from tunebook.common.export.gguf_tensors import GgufWeights, field, reader

    gguf_files.require_llama_cpp()
    kinds = {file: field(reader(file), "general.type") for file in files}
    adapters = [file for file, kind in kinds.items() if kind == "adapter"]
    models = [file for file in files if file not in adapters]
    coarser = _coarser(reference)
    if adapters and len(models) != 1:
        raise UserError(f"{folder}: {adapters[0].name} is an adapter, for which one GGUF of its base must be beside it")
    if adapters:
        served, lora = GgufModel(models[0], adapters[0]), GgufWeights(models[0], reference.weights, adapters[0])
        return [proof.prove(reference, served, lora, f"{adapters[0].name} on {models[0].name}", coarser)]
    found = []
    for file in models:
        weights = GgufWeights(file, reference.weights)
        found.append(proof.prove(reference, GgufModel(file), weights, file.name, coarser))
    return found


def about(found: Source, target: str) -> dict[str, Any]:
    """What export.json says of where it came from: names, and no folders of this machine."""
    return {
        "of": Path(found.name).name,
        "to": target,
        "base": Path(found.base).name if Path(found.base).exists() else found.base,
        "trained_on_four_bits": found.four_bit,
        "recipe": found.report.get("recipe"),
    }
