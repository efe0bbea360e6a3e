"""Training on one GPU: the recipes of this collection beside plain TRL and PEFT, on Llama shapes of 1B and 8B.

    python benchmarks/gpu.py --json out.json
    python benchmarks/gpu.py --quick

Weights and token ids are random, lengths of rows are Alpaca's; nothing is loaded from a Hub. Every case is a process of
its own: full fine-tuning, LoRA and QLoRA, unpacked and packed, each with
- tunebook: Unsloth, rows of like length together or our packing, and the values of the recipes;
- TRL: SFTTrainer and its defaults, in a process without Unsloth. As its documentation advises, a frozen base is loaded
  in bfloat16 or NF4; a model that trains in full is loaded as TRL does by default, in float32.
Both have the same rows, rows a step, targets and rank. Tokens are real ones: padding is work that earns nothing.

Share of the peak: operations that a token needs, times tokens a second, over the card's dense bfloat16 rate. A token
needs 6·N for N parameters that train (2 forward, 2 for gradients of activations, 2 for those of weights) and 4·N for
frozen ones. N leaves out an embedding table that is only looked up; attention, and what checkpointing computes twice,
are not counted. Peak memory is torch's own and what a paged optimizer holds beside it.

The next process imports its libraries while one runs, and begins when told. Without CUDA only --quick runs: a tiny
shape, where TRL's loss (a Triton kernel) is replaced by Unsloth's torch code for it, for TRL cannot train there.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases.random_llama import numbers

from tunebook.common import cli, errors

# Dense bfloat16 operations a second by the vendor's data sheets, by a pattern of the card's name.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12,
         "L40S": 362e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12}  # fmt: skip
LIMIT = 90  # seconds of a case, once it is its turn
WRITING = 150  # seconds of writing random weights: 16 GB for 8B
METHODS = ("QLoRA", "LoRA", "full")
WAYS = ("tunebook", "TRL")


@dataclass
class Args:
    json: str = ""  # write the figures here
    sizes: list[str] = field(default_factory=lambda: ["1B", "8B"])  # of the random Llamas
    quick: bool = False  # a tiny shape and four cases; works without a GPU
    minutes: float = 9  # a case that would begin later is not run, and said to be so
    folder: str = ""  # holds the random models while it runs, 19 GB; default: a temporary folder


def main(args: Args) -> dict:
    import torch

    begun, gpu = time.monotonic(), torch.cuda.is_available()
    if not gpu and not args.quick:
        raise errors.UserError("benchmarks/gpu.py needs a CUDA GPU; --quick runs its code without one, on a tiny shape")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    total = 0
    if gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        machine = f"{torch.cuda.get_device_name(0)}, {total / 2**30:.0f} GiB; {machine}"
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        cases = every_case(args, Path(folder))
        for case in cases:
            if case["method"] == "full" and gpu and (reason := too_large(case, total)):
                case.update(status="skipped", error=reason)
        run_all([case for case in cases if "status" not in case], Path(folder), begun + 60 * args.minutes)
    peak, source = peak_rate(torch.cuda.get_device_name(0) if gpu else "", cases)
    for case in cases:
        if case["status"] == "measured" and case["method"] != "make" and peak:
            case["share_of_peak"] = case["tokens_per_second"] * operations(case) / peak
    result = {"machine": machine, "seconds": time.monotonic() - begun, "peak_rate": peak, "peak_rate_from": source}
    result |= {"gpu": gpu, "torch": torch.__version__}
    result |= {"cases": [{k: v for k, v in case.items() if k != "folder"} for case in cases]}
    show(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = [case for case in cases if case["status"] in ("failed", "not run")]
    if failed:
        raise errors.CheckFailed(f"{len(failed)} of {len(cases)} cases did not end well; the table says which")
    return result


def every_case(args: Args, folder: Path) -> list[dict[str, Any]]:
    """The cases in the order in which they run, ours and TRL's next to each other."""
    if args.quick:
        todo = [("tiny", "full", True), ("tiny", "QLoRA", False)]
    else:
        todo = [(size, method, packed) for size in args.sizes for method in METHODS for packed in (False, True)]
    cases: list[dict[str, Any]] = []
    for size, method, packed in todo:
        at = {"size": size, "quick": args.quick, "folder": str(folder / size)}
        if not any(case["size"] == size for case in cases):
            cases.append({**at, "method": "make", "packed": False, "way": "tunebook"})
        cases += [{**at, "method": method, "packed": packed, "way": way} for way in WAYS]
    return cases


def too_large(case: dict[str, Any], memory: int) -> str:
    """Why full fine-tuning cannot fit the card, or nothing."""
    parameters, _ = numbers(case["size"])
    # TRL loads float32 and keeps Adam's two float32 states; ours loads bfloat16, with the same states.
    each = 2 + 2 + 8 if case["way"] == "tunebook" else 4 + 4 + 8
    if each * parameters < 0.9 * memory:
        return ""
    parts = "2 weight + 2 gradient + 8 Adam" if case["way"] == "tunebook" else "4 weight + 4 gradient + 8 Adam"
    return (
        f"does not fit: {parameters / 1e9:.2f} billion parameters x ({parts}) bytes = "
        f"{each * parameters / 2**30:.0f} GiB of {memory / 2**30:.0f}"
    )


def run_all(cases: list[dict[str, Any]], logs: Path, end: float) -> None:
    """Run each case in its process, the next one importing meanwhile, and add what it found to it."""
    children = [Child(case, logs / f"{place}") for place, case in enumerate(cases)]
    try:
        for place, (case, child) in enumerate(zip(cases, children, strict=True)):
            left = end - time.monotonic()
            if left < 15:
                case.update(status="not run", error="the time of --minutes was over")
            else:
                child.begin()
                if place + 1 < len(cases):
                    children[place + 1].start()
                case.update(child.end(min(WRITING if case["method"] == "make" else LIMIT, left)))
            print(line(case), flush=True)
    finally:
        for child in children:
            child.kill()


class Child:
    """The process of a case: started (it imports), begun (it trains), ended (what it found, or why not)."""

    def __init__(self, case: dict[str, Any], place: Path):
        self.case = {**case, "out": f"{place}.json"}
        self.out, self.log = place.with_suffix(".json"), place.with_suffix(".log")
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        if self.process is None:
            with self.log.open("w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [sys.executable, str(Path(__file__).parent / "cases" / "gpu.py"), json.dumps(self.case)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                    text=True,
                )
        return self.process

    def begin(self) -> None:
        pipe = self.start().stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended while it imported; what it wrote says why
            assert pipe is not None
            pipe.write("begin\n")
            pipe.close()

    def end(self, limit: float) -> dict[str, Any]:
        process = self.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            return {"status": "failed", "error": f"not done after {limit:.0f} s; it wrote: {self.last_line()}"}
        if self.out.exists():
            return json.loads(self.out.read_text(encoding="utf-8"))
        return {"status": "failed", "error": f"ended with {process.returncode}: {self.last_line()}"}

    def last_line(self) -> str:
        lines = [text for text in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
        return lines[-1].strip()[:300] if lines else "nothing"

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def peak_rate(card: str, cases: list[dict[str, Any]]) -> tuple[float | None, str]:
    """Dense bfloat16 operations a second of the card, and where the figure is from."""
    for name, rate in PEAKS.items():
        if re.search(rf"\b{name}\b", card):
            return rate, f"data sheet of {name}"
    measured = [case["matmul_rate"] for case in cases if "matmul_rate" in case]
    return max(measured, default=None), "a large matrix product, measured here"


def operations(case: dict[str, Any]) -> int:
    """Floating-point operations that training needs for a token; see the docstring of this file."""
    _, multiplied = numbers(case["size"])
    return 6 * multiplied if case["method"] == "full" else 4 * multiplied + 6 * case["trainable"]


def line(case: dict[str, Any]) -> str:
    """A case in words, as it ends."""
    if case["method"] == "make":
        name = f"{case['size']}: random weights"
    else:
        name = f"{case['size']} {case['method']} {'packed' if case['packed'] else 'unpacked'}, {case['way']}"
    if case["status"] != "measured":
        return f"{name}: {case['status']}: {case['error']}"
    if case["method"] == "make":
        return f"{name} written"
    return f"{name}: {case['tokens_per_second']:,.0f} tokens/s, {case['peak_bytes'] / 2**30:.2f} GiB"


def show(result: dict[str, Any]) -> None:
    """The table, and under it what did not end well and what packing was seen to do."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "way", "tokens/s", "of peak", "GiB", "padding", "x TRL", "memory")
    done = {(c["size"], c["method"], c["packed"], c["way"]): c for c in result["cases"] if c["method"] != "make"}
    for (*shape, way), case in done.items():
        words = [f"{shape[0]} {shape[1]}{' packed' if shape[2] else ''}", way]
        if case["status"] != "measured":
            table.add_row(*words, case["status"])
            continue
        share = f"{100 * case['share_of_peak']:.1f} %" if "share_of_peak" in case else "–"
        words += [f"{case['tokens_per_second']:,.0f}", share, f"{case['peak_bytes'] / 2**30:.2f}"]
        words.append(f"{100 * case['padding_share']:.1f} %")
        other = done[(*shape, "TRL")]
        if way != "TRL" and other["status"] == "measured":
            words += [f"{case[name] / other[name]:.2f}" for name in ("tokens_per_second", "peak_bytes")]
        table.add_row(*words)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if result["peak_rate"]:
        console.print(f"peak: {result['peak_rate'] / 1e12:.3g} Tflop/s ({result['peak_rate_from']})")
    for case in result["cases"]:
        if case["status"] != "measured":
            console.print(line(case), markup=False)
        elif case["method"] != "make" and case["packed"]:
            seen = case["isolation"]
            said = seen if isinstance(seen, str) else f"documents apart, logits differ by {seen:.1e}"
            console.print(f"{case['size']} {case['method']} packed, {case['way']}: {said}", markup=False)
    if not result["gpu"]:
        console.print("no GPU: a tiny shape on the CPU; TRL's loss here is Unsloth's torch code for it")


if __name__ == "__main__":
    cli.run(main, Args)
