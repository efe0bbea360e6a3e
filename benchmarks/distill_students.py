"""What a teacher brings: the same student on the same rows and steps, from labels alone and from its teacher.

    python benchmarks/distill_students.py --json out.json
    python benchmarks/distill_students.py --side validation --seeds 1 --alpha 0.9 --temperature 1
    python benchmarks/distill_students.py --dataset runs/rows --teacher runs/teacher --fresh 256 8 --rows 1200
    python benchmarks/distill_students.py --quick

labels   cross entropy alone
online   alpha·T²·KL(teacher‖student) + (1 - alpha)·cross entropy, the teacher running beside the student
cached   the same with the teacher's k likeliest tokens from a file, made once; their KL with all others as one outcome

Each seed has its own adapters and order of rows, which all ways share, so that ways are compared in pairs; the interval
of a mean difference over seeds is Student's t, 95 %. A score is the share of greedy answers that are the reference,
whole and exact: pocket's test rows in phrasings that training rows have (seen) and in new ones (unseen); of rows of
your own it is the mean ROUGE-L of the answers, cut at 48 tokens. Loss is the cross entropy of the test rows' answers,
in nats a token; a difference is better below zero. Seconds are those of an epoch of steps without its evaluation. A
--fresh student has the teacher's architecture and tokenizer, another size and random weights, all of which are trained;
else a student is --model with LoRA. With --noise, a share of the training rows draws its answer from all rows of its
skill, as data from outside have wrong ones; the teacher has learned from right ones. Some draw what they had: of 1,600
rows and 0.3, 27 % have another answer than their own.
"""

import json
import math
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.common import cli
from tunebook.common.tokens.lengths import IGNORE_INDEX, lengths_of

T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # by freedoms

SCORES = ("all", "seen", "unseen", "rougeL", "loss")


@dataclass
class Args:
    model: str = "pocket"
    teacher: str = "pocket_teacher"
    dataset: str = "pocket"  # or a folder that `tunebook split` made
    fresh: tuple[int, ...] = ()  # hidden size and layers of a student with random weights
    max_length: int = 512  # tokens of prompt and answer; longer rows are left out
    rows: int = 800  # training rows, from the first
    noise: float = 0.0  # share of them whose answer is drawn from all rows of the same skill
    epochs: int = 5
    seeds: int = 5
    first_seed: int = 0
    alpha: float = 0.5
    temperature: float = 2.0
    beta: float = 0.0
    top_k: int = 64
    learning_rate: float = 2e-3
    batch_size: int = 16
    ways: tuple[str, ...] = ("labels", "online", "cached")
    side: str = "test"  # rows that score: test, or validation to choose values by
    json: str = ""  # write the figures here
    quick: bool = False  # 64 rows, one epoch, one seed, 40 test rows


def main(args: Args) -> dict[str, Any]:
    import torch

    begun = time.monotonic()
    if args.quick:
        args.rows, args.epochs, args.seeds = 64, 1, 1
    world = World(args)
    runs: list[dict[str, Any]] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for way in args.ways:
            runs.append({"seed": seed, "way": way, **world.run(way, seed)})
            print("  ".join(f"{name} {value:.4g}" if name != "way" else value for name, value in runs[-1].items()))
    result = {
        "args": {name: value for name, value in vars(args).items() if name not in ("json", "quick")},
        "teacher": world.score(world.teacher.model),
        "bytes_per_token": world.bytes_per_token,
        "seconds_of_the_teachers_run": world.teacher_seconds,
        "runs": runs,
        "means": {way: means(runs, way) for way in args.ways},
        "differences": {
            f"{way} - {other}": paired(runs, way, other)
            for way, other in (("online", "labels"), ("cached", "labels"), ("cached", "online"))
            if way in args.ways and other in args.ways
        },
        "seconds": time.monotonic() - begun,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    show(result)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return result


class World:
    """Rows, models and the teacher's file."""

    def __init__(self, args: Args):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

        from tunebook.common import data, distillation, models
        from tunebook.common.distillation import losses, teacher_cache, teacher_cache_writer
        from tunebook.common.tokens import encoding, templates

        self.args, self.blend = args, losses.DistillationLoss(args.alpha, args.temperature, args.beta)
        self.place = distillation.resolve_teacher(args.teacher) if args.fresh else models.resolve(args.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.place)
        sides = data.load(args.dataset)
        rows = confused(sides["train"][: args.rows], args.noise)
        self.train, _ = encoding.encode(rows, self.tokenizer, templates.ALPACA, args.max_length)
        asked = sides[args.side][: 40 if args.quick else None]
        self.encoded, _ = encoding.encode(asked, self.tokenizer, templates.ALPACA, args.max_length)
        numbered = {row.get("row", place): row for place, row in enumerate(asked, 1)}
        self.asked = [numbered[row["row"]] for row in self.encoded]  # those that are short enough
        self.prompts = [
            [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORE_INDEX]
            for row in self.encoded
        ]
        found = AutoModelForCausalLM.from_pretrained(distillation.resolve_teacher(args.teacher), dtype=torch.float32)
        self.teacher = distillation.Teacher(found, args.teacher)
        with tempfile.TemporaryDirectory() as folder:
            path, begun = Path(folder) / "targets.safetensors", time.perf_counter()
            said = (self.tokenizer, templates.ALPACA, args.teacher, args.temperature, args.top_k)
            teacher_cache_writer.make(path, self.train, self.teacher, teacher_cache.metadata_for(*said))
            self.teacher_seconds = time.perf_counter() - begun
            self.cached = teacher_cache.TeacherCache(path)  # it stays open
            self.bytes_per_token = path.stat().st_size / len(self.cached.log_rest)
        pad = DataCollatorForSeq2Seq(self.tokenizer)
        self.collate = lambda rows: pad([{name: row[name] for name in ("input_ids", "labels")} for row in rows])

    def run(self, way: str, seed: int) -> dict[str, float]:
        """Train a student and score it."""
        import torch
        from transformers import get_scheduler

        from tunebook.common import distillation
        from tunebook.common.batching import samplers
        from tunebook.common.distillation import losses, teacher_cache

        args, blend = self.args, self.blend if way != "labels" else losses.DistillationLoss(alpha=0.0)
        torch.manual_seed(seed)
        model = self.student().train()
        distillation.prepare(model, args.model)
        teacher = self.cached if way == "cached" else self.teacher
        collate = teacher_cache.TargetCollator(self.collate, self.cached) if way == "cached" else self.collate
        order = samplers.LengthGroupedSampler(lengths_of(self.train), args.batch_size, seed)
        steps = args.epochs * math.ceil(len(order) / args.batch_size)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=args.learning_rate, weight_decay=0.0, fused=True
        )
        schedule = get_scheduler("cosine", optimizer, math.ceil(0.03 * steps), steps)
        stub, seconds, cpu = Stub(), time.perf_counter(), time.process_time()
        for epoch in range(args.epochs):
            places = order.order(epoch).tolist()
            for start in range(0, len(places), args.batch_size):
                batch = collate([self.train[place] for place in places[start : start + args.batch_size]])
                distillation.loss(stub, model, batch, None, teacher, blend).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        seconds, cpu = time.perf_counter() - seconds, time.process_time() - cpu
        return {"seconds": seconds / args.epochs, "cpu_seconds": cpu / args.epochs, **self.score(model)}

    def student(self) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        if not self.args.fresh:
            model = AutoModelForCausalLM.from_pretrained(self.place, dtype="float32")
            return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        config = AutoConfig.from_pretrained(self.place)
        size, layers = self.args.fresh
        values = dict(hidden_size=size, intermediate_size=3 * size, num_hidden_layers=layers)
        heads = dict(num_attention_heads=size // 64, num_key_value_heads=max(1, size // 192), head_dim=64)
        config.update(values | heads)
        return AutoModelForCausalLM.from_config(config, dtype="float32")

    def score(self, model: Any) -> dict[str, float]:
        """Exact match by phrasing, and of all rows, or ROUGE-L; the loss of the references."""
        return {**self.answers(model.eval()), "loss": self.loss(model)}

    def answers(self, model: Any) -> dict[str, float]:
        from tunebook.common import generation

        if "phrasing" not in self.asked[0]:
            from tunebook.evals.tasks.heldout.utils import scorer

            prompts, asked = self.prompts[:100], self.asked[:100]
            found = generation.answers(model, self.tokenizer, prompts, max_new_tokens=48, batch_size=50)
            scores = [scorer().score(row["output"], a)["rougeL"].fmeasure for a, row in zip(found, asked, strict=True)]
            return {"rougeL": statistics.fmean(scores)}
        found = generation.answers(model, self.tokenizer, self.prompts, max_new_tokens=32, batch_size=64)
        right = {"all": [a == row["output"] for a, row in zip(found, self.asked, strict=True)]}
        for phrasing in ("seen", "unseen"):
            right[phrasing] = [
                r for r, row in zip(right["all"], self.asked, strict=True) if row["phrasing"] == phrasing
            ]
        return {name: statistics.fmean(values) for name, values in right.items() if values}

    def loss(self, model: Any) -> float:
        """Mean cross entropy of the references, in nats a token."""
        import torch

        losses, tokens = 0.0, 0
        for start in range(0, len(self.encoded), 16):
            batch = self.collate([self.encoded[k] for k in range(start, min(start + 16, len(self.encoded)))])
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            losses += torch.nn.functional.cross_entropy(logits.mT.float(), labels, reduction="sum").item()
            tokens += int((labels != IGNORE_INDEX).sum())
        return losses / tokens


def confused(rows: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """The rows, a share of which draws its answer from all of the same skill."""
    import random

    draw = random.Random(0)
    answers: dict[str, list[str]] = {}
    for row in rows:
        answers.setdefault(row["skill"], []).append(row["output"])
    return [row | {"output": draw.choice(answers[row["skill"]])} if draw.random() < share else row for row in rows]


class Stub:
    """What distillation.loss asks of a trainer."""

    class accelerator:
        num_processes = 1
        unwrap_model = staticmethod(lambda model: model)

    class args:
        average_tokens_across_devices = True
        label_smoothing_factor = 0.0

    def __init__(self):
        from collections import defaultdict

        self._metrics: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}


def means(runs: list[dict[str, Any]], way: str) -> dict[str, float]:
    mine = [run for run in runs if run["way"] == way]
    medians = {name: statistics.median(run[name] for run in mine) for name in ("seconds", "cpu_seconds")}
    return medians | {name: statistics.fmean(run[name] for run in mine) for name in SCORES if name in mine[0]}


def paired(runs: list[dict[str, Any]], way: str, other: str) -> dict[str, Any]:
    """Mean difference of the scores over seeds with its interval, and in how many seeds the first is better."""
    found: dict[str, Any] = {}
    for name in SCORES:
        one, two = ([run[name] for run in runs if run["way"] == w and name in run] for w in (way, other))
        apart = [a - b for a, b in zip(one, two, strict=True)]
        if len(apart) > 1:
            half = T95[len(apart) - 1] * statistics.stdev(apart) / math.sqrt(len(apart))
            mean = statistics.fmean(apart)
            better = sum(value < 0 if name == "loss" else value > 0 for value in apart)
            found[name] = {"mean": mean, "interval": [mean - half, mean + half], "better": better, "seeds": len(apart)}
    return found


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in SCORES[:-1] if name in result["teacher"]]
    table = Table("way", *shown, "loss", "seconds an epoch", "CPU seconds")
    for name, row in {"teacher": result["teacher"], **result["means"]}.items():
        scores = [f"{row[key]:.1%}" for key in shown]
        rest = ("loss", "seconds", "cpu_seconds")
        table.add_row(name, *scores, *(f"{row[key]:.3f}" if key in row else "" for key in rest))
    Console().print(table)
    for pair, values in result["differences"].items():
        for name, value in values.items():
            low, high = value["interval"]
            better = f"{value['better']} of {value['seeds']}"
            form = "+.3f" if name == "loss" else "+.1%"
            print(f"{pair}, {name}: {value['mean']:{form}} ({low:{form}} to {high:{form}}), better in {better}")
    print(f"teacher's file: {result['bytes_per_token']:.0f} bytes a trained token")


if __name__ == "__main__":
    cli.run(main, Args)
