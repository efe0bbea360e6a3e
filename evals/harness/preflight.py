"""What would spoil an evaluation after hours, found before it starts: what cannot go on, what a reader must know."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tunebook.common.errors import UserError
from tunebook.evals import sandbox
from tunebook.evals.harness.catalog import TASKS, Benchmarks
from tunebook.evals.harness.suites import PUBLISHED

LOOKED_AT = 8  # prompts of each task whose length is looked at beforehand
IFEVAL = ("langdetect", "immutabledict", "nltk")
ANSWER = 256  # lm-eval's tokens of an answer where a task says nothing


def problems(
    found: Benchmarks, folder: Path | None, tokenizer: Any, positions: int, chat: bool, allow_code: bool, answer: int
) -> list[str]:
    """What is wrong, a line each, before any data is loaded.

    Args:
        folder: --benchmark_dir. positions: tokens that the model takes. answer: --max_gen_toks; 0: each task's own.
    """
    lines = []
    if chat and not isinstance(tokenizer.chat_template, str):
        lines.append("the tokenizer has no chat template: leave --chat_template out, or choose --suite quick or core")
    lines += _data(found, folder) + _code(found, allow_code) + _ifeval(found)
    long = {name: room for name, task in found.leaves.items() if (room := _answer(task, answer)) >= positions}
    if long:
        lines.append(
            f"{found.named(long)}: an answer may have {max(long.values())} tokens, and the model takes "
            f"{positions} with the prompt; --max_gen_toks {min(128, positions // 4)} lets answers have fewer"
        )
    return lines


def _data(found: Benchmarks, folder: Path | None) -> list[str]:
    if folder is None:
        return []
    wanted: dict[tuple[str, str], list[str]] = {}
    for name, task in found.leaves.items():
        if "custom_dataset" not in task and task.get("dataset_path"):
            path = task["dataset_path"]
            config = task.get("dataset_name") or ""
            missing = config if (folder / path).is_dir() and config not in _configs(folder / path, config) else ""
            if missing or not (folder / path).is_dir():
                wanted.setdefault((path, missing), []).append(name)
    return [
        f"{found.named(names)}: --benchmark_dir {folder} has no "
        + (f"configuration {config} in {path}/README.md" if config else f"folder {path}/")
        for (path, config), names in wanted.items()
    ]


@cache
def _configs(folder: Path, otherwise: str) -> set[str]:
    """The configurations that a data set's card names; a card that names none leaves it to the loader."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    parts = text.split("---\n")
    head = (yaml.safe_load(parts[1]) or {}) if text.startswith("---\n") and len(parts) > 2 else {}
    return {config["config_name"] for config in head.get("configs", [])} or {otherwise}


def _code(found: Benchmarks, allowed: bool) -> list[str]:
    """Programs run contained, with leave, or not at all."""
    lines = []
    unsafe = [name for name, task in found.leaves.items() if task.get("unsafe_code")]
    ours = [name for name in unsafe if Path(str(found.manager.task_index[name].yaml_path)).is_relative_to(TASKS)]
    theirs = [name for name in unsafe if name not in ours]
    if theirs:
        lines.append(
            f"{found.named(theirs)}: lm-eval would run the model's programs with all that you may do; "
            "humaneval_contained contains them (if you want it all the same: lm_eval run --confirm_run_unsafe_code)"
        )
    if ours and not allowed:
        lines.append(f"{found.named(ours)}: runs programs that the model writes, contained; allow it with --allow_code")
    elif ours:
        try:
            sandbox.check()
        except UserError as error:
            lines.append(f"{found.named(ours)}: {error}")
    return lines


def _ifeval(found: Benchmarks) -> list[str]:
    """Without punkt_tab 64 of its 541 prompts cannot be judged, which lm-eval finds out after all are answered."""
    names = [name for name in found.leaves if name.rpartition("_")[2] == "ifeval"]
    if not names:
        return []
    if missing := [package for package in IFEVAL if importlib.util.find_spec(package) is None]:
        return [f"{found.named(names)}: pip install {' '.join(missing)}"]
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return [
            f"{found.named(names)}: it needs NLTK's punkt_tab. With a network: python -m nltk.downloader punkt_tab. "
            "Without one: copy tokenizers/punkt_tab from another machine to a folder and set NLTK_DATA to that folder"
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
    found: Benchmarks, tasks: list[Any], tokenizer: Any, positions: int, chat: bool, limit: int | None, answer: int
) -> list[str]:
    """Notes on prompts that do not fit: lm-eval leaves out their beginning. The first of each task are looked at."""
    long = {}
    for task in tasks:
        count = min(limit or LOOKED_AT, LOOKED_AT, len(task.eval_docs))
        task.build_all_requests(
            limit=count,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=_in_template(tokenizer) if chat else None,
            tokenizer_name=tokenizer.name_or_path if chat else "",
        )
        items = {asked.doc_id for asked in task.instances if _length(asked, tokenizer, answer) > positions + 1}
        if items:
            long[task.task_name] = len(items), count
    if not long:
        return []
    whole = found.named([name for name, (items, count) in long.items() if items == count])
    some = ", ".join(f"{items} of {count} of {name}" for name, (items, count) in long.items() if items < count)
    some = (
        some
        if len(some) < 500
        else f"some of {found.named([n for n, (items, count) in long.items() if items < count])}"
    )
    return [
        f"prompts too long for the model's {positions} positions, of the first {LOOKED_AT} of each task: "
        + "; ".join(filter(None, [f"all of {whole}" if whole else "", some]))
        + "; lm-eval leaves out their beginning, so examples before the question are lost"
    ]


def _in_template(tokenizer: Any) -> Any:
    """A conversation as lm-eval renders it."""

    def render(turns: list[dict], add_generation_prompt: bool = True) -> str:
        words = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return tokenizer.apply_chat_template(turns, tokenize=False, **words)

    return render


def _length(asked: Any, tokenizer: Any, answer: int) -> int:
    """Tokens that a request takes: prompt and choice, or prompt and room for an answer (and one, as lm-eval counts)."""
    if asked.request_type == "loglikelihood":
        return len(tokenizer.encode(asked.args[0] + asked.args[1]))
    if asked.request_type == "generate_until":
        return len(tokenizer.encode(asked.args[0])) + (answer or asked.args[1].get("max_gen_toks", ANSWER)) + 1
    return 0  # a text in windows: nothing is left out


def _answer(task: dict[str, Any], wanted: int) -> int:
    """Tokens that an answer to a task may have; 0: none is written."""
    if task.get("output_type") != "generate_until":
        return 0
    return wanted or (task.get("generation_kwargs") or {}).get("max_gen_toks", ANSWER)
