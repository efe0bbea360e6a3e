"""Checks before an evaluation starts: what would fail after hours, and what a reader of the scores must know."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tunebook.common.errors import UserError
from tunebook.common.tokens.sandbox import apply_chat_template
from tunebook.evals import sandbox
from tunebook.evals.harness.catalog import Benchmarks
from tunebook.evals.harness.suites import PUBLISHED

SAMPLED = 8  # prompts of each task whose length is checked
IFEVAL = ("langdetect", "immutabledict", "nltk")
MAX_GEN_TOKS = 256  # lm-eval's default


def problems(
    benchmarks: Benchmarks,
    folder: Path | None,
    tokenizer: Any,
    positions: int,
    chat: bool,
    allow_code: bool,
    answer: int,
) -> list[str]:
    """What is wrong, a line each, before any data is loaded.

    Args:
        folder: --benchmark_dir.
        positions: the model's context length.
        answer: --max_gen_toks; 0: each task's own.
    """
    lines = []
    if chat and not isinstance(tokenizer.chat_template, str):
        lines.append("the tokenizer has no chat template: leave --chat_template out, or choose --suite quick or core")
    lines += _data(benchmarks, folder) + _code(benchmarks, allow_code) + _ifeval(benchmarks)
    long = {
        name: tokens for name, task in benchmarks.leaves.items() if (tokens := _max_gen_toks(task, answer)) >= positions
    }
    if long:
        lines.append(
            f"{benchmarks.summary(long)}: an answer may have {max(long.values())} tokens, and the model takes "
            f"{positions} with the prompt; --max_gen_toks {min(128, positions // 4)} lets answers have fewer"
        )
    return lines


def _data(benchmarks: Benchmarks, folder: Path | None) -> list[str]:
    if folder is None:
        return []
    wanted: dict[tuple[str, str], list[str]] = {}
    for name, task in benchmarks.leaves.items():
        if "custom_dataset" not in task and task.get("dataset_path"):
            path = task["dataset_path"]
            config = task.get("dataset_name") or ""
            missing = config if (folder / path).is_dir() and config not in _configs(folder / path, config) else ""
            if missing or not (folder / path).is_dir():
                wanted.setdefault((path, missing), []).append(name)
    return [
        f"{benchmarks.summary(names)}: --benchmark_dir {folder} has no "
        + (f"configuration {config} in {path}/README.md" if config else f"folder {path}/")
        for (path, config), names in wanted.items()
    ]


@cache
def _configs(folder: Path, otherwise: str) -> set[str]:
    """The configurations that a dataset card names; a card that names none leaves it to the loader."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    parts = text.split("---\n")
    head = (yaml.safe_load(parts[1]) or {}) if text.startswith("---\n") and len(parts) > 2 else {}
    return {config["config_name"] for config in head.get("configs", [])} or {otherwise}


def _code(benchmarks: Benchmarks, allowed: bool) -> list[str]:
    """Tasks that run the model's programs: in the sandbox, with --allow_code, or not at all."""
    lines = []
    unsafe = [name for name, task in benchmarks.leaves.items() if task.get("unsafe_code")]
    ours = [name for name in unsafe if benchmarks.is_ours(name)]
    if others := [name for name in unsafe if name not in ours]:
        lines.append(
            f"{benchmarks.summary(others)}: lm-eval would run the model's programs with all that you may do; "
            "humaneval_contained contains them (if you want it all the same: lm_eval run --confirm_run_unsafe_code)"
        )
    if ours and not allowed:
        lines.append(f"{benchmarks.summary(ours)}: runs the model's programs in a sandbox; allow it with --allow_code")
    elif ours:
        try:
            sandbox.check()
        except UserError as error:
            lines.append(f"{benchmarks.summary(ours)}: {error}")
    return lines


def _ifeval(benchmarks: Benchmarks) -> list[str]:
    """Without punkt_tab 64 of its 541 prompts cannot be judged, which lm-eval finds out after all are answered."""
    names = [name for name in benchmarks.leaves if name.rpartition("_")[2] == "ifeval"]
    if not names:
        return []
    start = f"{benchmarks.summary(names)}: "
    if missing := [package for package in IFEVAL if importlib.util.find_spec(package) is None]:
        return [f"{start}pip install {' '.join(missing)}"]
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return [
            f"{start}it needs NLTK's punkt_tab. With a network: python -m nltk.downloader punkt_tab. Without one: copy "
            "tokenizers/punkt_tab from another machine to a folder and set NLTK_DATA to that folder"
        ]
    return []


def incomplete(tasks: list[Any]) -> list[str]:
    """Notes on test sets that have fewer items than the published ones, which a score must not be compared with."""
    lines = []
    for task in tasks:
        published = PUBLISHED.get(task.config.dataset_path or "", {}).get(task.config.dataset_name or "")
        if published is not None and len(task.eval_docs) != published:
            lines.append(
                f"{task.task_name}: the data has {len(task.eval_docs)} of the {published} items of the published test "
                "set; compare its score with scores on the same data alone"
            )
    return lines


def cut(
    benchmarks: Benchmarks, tasks: list[Any], tokenizer: Any, positions: int, chat: bool, limit: int | None, answer: int
) -> list[str]:
    """Notes on prompts longer than the context, of the first few of each task: lm-eval truncates them on the left."""
    long = {}
    for task in tasks:
        count = min(limit or SAMPLED, SAMPLED, len(task.eval_docs))
        task.build_all_requests(
            limit=count,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=_in_template(tokenizer) if chat else None,
            tokenizer_name=tokenizer.name_or_path if chat else "",
        )
        items = {request.doc_id for request in task.instances if _length(request, tokenizer, answer) > positions + 1}
        if items:
            long[task.task_name] = len(items), count
    if not long:
        return []
    whole = benchmarks.summary([name for name, (items, count) in long.items() if items == count])
    partly = {name: numbers for name, numbers in long.items() if numbers[0] < numbers[1]}
    some = ", ".join(f"{items} of {count} of {name}" for name, (items, count) in partly.items())
    if len(some) >= 500:
        some = f"some of {benchmarks.summary(partly)}"
    return [
        f"prompts too long for the model's {positions} positions, of the first {SAMPLED} of each task: "
        + "; ".join(filter(None, [f"all of {whole}" if whole else "", some]))
        + "; lm-eval leaves out their beginning, so examples before the question are lost"
    ]


def _in_template(tokenizer: Any) -> Any:
    """A conversation as lm-eval renders it."""

    def render(turns: list[dict], add_generation_prompt: bool = True) -> str:
        return apply_chat_template(
            tokenizer,
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    return render


def _length(request: Any, tokenizer: Any, answer: int) -> int:
    """Tokens of prompt and choice, or of prompt and answer (and one, as lm-eval counts)."""
    if request.request_type == "loglikelihood":
        return len(tokenizer.encode(request.args[0] + request.args[1]))
    if request.request_type == "generate_until":
        max_gen_toks = answer or request.args[1].get("max_gen_toks", MAX_GEN_TOKS)
        return len(tokenizer.encode(request.args[0])) + max_gen_toks + 1
    return 0  # a text in windows is not truncated


def _max_gen_toks(task: dict[str, Any], answer: int) -> int:
    """Tokens that an answer to a task may have; 0: it generates none."""
    if task.get("output_type") != "generate_until":
        return 0
    return answer or (task.get("generation_kwargs") or {}).get("max_gen_toks", MAX_GEN_TOKS)
