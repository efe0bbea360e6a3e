"""Ways to make batches of the same rows: trained tokens a second of one model, in one run.

    python benchmarks/batches.py --dataset alpaca.json --tokenizer path/to/llama3 --json out.json
    python benchmarks/batches.py --dataset alpaca.json --tokenizer path/to/llama3 --model pocket
    python benchmarks/batches.py --quick

naive       every row padded to max_length
TRL         its default: rows in random order, padded to the longest of their batch
bucketed    rows of like length in a batch (batching/samplers.py)
packed      rows together in bins of max_length (batching/packing.py), attention inside each document
            (models/attention.py), with about as many tokens to a step as the other ways have
dense mask  the same bins with sdpa's own mask, which computes all products in a bin and throws most of them away

Everything else is one: LoRA of rank 16 on every linear layer, as the recipes do (--full: all weights), TRL's loss,
which projects the labeled positions alone, AdamW, and TRL's collator (packed: ours). Padding is that of all rows.
Speeds are those of a sample of steps: a way's batches cut into classes by positions, each of these into classes by
trained tokens, the middle batch of each. A step makes its batch and goes forward, backward and through the optimizer.
Ways alternate, each round repeats the sample, and medians over the rounds are shown.

The model `llama3` is a random Llama with the proportions of Llama-3-8B, 1/16 of its width and 1/4 of its layers: width
256, MLP 896, 4 heads, 1 key-value head, 8 layers; ids are folded to a vocabulary of 8,016 = 128,256 / 16. `pocket` is
the bundled model; any other name is loaded by transformers. It computes on the CPU, in float32.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunebook.common import cli, errors
from tunebook.common.tokens.lengths import lengths_of

ASKED = {"packed / naive": 4.0, "packed / TRL": 1.6, "bucketed / TRL": 1.5}  # least ratios of speeds


@dataclass
class Args:
    dataset: str = "pocket"  # a file of instruction rows
    tokenizer: str = "pocket"  # a folder or Hub name
    model: str = "llama3"  # llama3, pocket, a folder or Hub name
    max_length: int = 512  # tokens; longer rows are left out, and counted
    batch_size: int = 8
    classes: int = 4  # by positions and by trained tokens; their square is the steps of each way in a round
    rounds: int = 5
    full: bool = False  # train all weights, not LoRA
    seed: int = 0
    json: str = ""  # write the figures here
    quick: bool = False  # pocket, 128 tokens, four steps, one round


@dataclass
class Way:
    """The batches of an epoch."""

    dataset: Any
    batches: list[list[int]]  # places in dataset
    collate: Callable
    positions: Any  # int64, of each batch
    trained: Any  # int64, of each batch
    attention: str = "sdpa"

    def sample(self, classes: int) -> list[int]:
        """Places of batches: of each class by positions, the middle batch of each class by trained tokens."""
        import numpy

        found = []
        for part in numpy.array_split(numpy.argsort(self.positions, kind="stable"), classes):
            part = part[numpy.argsort(self.trained[part], kind="stable")]
            found += [int(some[len(some) // 2]) for some in numpy.array_split(part, classes)]
        return found


def main(args: Args) -> dict:
    import unsloth  # noqa: F401, I001  first: on a CPU its torch code stands in for TRL's kernel
    import torch

    from tunebook.common import data
    from tunebook.common.tokens import encoding, templates, tokenization

    if args.quick:
        args.model, args.max_length, args.classes, args.rounds = "pocket", 128, 2, 1
    tokenizer, _ = tokenization.load(args.tokenizer)
    rows = [row for side in data.load(args.dataset).values() for row in side]
    encoded, counts = encoding.encode(rows, tokenizer, templates.ALPACA, args.max_length)
    model, words = load(args)
    ways = plan(encoded, args)
    seconds = measure(model, ways, args)
    speeds = {
        name: {
            clock: int(way.trained[way.sample(args.classes)].sum()) / value for clock, value in seconds[name].items()
        }
        for name, way in ways.items()
    }
    result = {
        "rows": counts.summary(),
        "model": words,
        "padding": {name: float(1 - counts.tokens / way.positions.sum()) for name, way in ways.items()},
        "tokens_per_step": {name: counts.tokens / len(way.batches) for name, way in ways.items()},
        "steps": args.classes**2,
        "rounds": args.rounds,
        "seconds": seconds,  # of the sample: {way: {"wall", "cpu"}}
        "trained_tokens_per_second": speeds,
        "ratios": {
            pair: {clock: speeds[one][clock] / speeds[other][clock] for clock in ("wall", "cpu")}
            for pair in ASKED
            for one, other in [pair.split(" / ")]
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    show(result, args.quick)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return result


def load(args: Args) -> tuple[Any, str]:
    """The model in float32 with TRL's loss, and what it is in words."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head
    from unsloth_zoo.cpu.ops import patch_trl_fused_lm_head

    from tunebook.common import models

    patch_trl_fused_lm_head()  # TRL's own loss is a kernel for GPUs

    torch.manual_seed(args.seed)
    if args.model == "llama3":
        sizes = dict(hidden_size=256, intermediate_size=896, num_hidden_layers=8, num_attention_heads=4)
        config = LlamaConfig(vocab_size=8016, num_key_value_heads=1, max_position_embeddings=args.max_length, **sizes)
        model = LlamaForCausalLM(config).float()
    else:
        model = AutoModelForCausalLM.from_pretrained(models.resolve(args.model), dtype=torch.float32)
    # What SFTTrainer asks for when it is made.
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    config = model.config
    words = (
        f"{args.model}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters, "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, vocabulary {config.vocab_size}"
    )
    if not args.full:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    return model.train(), f"{words}; {'all weights train' if args.full else 'LoRA of rank 16'}"


def plan(encoded: Any, args: Args) -> dict[str, Way]:
    """Every way's batches of one epoch, each row once."""
    import numpy
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from tunebook.common.batching import collator, packing, samplers
    from tunebook.common.tokens.lengths import IGNORE_INDEX

    def trained(dataset: Any) -> Any:
        labels = dataset.with_format("arrow")[:]["labels"].combine_chunks()
        trains = numpy.concatenate([[0], numpy.cumsum(labels.flatten().to_numpy() != IGNORE_INDEX)])
        ends = numpy.concatenate([[0], numpy.cumsum(labels.value_lengths().to_numpy())])
        return numpy.diff(trains[ends])

    def way(dataset: Any, order: Any, size: int, collate: Callable, width: int = 0, attention: str = "sdpa") -> Way:
        lengths, labeled, starts = lengths_of(dataset), trained(dataset), numpy.arange(0, len(order), size)
        widths = numpy.maximum.reduceat(numpy.maximum(lengths, width)[order], starts)
        positions = widths * numpy.diff(starts, append=len(order))
        parts = [order[start : start + size].tolist() for start in starts]
        return Way(dataset, parts, collate, positions, numpy.add.reduceat(labeled[order], starts), attention)

    def shuffled(count: int) -> Any:
        return numpy.random.default_rng(args.seed).permutation(count)

    lengths, size, most = lengths_of(encoded), args.batch_size, args.max_length
    bins = packing.pack_dataset(encoded, most)
    each = max(1, round(size * lengths.mean() / most))  # bins with about as many tokens as `size` rows
    pad, pad_all = DataCollatorForLanguageModeling(0), DataCollatorForLanguageModeling(0, pad_to_multiple_of=most)
    together = collator.PackedCollator(0)
    return {
        "naive": way(encoded, shuffled(len(encoded)), size, pad_all, width=most),
        "TRL": way(encoded, shuffled(len(encoded)), size, pad),
        "bucketed": way(encoded, samplers.LengthGroupedSampler(lengths, size, args.seed).order(0), size, pad),
        "packed": way(bins, shuffled(len(bins)), each, together, attention="documents"),
        "dense mask": way(bins, shuffled(len(bins)), each, together),
    }


def measure(model: Any, ways: dict[str, Way], args: Args) -> dict[str, dict[str, float]]:
    """Seconds of each way's sample, medians over the rounds."""
    import torch

    from tunebook.common.models import attention

    if not attention.use_document_attention(model):
        raise errors.CheckFailed(f"{args.model} cannot attend by document")
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-4, fused=True
    )
    samples = {name: way.sample(args.classes) for name, way in ways.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):  # the first one warms up, with one step of each way
        for name, way in ways.items():
            model.set_attn_implementation(way.attention)
            wall, cpu = time.perf_counter(), time.process_time()
            for place in samples[name] if number else samples[name][:1]:
                step(model, optimizer, way, place)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    columns = {name: list(zip(*values[1:], strict=True)) for name, values in times.items()}
    return {
        name: dict(zip(("wall", "cpu"), map(statistics.median, column), strict=True))
        for name, column in columns.items()
    }


def step(model: Any, optimizer: Any, way: Way, place: int) -> None:
    import torch

    from tunebook.common.tokens.lengths import IGNORE_INDEX

    batch = way.collate([way.dataset[row] for row in way.batches[place]])
    vocabulary = model.config.vocab_size
    batch["input_ids"] %= vocabulary
    batch["labels"] = torch.where(batch["labels"] == IGNORE_INDEX, IGNORE_INDEX, batch["labels"] % vocabulary)
    count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    assert count == way.trained[place]  # all ways train the same labels
    (-model(**batch, fused_lm_head=True).log_probs.sum() / count).backward()
    optimizer.step()
    optimizer.zero_grad()


def show(result: dict[str, Any], quick: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    speeds = {name: list(clocks.values()) for name, clocks in result["trained_tokens_per_second"].items()}
    table = Table("way", "positions a token", "padding", "trained tokens a second", "a CPU second", "x naive", "x TRL")
    for name, padding in result["padding"].items():
        times = [f"{speeds[name][0] / speeds[other][0]:.2f}" for other in ("naive", "TRL")]
        table.add_row(name, f"{1 / (1 - padding):.3f}", f"{padding:.2%}", *(f"{n:.0f}" for n in speeds[name]), *times)
    Console().print(result["rows"], result["model"], table, sep="\n")
    for pair, ratio in result["ratios"].items():
        asked = "" if quick else f", asked {ASKED[pair]}"  # of real lengths
        print(f"{pair}: {ratio['wall']:.2f}, by CPU seconds {ratio['cpu']:.2f}{asked}")


if __name__ == "__main__":
    cli.run(main, Args)
