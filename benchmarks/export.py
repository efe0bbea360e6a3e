"""What each method has trained, in each format it is served in: the points of the proof, time and memory.

    python benchmarks/export.py --model smollm2 --json benchmarks/results/export_smollm2.json
    python benchmarks/export.py --quick

Each method is its recipe for a few steps; rsLoRA is a copy of `lora_alpaca` by `tunebook cp` with `use_rslora=True` in
it. Each export is one `tunebook export`, which converts and proves itself against the run: seconds and memory are those
of the command, and so the same of both files that one makes. Memory is what the command and the processes that it
starts hold at once, looked at five times a second.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tunebook.common import cli, data
from tunebook.common.errors import CheckFailed

COMMAND = (sys.executable, "-m", "tunebook.common.commands")
RECIPES = Path(__file__).parent.parent / "recipes"
METHODS = {"full": "sft_alpaca", "lora": "lora_alpaca", "qlora": "qlora_alpaca", "dora": "lora_alpaca", "rslora": ""}
EXPORTS = {
    "merged": ("merged",),
    "gguf": ("gguf", "--quantization", "f16", "q8_0"),
    "gguf_adapter": ("gguf", "--as_lora"),
}


@dataclass
class Args:
    model: str = "pocket"
    dataset: str = "pocket"
    min_words: int = 1  # of an answer; with more, fewer conversations have the tokens that a proof compares
    methods: tuple[str, ...] = tuple(METHODS)
    exports: tuple[str, ...] = tuple(EXPORTS)
    steps: int = 16
    batch_size: int = 4
    max_length: int = 128  # tokens of prompt and answer
    learning_rate: float | None = None  # of adapters, a tenth of it where all weights train; default: the recipes' own
    folder: str = ""  # keep runs and exports here, and go on from what is there
    json: str = ""  # write the figures here
    quick: bool = False  # pocket, LoRA, merged, two steps


def main(args: Args) -> dict[str, Any]:
    if args.quick:
        args.methods, args.exports, args.steps = ("lora",), ("merged",), 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        choose_rows(args, folder / "rows")
        runs, exports, seconds = {}, [], 0.0
        for method in args.methods:
            runs[method] = train(args, method, folder)
            for kind in args.exports:
                exports += (found := export(method, kind, folder))
                seconds += found[0]["seconds"]
    result = {
        "machine": f"{processor()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "args": {name: value for name, value in vars(args).items() if name not in ("folder", "json", "quick")},
        "runs": runs,
        "exports": exports,
        "seconds": seconds,  # of the export commands
    }
    show(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def choose_rows(args: Args, folder: Path) -> None:
    """Write the dataset's rows whose answers are long enough."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in data.load([args.dataset]).items():
        kept = [json.dumps(row) + "\n" for row in rows if len(row["output"].split()) >= args.min_words]
        (folder / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")


def train(args: Args, method: str, folder: Path) -> dict[str, Any]:
    """Run the recipe of a method, where its run is not there yet."""
    out = folder / method
    recipe = RECIPES / f"{METHODS[method]}.py"
    if method == "rslora":
        recipe = folder / "rslora_alpaca.py"
        if not recipe.exists():
            run((*COMMAND, "cp", "lora_alpaca", str(recipe)))
            text = recipe.read_text(encoding="utf-8")
            recipe.write_text(text.replace("use_rslora=False", "use_rslora=True"), encoding="utf-8")
    words = [sys.executable, str(recipe), "--output_dir", str(out), "--eval_suite", "none"]
    words += ["--model", args.model, "--dataset", str(folder / "rows"), "--max_steps", str(args.steps)]
    words += ["--per_device_train_batch_size", str(args.batch_size), "--max_length", str(args.max_length)]
    words += ["--use_dora"] if method == "dora" else []
    if args.learning_rate:
        words += ["--learning_rate", str(args.learning_rate * (0.1 if method == "full" else 1))]
    if not (out / "report.json").exists():
        code, said, _, _ = run(words)
        if code:
            raise CheckFailed(f"{method}: {said[-2000:]}")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    print(f"{method}: trained", flush=True)
    return {
        "learning_rate": report["args"]["learning_rate"],
        "loss": report["train"]["loss"][-1][1],  # of the last step
        "held_out_loss": report["eval"]["loss"],
    }


def export(method: str, kind: str, folder: Path) -> list[dict[str, Any]]:
    """Export a run, and what the proof says of each file; or why it is refused."""
    out, kept = folder / f"{method}_{kind}", folder / f"{method}_{kind}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    words = (*COMMAND, "export", str(folder / method), "--dataset", str(folder / "rows"), "--output_dir", str(out))
    code, said, seconds, peak = run((*words, "--to", *EXPORTS[kind]))
    about = {"method": method, "seconds": seconds, "peak_bytes": peak}
    if code == 2:
        message = said.strip().splitlines()[-1].replace(f"{folder}/", "")
        found = [about | {"export": kind, "outcome": "refused", "message": message}]
    elif code not in (0, 1):
        raise CheckFailed(f"{method}, {kind}: exit code {code}: {said[-2000:]}")
    else:
        proofs = json.loads((out / "export.json").read_text(encoding="utf-8"))["exports"]
        found = [about | figures(proof) for proof in proofs]
    kept.write_text(json.dumps(found), encoding="utf-8")
    for row in found:
        print(f"{method}, {row['export']}: {row['outcome']}", flush=True)
    return found


def figures(proof: dict[str, Any]) -> dict[str, Any]:
    checks = proof["checks"]
    measured = proof["weights"] | proof["outputs"]
    return {
        "export": proof["what"],
        "outcome": "holds" if proof["holds"] else "fails",
        "points": {point: all(one["holds"] for one in checks if one["point"] == point) for point in range(1, 6)},
        "failures": [one["failure"] for one in checks if one["failure"]],
        **{name: value for name, value in measured.items() if not isinstance(value, list)},
    }


def run(words: Any) -> tuple[int, str, float, int]:
    """Exit code of a command, what it said, its seconds, and the peak of its memory."""
    begun, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = psutil.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, held(process))
            time.sleep(0.2)
        log.seek(0)
        return process.returncode, log.read(), time.monotonic() - begun, peak


def held(process: Any) -> int:
    """Bytes that a process and those under it hold."""
    total = 0
    with contextlib.suppress(psutil.Error):  # one of them has just ended
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss  # pages that two of them share count once
    return total


def processor() -> str:
    """Its name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "export", "proof", "found, lost", "logits", "likeliest", "KL", "answers", "s", "MiB")
    for row in result["exports"]:
        if row["outcome"] == "refused":
            table.add_row(row["method"], row["export"], row["outcome"])
            continue
        broken = [point for point, holds in row["points"].items() if not holds]
        table.add_row(
            row["method"],
            row["export"],
            row["outcome"] + (f" at {', '.join(map(str, broken))}" if broken else ""),
            f"{row['found']:.3f}, {row['lost']:.1%}",
            f"{row['logits_largest_difference']:.2g}",
            f"{row['top1']:.1%} of {row['tokens']}",
            f"{row['kl']:.1e}",
            f"{row['equal_answers'] * row['answers']:.0f} of {row['answers']}",
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
    Console(width=140).print(table, result["machine"])


if __name__ == "__main__":
    cli.run(main, Args)
