"""The forecast of a run against what the run took: full, LoRA and QLoRA, with and without recomputed activations.

    python benchmarks/forecast.py --json out.json
    python benchmarks/forecast.py --quick

Each configuration trains a random Llama for some steps in a process of its own, as the recipes do. `arithmetic` is
known before the first whole batch is run, `forecast` after the rehearsal, `measured` after training. On a CPU memory is
what the process holds, libraries and what its allocator keeps from the rehearsal with it; the last column leaves the
libraries out of both. Recomputing activations is quoted at 60 % less memory and 20 % more time; below the table is what
it did here, to the memory above the libraries and to the time.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import cli

ROOT = Path(__file__).parent.parent


@dataclass
class Args:
    rows: int = 16  # of a batch
    width: int = 128  # tokens of the longest rows
    steps: int = 12
    hidden_size: int = 256
    layers: int = 12
    vocabulary: int = 16_384
    json: str = ""  # write the figures here
    quick: bool = False  # a tiny model, two configurations


def main(args: Args) -> dict:
    from rich.console import Console
    from rich.table import Table

    if args.quick:
        args = Args(8, 32, 3, 64, 2, 4096, args.json, True)
    cases = [(method, state) for method in ("full", "lora", "qlora") for state in ("off", "on")]
    with tempfile.TemporaryDirectory() as folder:
        parameters = make(Path(folder), args)
        found = {case: run(folder, case, args) for case in (cases[2:4] if args.quick else cases)}
    table = Table("method", "recomputed", "arithmetic", "forecast", "measured", "error", "seconds", "measured", "error",
                  "error above the libraries")  # fmt: skip
    for (method, state), one in found.items():
        table.add_row(
            method,
            state,
            *(f"{one[name] / 2**20:,.0f} MiB" for name in ("arithmetic_bytes", "forecast_bytes", "measured_bytes")),
            f"{one['error']:+.1%}",
            *(f"{one[name]:.1f}" for name in ("forecast_seconds", "measured_seconds")),
            f"{one['error_seconds']:+.1%}",
            f"{one['error_above_libraries']:+.1%}",
        )
    recomputing = {method: compare(found, method) for method, state in found if state == "on"}
    Console(width=140).print(table, f"{parameters / 1e6:.1f} million parameters", recomputing)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "parameters": parameters,
        "seconds": {f"{method} {state}": one["measured_seconds"] for (method, state), one in found.items()},
        "cases": {f"{method} {state}": one for (method, state), one in found.items()},
        "recomputing": recomputing,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def make(folder: Path, args: Args) -> int:
    """Save a random Llama with pocket's tokenizer; returns its parameters."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from common import models

    tokenizer = AutoTokenizer.from_pretrained(models.locate("pocket"))
    heads = max(2, args.hidden_size // 64)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden_size,
            intermediate_size=args.hidden_size * 11 // 4 // 64 * 64,
            num_hidden_layers=args.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def run(folder: str, case: tuple[str, str], args: Args) -> dict:
    words = [folder, *case, str(args.rows), str(args.width), str(args.steps)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cases.forecast", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(case)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    one = json.loads(done.stdout.splitlines()[-1])
    libraries = one["libraries_bytes"]
    one["error"] = one["forecast_bytes"] / one["measured_bytes"] - 1
    one["error_seconds"] = one["forecast_seconds"] / one["measured_seconds"] - 1
    one["error_above_libraries"] = (one["forecast_bytes"] - libraries) / (one["measured_bytes"] - libraries) - 1
    return one


def compare(found: dict, method: str) -> dict[str, float]:
    """What recomputing saved of the memory above the libraries, and what it added to the time."""
    off, on = found[method, "off"], found[method, "on"]
    held = [one["measured_bytes"] - one["libraries_bytes"] for one in (off, on)]
    return {
        "memory_saved": 1 - held[1] / held[0],
        "time_added": on["measured_seconds"] / off["measured_seconds"] - 1,
        "cpu_added": on["cpu"] / off["cpu"] - 1,
    }


if __name__ == "__main__":
    cli.run(main, Args)
