"""The model card of an export: what its run's report says, and nothing of the machine that it ran on."""

import re
import shlex
from pathlib import Path
from typing import Any

from tunebook.common import catalog, pages, provenance
from tunebook.common.export import serving
from tunebook.common.export.proof import Proof
from tunebook.common.export.reference import Reference
from tunebook.common.export.source import Source
from tunebook.common.format import percent
from tunebook.common.models import inference

FORMS = {
    "merged": "merged weights for vLLM and transformers",
    "gguf": "GGUF for llama.cpp",
    "adapter": "an adapter for PEFT and vLLM",
    "ollama": "GGUF with a Modelfile for Ollama",
}
PLACES = {"output_dir", "config", "report_to", "resume", "overwrite", "dry_run", "debug_batches", "targets"}
METHODS = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}


def write(
    reference: Reference, proofs: list[Proof], target: str, base_name: str, license_id: str, folder: Path, name: str
) -> None:
    """Write README.md.

    Args:
        base_name: what the base is called for others; "": its name on the Hub, or that of its folder.
        license_id: as the Hub spells it; "": left open, for the base's license is not known here.
        name: of the export.
    """
    source, report = reference.source, reference.source.report
    base = base_name or plain(source.base)
    args = report.get("args", {})
    front = {
        "library_name": {"adapter": "peft", "merged": "transformers"}.get(target, "gguf"),
        "pipeline_tag": "text-generation",
        "tags": [
            "tunebook",
            *(["gguf"] if target in ("gguf", "ollama") else []),
            *(["lora"] if source.adapter else []),
        ],
    }
    if "/" in base:
        front |= {"base_model": base, "base_model_relation": _relation(target, proofs)}
    named = [name for name in source.dataset if "/" in name and not Path(name).suffix and not Path(name).exists()]
    front |= {"datasets": named} if named else {}
    front |= {"license": license_id} if license_id else {}
    page = pages.render(
        Path(__file__).with_name("model_card.md.jinja"),
        front=_yaml(front),
        name=name,
        recipe=report.get("recipe"),
        base_link=f"[{base}](https://huggingface.co/{base})" if "/" in base else base or "A model",
        method=_method(source),
        form=FORMS[target],
        data=_data(source),
        settings=[
            (name, plain(value)) for name, value in args.items() if name not in PLACES and value not in (None, [], "")
        ],
        scores=_scores(report),
        forgetting=(report.get("scores", {}).get("forgetting") or {}).get("words") or "Not measured in this run.",
        proofs=[proof.as_dict() for proof in proofs],
        template_file="tokenizer.chat_template" if target in ("gguf", "ollama") else "chat_template.jinja",
        serve=serving.commands(target, folder, name, base),
        end=reference.tokenizer.convert_ids_to_tokens(reference.ends[0]),
        limits=_limits(source, base, license_id),
        reproduce=_reproduce(report, args),
        versions=", ".join(
            f"{name} {number}" for name, number in (report.get("versions") or provenance.versions()).items()
        ),
    )
    (folder / "README.md").write_text(page, encoding="utf-8")


def plain(value: Any) -> str:
    """A value without folders: of a path on this machine its last part."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    text = str(value)
    return re.sub(r"(?:[A-Za-z]:)?(?:\.{0,2}[/\\])[^\s,]*[/\\]([^\s/\\,]+)", r"\1", text) if not _hub(text) else text


def _hub(text: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text)) and not Path(text).exists()


def _relation(target: str, proofs: list[Proof]) -> str:
    if target == "adapter":
        return "adapter"
    return "quantized" if any(proof.bits < 16 for proof in proofs) else "finetune"


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _method(source: Source) -> str:
    if not source.adapter:
        return "all weights trained"
    import json

    config = json.loads((source.trained / inference.PEFT).read_text(encoding="utf-8"))
    kind = next((word for name, word in METHODS.items() if config.get(name)), "LoRA")
    if config.get("peft_type") != "LORA":
        return str(config.get("peft_type"))
    bits = ", on a base in 4 bits" if source.four_bit else ""
    return f"{kind}, rank {config.get('r')}, alpha {config.get('lora_alpha')}{bits}"


def _data(source: Source) -> list[str]:
    lines = [f"dataset: {', '.join(map(plain, source.dataset)) or 'not named'}"]
    data = source.report.get("data") or {}
    if data:
        dropped = ", ".join(f"{count} as {reason}" for reason, count in data.get("dropped", {}).items()) or "none"
        lines += [
            f"{data['rows']:,} rows, {data['kept']:,} of them used; dropped: {dropped}",
            f"{data['tokens']:,} tokens, {data['trained_tokens']:,} of them trained",
        ]
    return lines


def _scores(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for task, metrics in (report.get("scores", {}).get("comparison") or {}).items():
        for metric, row in metrics.items():
            items = row.get("items")
            cells = [_share(row[when], items) for when in ("before", "after")]
            rows.append([f"{task}, {metric}", str(items or ""), *cells])
    return rows


def _share(value: float | None, items: int | None) -> str:
    """A share with its interval; any other number as it is."""
    if value is None or not items or not 0 <= value <= 1:
        return "" if value is None else f"{value:.4g}"
    from scipy.stats import binomtest

    low, high = binomtest(round(value * items), items).proportion_ci(method="wilson")
    return f"{percent(value)} ({100 * low:.1f} to {100 * high:.1f})"


def _limits(source: Source, base: str, license_id: str) -> list[str]:
    lines = []
    if not license_id:
        lines.append(f"Its license is open: that of {base or 'the base'} and of the data apply.")
    if not source.report:
        lines.append("It was exported without its run, so data, settings and scores are not known here.")
    return lines


def _reproduce(report: dict[str, Any], args: dict[str, Any]) -> str:
    if not report:
        return "The run is not known here."
    words = []
    for name, value in args.items():
        if name in PLACES or value is False or value in (None, "", []):
            continue
        listed = value if isinstance(value, list) else [value]
        words.append(" ".join([f"--{name}", *(shlex.quote(plain(one)) for one in listed if one is not True)]))
    commit = f" at commit {report['commit']}" if report.get("commit") else ""
    name = report.get("recipe")
    own = name not in catalog.recipes()
    which = ", the recipe's own file" if own else ""
    return (
        f"With tunebook{commit}{which}, and the base and data above:\n\n```bash\n"
        f"python {'' if own else 'recipes/'}{name}.py {' '.join(words)}\n```"
    )
