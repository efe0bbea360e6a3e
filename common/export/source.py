"""What is exported: a run's folder, from which base, adapter, template and tokenizer follow, or model and adapter."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common import pocket
from tunebook.common.errors import UserError, nearest
from tunebook.common.local_models import names
from tunebook.common.models import inference, loading
from tunebook.common.tokens import templates

TARGETS = ("merged", "gguf", "adapter", "ollama")
NEEDED = ["*.json", "*.safetensors", "*.bin", "*.jinja", "*.model"]  # of a model on the Hub


@dataclass
class Source:
    """
    Attributes:
        name: what messages and the model card call it.
        trained: the folder of the adapter, or of the model that trained whole.
        adapter: it is an adapter.
        base: what it was trained on, as it was named; "" where that is not known.
        four_bit, eight_bit: it was trained on the base in so many bits.
        report: report.json of the run; empty where there is no run.
        dataset, seed: what it was trained on.
    """

    name: str
    trained: Path
    adapter: bool
    base: str
    four_bit: bool = False
    eight_bit: bool = False
    report: dict[str, Any] = field(default_factory=dict)
    dataset: list[str] = field(default_factory=list)
    seed: int = 0

    @property
    def tokenizer_folder(self) -> Path:
        """Where tokenizer and chat template are."""
        own = self.trained / "tokenizer_config.json"
        return self.trained if own.exists() else Path(self.base_folder())

    def base_folder(self) -> str:
        """The base's folder on this machine.

        Raises:
            UserError: it is not there.
        """
        if not self.base:
            raise UserError(f"{self.name}: it does not say which model it was trained on: --model NAME")
        try:
            place = loading.resolve(self.base)
        except UserError as error:
            raise UserError(f"{self.name}: its base is not there; name it as --model ({error})") from None
        return place if Path(place).is_dir() else _downloaded(place)


def find(run: str, model: str = "", adapter: str = "", dataset: list[str] | None = None) -> Source:
    """What a run's folder or an adapter's holds, or what --model and --adapter name.

    Raises:
        UserError: there is no such run, it has not ended, or it holds something else.
    """
    if run and adapter:
        raise UserError(f"{run} and --adapter {adapter}: name one of them")
    if not (run or model or adapter):
        raise UserError("name a run's folder, or --model and --adapter")
    found = _of_folder(Path(run)) if run else _named(model, adapter)
    if run and model:
        found.base = model
    if dataset:
        found.dataset = dataset
    if found.adapter and not found.base:
        raise UserError(f"{found.name}: the adapter does not say which model it was trained on: --model NAME")
    return found


def _of_folder(folder: Path) -> Source:
    if not folder.exists():
        near = [str(one) for one in folder.parent.glob("*") if one.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: there is no such run{nearest(str(folder), near)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a run's folder, or an adapter's")
    inside = [folder / "adapter", folder / "model", folder]
    trained = next((one for one in inside if inference.has_adapter(one) or (one / "config.json").exists()), None)
    report = next((one / "report.json" for one in (folder, folder.parent) if (one / "report.json").exists()), None)
    if (folder / "run.json").exists() and not (folder / "report.json").exists():
        raise UserError(f"{folder}: the run has not ended; start it again with the same command, and it goes on")
    if trained is None:
        raise UserError(f"{folder}: neither adapter/ nor model/ in it, so it is no run of a recipe that saves one")
    return _source(str(folder), trained, _report(report) if report else {})


def _named(model: str, adapter: str) -> Source:
    if adapter:
        (folder,) = inference.named([adapter]).values()
        path = Path(folder)
        if not path.is_dir():
            path = Path(_downloaded(folder))
        found = _source(adapter, path, {})
        found.base = model or found.base
        return found
    place = loading.resolve(inference.model_folder(model))
    path = Path(place) if Path(place).is_dir() else Path(_downloaded(place))
    found = _of_folder(path.parent) if path.name == "model" and (path.parent / "report.json").exists() else None
    return found or _source(model, path, {})


def _source(name: str, trained: Path, report: dict[str, Any]) -> Source:
    args = report.get("args", {})
    adapter = inference.has_adapter(trained)
    named = inference.base_of(str(trained)) if adapter else args.get("model") or ""
    if adapter:
        named = _as_called(named, str(args.get("model") or ""))
    bits = {bit for group in report.get("train", {}).get("parameters", []) for bit in group.get("bits", [])}
    dataset = args.get("dataset") or []
    return Source(
        name=name,
        trained=trained,
        adapter=adapter,
        base=str(named),
        four_bit=adapter and 4 in bits,
        eight_bit=adapter and 8 in bits,
        report=report,
        dataset=[dataset] if isinstance(dataset, str) else list(dataset),
        seed=int(args.get("seed", 0)),
    )


def _as_called(named: str, model: str) -> str:
    """The base as the run was called with it, where the adapter names a folder that is gone, or that pocket or smollm2
    had on the machine of the training: such a name is found again."""
    place = pocket.model(model)
    bundled = place and Path(named).parts[-2:] == Path(place).parts[-2:]
    gone = model and named and not Path(named).exists()
    return model if bundled or gone or model == names.SMOLLM2 else named


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty where there is no such file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; is it damaged?")
    return found


def _report(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found.get("args"), dict):
        raise UserError(f"{path} is no report of a run")
    return found


def _downloaded(name: str) -> str:
    """The folder of a model or adapter of the Hub, downloaded where it is not there yet."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=NEEDED)
    except Exception as error:  # the Hub has many kinds, of which what it says helps
        raise UserError(f"{name} cannot be had from the Hub: {str(error).splitlines()[0]}") from error


def check_target(source: Source, target: str, into: str = "dequantized") -> None:
    """Refuse by name what cannot be served in this form, with what can be done. Loads nothing heavy.

    Args:
        into: the base that an adapter is merged into, where training had it in 4 bits.

    Raises:
        UserError: it cannot.
    """
    if target not in TARGETS:
        raise UserError(f"--to {target}: there is {', '.join(TARGETS)}{nearest(target, TARGETS)}")
    if into != "dequantized" and (target == "adapter" or not source.four_bit):
        raise UserError(f"--merge_into {into} has no effect: nothing of {source.name} is merged into a base in 4 bits")
    if not source.adapter:
        if target == "adapter":
            raise UserError(f"{source.name}: the model trained whole, there is no adapter; --to merged")
        return
    if inference.is_bottleneck(str(source.trained)):
        raise UserError(
            f"{source.name}: bottleneck adapters are layers with a non-linearity, which no server has and which cannot "
            "be merged into weights; `tunebook chat --page` serves them, or train lora_alpaca on the same rows"
        )
    config = read_json(source.trained / inference.PEFT)
    kind = str(config.get("peft_type"))
    if target != "adapter" and kind in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"):
        raise UserError(
            f"{source.name}: a soft prompt ({kind}) is no change of the weights and cannot be merged; --to adapter "
            "exports it for PEFT, or train lora_alpaca on the same rows"
        )
    if target != "adapter" and kind != "LORA":
        raise UserError(f"{source.name}: {kind} is not merged here, only LoRA is; --to adapter exports it for PEFT")
    if target != "adapter" and source.eight_bit:
        raise UserError(
            f"{source.name}: it was trained on a base in 8 bits, into which nothing is merged here; --to adapter "
            "exports it for PEFT, on such a base"
        )


def is_lora(folder: Path) -> bool:
    return read_json(folder / inference.PEFT).get("peft_type") == "LORA"


def generation_config(source: Source) -> dict[str, Any]:
    """Of the training; of the base where an adapter was saved without one, as by PEFT itself."""
    path = source.trained / "generation_config.json"
    if not path.exists() and source.base:
        path = Path(source.base_folder()) / "generation_config.json"
    return read_json(path)


def token_ids(value: Any) -> list[int]:
    """Of a generation config's eos_token_id: one, several, or none."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, int) and not isinstance(one, bool)]


def template(source: Source, tokenizer: Any, named: str = "") -> templates.AnyTemplate:
    """The template of the training: as it was saved, or by name.

    Raises:
        UserError: none was saved and none is named, or another one is named.
    """
    saved = templates.load(source.trained) if (source.trained / templates.FILE).exists() else None
    if named and saved and templates.get(named, tokenizer) != saved:
        raise UserError(f"--template {named}: {source.name} was trained with {saved.name}; leave the flag out")
    if saved:
        return saved
    if named:
        return templates.get(named, tokenizer)
    if isinstance(tokenizer.chat_template, str):
        return templates.get("tokenizer", tokenizer)
    raise UserError(
        f"{source.name}: no {templates.FILE} beside the weights; name the template of the training: --template"
    )
