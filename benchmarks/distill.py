"""Memory and time of a distillation loss, from both models' hidden states to their gradients, in one run.

    python benchmarks/distill.py --json out.json
    python benchmarks/distill.py --quick

naive    all logits of both models, log_softmax, kl_div and cross_entropy, then the mask: what the formula reads like
TRL GKD  the same logits through GKDTrainer.generalized_jsd_loss (beta 0), to which the cross entropy is added, as it
         has none; its temperature is given and T² is put before it
chunks   distillation/losses.py: the positions that train, some at a time

The student's head is frozen (as with LoRA) or trains; its own gradient then counts in all. Peaks are of the process,
over what it held before. The three losses must be equal. Rounds alternate; medians are shown.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunebook.common import cli

ASKED = {"peak": 1 / 8, "seconds": 1.1}  # of chunks to naive


@dataclass
class Args:
    positions: int = 2048
    vocabulary: int = 128_256
    width: int = 512  # of both models
    supervised: float = 0.25  # share of the positions
    alpha: float = 0.5
    temperature: float = 2.0
    rounds: int = 3
    seed: int = 0
    json: str = ""  # write the figures here
    quick: bool = False  # 256 positions, vocabulary 16,000, one round


def main(args: Args) -> dict[str, Any]:
    import torch

    from tunebook.common import resources
    from tunebook.common.distillation import losses

    if args.quick:
        args.positions, args.vocabulary, args.width, args.rounds = 256, 16_000, 128, 1
    ways = ways_of(losses.DistillationLoss(args.alpha, args.temperature), args)
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for kind in ("frozen", "trained"):
        inputs = made(args, kind == "trained")
        found = results[kind] = {name: {"peak_bytes": [], "seconds": [], "loss": []} for name in ways}
        for number in range(args.rounds + 1):  # the first one warms up
            for name, way in ways.items():
                resources.release()
                held, peak, begun = resources.held(), resources.Peak(), time.perf_counter()
                loss = way(*inputs)
                loss.backward()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds, most = time.perf_counter() - begun, peak.stop()
                for value in inputs[:2]:
                    value.grad = None
                if number:
                    for key, value in (("peak_bytes", most - held), ("seconds", seconds), ("loss", loss.item())):
                        found[name][key].append(value)
    medians = {
        kind: {name: {key: statistics.median(v) for key, v in values.items()} for name, values in ways.items()}
        for kind, ways in results.items()
    }
    for values in medians.values():
        values_of = [way["loss"] for way in values.values()]
        assert max(values_of) - min(values_of) <= 1e-4 * max(values_of), values
    result = {
        "positions": args.positions,
        "vocabulary": args.vocabulary,
        "width": args.width,
        "supervised": args.supervised,
        "rounds": args.rounds,
        **medians,
        "ratios": {
            kind: {
                name: {key: values["chunks"][key] / values[name][key] for key in ("peak_bytes", "seconds")}
                for name in ("naive", "TRL GKD")
            }
            for kind, values in medians.items()
        },
        "seconds": sum(sum(way["seconds"]) for ways in results.values() for way in ways.values()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    show(result, args.quick)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return result


def made(args: Args, trains: bool) -> tuple[Any, ...]:
    """Hidden states (T, D) of student and teacher, their heads (V, D), and labels (T,)."""
    import torch

    from tunebook.common.tokens.lengths import IGNORE_INDEX

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, head = (args.positions, args.width), (args.vocabulary, args.width)
    student, teacher = (torch.randn(shape, device=device) for _ in range(2))
    weight, other = (torch.randn(head, device=device).mul_(2 / args.width**0.5) for _ in range(2))
    labels = torch.randint(0, args.vocabulary, (args.positions,), device=device)
    labels[int(args.supervised * args.positions) :] = IGNORE_INDEX
    return student.requires_grad_(), weight.requires_grad_(trains), teacher, other, labels


def ways_of(blend: Any, args: Args) -> dict[str, Callable]:
    import torch
    from torch.nn import functional
    from trl.experimental.gkd import GKDTrainer

    from tunebook.common.distillation import losses
    from tunebook.common.models.lm_head import LMHead
    from tunebook.common.tokens.lengths import IGNORE_INDEX

    count, factor = int(args.supervised * args.positions), blend.alpha * blend.temperature**2

    def naive(student, weight, teacher, other, labels):
        logits = student @ weight.t()
        with torch.no_grad():
            wanted = torch.log_softmax(teacher @ other.t() / blend.temperature, -1)
        mine = torch.log_softmax(logits / blend.temperature, -1)
        apart = functional.kl_div(mine, wanted, reduction="none", log_target=True).sum(-1)
        cross = functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return (factor * (apart * (labels != IGNORE_INDEX)).sum() + (1 - blend.alpha) * cross) / count

    def gkd(student, weight, teacher, other, labels):
        logits = student @ weight.t()
        with torch.no_grad():
            wanted = teacher @ other.t()
        apart = GKDTrainer.generalized_jsd_loss(
            logits[None], wanted[None], labels[None], beta=0, temperature=blend.temperature, num_items_in_batch=count
        )
        cross = functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return factor * apart + (1 - blend.alpha) * cross / count

    def chunks(student, weight, teacher, other, labels):
        keep = labels != IGNORE_INDEX
        online = losses.Online(teacher[keep], LMHead(other))
        return losses.chunked_loss(student[keep], LMHead(weight), labels[keep], online, blend)[0] / count

    return {"chunks": chunks, "naive": naive, "TRL GKD": gkd}


def show(result: dict[str, Any], quick: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    for kind in ("frozen", "trained"):
        table = Table(f"student's head {kind}", "peak MiB", "seconds", "peak x naive", "time x naive")
        naive = result[kind]["naive"]
        for name, way in result[kind].items():
            ratios = [way[key] / naive[key] for key in ("peak_bytes", "seconds")]
            peak = f"{way['peak_bytes'] / 2**20:.0f}"
            table.add_row(name, peak, f"{way['seconds']:.2f}", f"{ratios[0]:.3f}", f"{ratios[1]:.2f}")
        Console().print(table)
    if not quick:
        print(f"asked of chunks: peak at most {ASKED['peak']:.3f} of naive, time at most {ASKED['seconds']}")


if __name__ == "__main__":
    cli.run(main, Args)
