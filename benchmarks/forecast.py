"""The forecast beside what happens, and what activation checkpointing gives and costs: six runs, each its own process.

    python benchmarks/forecast.py --json out.json
    python benchmarks/forecast.py --quick

Full fine-tuning, LoRA and QLoRA, with and without checkpointing, of a random Llama of 97 M parameters (512 wide, 20
layers, vocabulary 32,000; its tensors outweigh the libraries) on random rows with lengths as Alpaca's are spread,
through SFTTrainer with Unsloth as the recipes use it. Peaks are of the training alone and of the whole process; `above
bare` is without what the process held before the model. Two more runs set MALLOC_MMAP_THRESHOLD_, with which glibc
keeps nothing that is freed: there the arithmetic of tensors is all there is.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tunebook.common import cli
from tunebook.common.errors import CheckFailed

METHODS = ("full", "lora", "qlora")
QUOTED = "quoted for checkpointing: 60 % less memory, 20 % slower"
PEAK, SECONDS = 0.15, 0.25  # how far a forecast may be off


@dataclass
class Args:
    steps: int = 24  # of training, after the rehearsal
    hidden_size: int = 512
    layers: int = 20
    longest: int = 192  # tokens of a row
    batch_size: int = 8
    json: str = ""  # write the figures here
    quick: bool = False  # a tiny model, LoRA alone
    one: str = ""  # set by itself: run this method in this process
    recompute: bool = False  # set by itself
    model: str = ""  # set by itself


def main(args: Args) -> dict:
    if args.one:
        found = one(args)
        print("\n" + json.dumps(found))
        return found
    if args.quick:
        args.steps, args.hidden_size, args.layers, args.longest = 4, 64, 2, 48
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make_model(args, folder)
        methods = ("lora",) if args.quick else METHODS
        cases = [(method, recompute, False) for method in methods for recompute in (False, True)]
        cases += [] if args.quick else [("full", False, True), ("lora", False, True)]
        runs = [apart(args, folder, *case) for case in cases]
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, glibc {platform.libc_ver()[1]}",
        "model": f"Llama, {runs[0]['parameters']:,} parameters",
        "runs": runs,
        "checkpointing": checkpointing(runs),
        "quoted": QUOTED,
        "seconds": time.monotonic() - begun,
    }
    show(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    off = [run for run in runs if abs(run["peak_error"]) > PEAK or abs(run["seconds_error"]) > SECONDS]
    if off and not args.quick:
        names = ", ".join(name(run) for run in off)
        raise CheckFailed(f"over {PEAK:.0%} of memory or {SECONDS:.0%} of time: {names}")
    return result


def make_model(args: Args, folder: str) -> None:
    """Save a random model, with pocket's tokenizer, whose ids it takes."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from tunebook.common import models

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096 if args.quick else 32_000,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models.resolve("pocket")).save_pretrained(folder)


def apart(args: Args, folder: str, method: str, recompute: bool, given_back: bool) -> dict:
    """One case in a process of its own."""
    words = [f"--{field}={getattr(args, field)}" for field in ("steps", "longest", "batch_size")]
    words += ["--one", method, "--model", folder, "--recompute" if recompute else "--no-recompute"]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": str(2**17)} if given_back else {})
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{method}, checkpointing {recompute}: {done.stderr[-2000:]}")
    run = json.loads(done.stdout.strip().splitlines()[-1]) | {"given_back": given_back}
    print(f"{name(run)}: {run['measured_bytes'] / 2**20:.0f} MiB, {run['measured_seconds']:.0f} s", flush=True)
    return run


def one(args: Args) -> dict:
    """Forecast and train a method here."""
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from tunebook.common import models, resources
    from tunebook.common.batching import samplers
    from tunebook.common.estimate import forecast
    from tunebook.common.models import device

    bare = resources.held()
    model, tokenizer = models.load(args.model, 512, four_bit=args.one == "qlora", full=args.one == "full")
    if args.one != "full":
        settings = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", random_state=0)
        model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=args.recompute, **settings)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_length=512,
            dataset_kwargs={"skip_prepare_dataset": True},
            per_device_train_batch_size=args.batch_size,
            gradient_checkpointing=args.recompute,
            max_steps=args.steps,
            learning_rate=1e-5,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            logging_steps=1000,
            **device.current().precision,
        )
        rows = make_rows(args, len(tokenizer))
        trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=config)
        models.train_in_float32(trainer.model)
        samplers.group_by_length(trainer)
        expected = forecast.forecast(trainer)
        resources.release()
        peak, begun, cpu = resources.Peak(), time.monotonic(), time.process_time()
        trainer.train()
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    return {
        "method": args.one,
        "checkpointing": args.recompute,
        "parameters": models.parameters(model)[1],
        "bare_bytes": bare,
        "parts": expected.parts,
        "arithmetic_bytes": expected.arithmetic_bytes,
        "forecast_bytes": expected.peak_bytes,
        "measured_bytes": peak.stop(),
        "forecast_seconds": expected.seconds,
        "measured_seconds": seconds,
        "measured_cpu_seconds": cpu,
    } | errors(expected, peak.bytes, seconds, bare)


def errors(expected, measured: int, seconds: float, bare: int) -> dict:
    """Forecast over measured, less one; also of the arithmetic, and without what the bare process holds."""
    return {
        "peak_error": expected.peak_bytes / measured - 1,
        "peak_error_above_bare": (expected.peak_bytes - bare) / (measured - bare) - 1,
        "arithmetic_error": expected.arithmetic_bytes / measured - 1,
        "arithmetic_error_above_bare": (expected.arithmetic_bytes - bare) / (measured - bare) - 1,
        "seconds_error": expected.seconds / seconds - 1,
    }


def make_rows(args: Args, vocabulary: int):
    """Random rows; lengths are spread as those of Alpaca (median 90, a few twice as long), answers are half of them."""
    import numpy
    from datasets import Dataset

    random = numpy.random.default_rng(0)
    lengths = numpy.clip(random.lognormal(numpy.log(90), 0.4, 4 * args.steps * args.batch_size), 16, args.longest)
    ids = [random.integers(3, vocabulary, int(length)).tolist() for length in lengths]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def checkpointing(runs: list[dict]) -> dict:
    """Memory saved above the bare process, and the slow-down, of each method that was run both ways."""
    found = {}
    for method in METHODS:
        pair = {run["checkpointing"]: run for run in runs if run["method"] == method and not run["given_back"]}
        if len(pair) == 2:
            above = {key: run["measured_bytes"] - run["bare_bytes"] for key, run in pair.items()}
            tensors = {key: run["arithmetic_bytes"] - run["parts"]["process"] for key, run in pair.items()}
            activations = {key: run["parts"]["activations"] for key, run in pair.items()}
            found[method] = {
                "saved_of_process": 1 - pair[True]["measured_bytes"] / pair[False]["measured_bytes"],
                "saved_above_bare": 1 - above[True] / above[False],
                "saved_of_tensors": 1 - tensors[True] / tensors[False],
                "saved_of_activations": 1 - activations[True] / activations[False],
                "slower": pair[True]["measured_seconds"] / pair[False]["measured_seconds"] - 1,
                "slower_cpu": pair[True]["measured_cpu_seconds"] / pair[False]["measured_cpu_seconds"] - 1,
            }
    return found


def name(run: dict) -> str:
    extra = ", freed memory given back" if run["given_back"] else ""
    return f"{run['method']}, activations {'recomputed' if run['checkpointing'] else 'kept'}{extra}"


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "run", "arithmetic MiB", "forecast", "measured", "error", "above bare", "forecast s", "measured", "error"
    )
    for run in result["runs"]:
        sizes = [f"{run[key] / 2**20:.0f}" for key in ("arithmetic_bytes", "forecast_bytes", "measured_bytes")]
        times = [f"{run[key]:.1f}" for key in ("forecast_seconds", "measured_seconds")]
        peak = [f"{run[key]:+.1%}" for key in ("peak_error", "peak_error_above_bare")]
        table.add_row(name(run), *sizes, *peak, *times, f"{run['seconds_error']:+.1%}")
    saved = Table(
        "checkpointing", "saved of the process", "above bare", "of tensors", "of activations", "slower", "CPU"
    )
    for method, values in result["checkpointing"].items():
        saved.add_row(method, *(f"{value:.0%}" for value in values.values()))
    Console(width=160).print(table, saved, f"{result['model']}; {result['machine']}; {QUOTED}")


if __name__ == "__main__":
    cli.run(main, Args)
