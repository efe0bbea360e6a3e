"""A plan of a recipe: memory by arithmetic on a model without weights, what would fit, and time from shallow copies."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import cards, cli, fits
from common.errors import UserError
from common.planned import Planned, Target, planned, recipe
from common.shapes import shallow, shape
from common.workload import Workload

DEPTHS = (1, 3)  # layers of the copies that are timed; what a layer takes is the difference
PATIENCE = 900  # seconds that a copy may take
ALONE = """
import json, sys
from pathlib import Path
from common import cli, planned
file, model, folder, *words = sys.argv[1:]
cli._environment()
module = planned.recipe(Path(file))
args = cli.parse(module.Args, words)
args.model, args.output_dir, args.dry_run = model, folder, True
print("\\n" + json.dumps(module.main(args)))
"""


def plan(file: Path, words: list[str], folder: Path, card: cards.Card | None = None) -> dict[str, Any]:
    """What a recipe will take: parts, peak and whether it fits; and what other methods, batches and lengths would.

    Args:
        words: flags of the recipe.
        folder: for what it writes on its way.
        card: the GPU that is planned for; None: this device.

    Raises:
        UserError, CheckFailed: what the recipe says of its arguments and data.
    """
    device = cards.here() if card is None else card
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # before torch: shapes need no GPU
        return _plan(file, words, folder, device) | {"here": card is None}


def _plan(file: Path, words: list[str], folder: Path, device: cards.Card) -> dict[str, Any]:
    from common import footprint, memory, models

    target = Target(gpu=device.free is not None, bf16=device.bf16)
    module = recipe(file)
    args = cli.parse(module.Args, words, module.__doc__ or "")
    found = run(module, args, folder, target)
    model, workload = found.actor.model, found.workload
    rows, width = workload.shape
    methods = {_method(model): model, **_others(found, module, args, folder, target)}
    table = _table(found, methods, target)
    sizes = next(row["sizes"] for row in table if row["own"])
    limit = memory.limit() if device.free is None else device.free
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 2**20)
    trainable, every = models.parameters(model)
    return {
        "recipe": file.stem,
        "model": args.model,
        "parameters": every,
        "trainable": trainable,
        "method": _method(model),
        "optimizer": found.optimizer,
        "known_optimizer": footprint.optimizer_states(model, found.optimizer) is not None,
        "device": device.words,
        "gpu": target.gpu,
        "dtype": str(target.dtype).removeprefix("torch."),
        "limit_bytes": limit,
        "longest": {"rows": rows, "width": width, "name": workload.name()},
        "joined": workload.joined,
        "steps": workload.steps,
        "layers": model.config.get_text_config().num_hidden_layers,
        "parts": sizes.parts(rows, width),
        "peak_bytes": sizes.peak(rows, width),
        "fits": sizes.peak(rows, width) <= limit,
        "table": [_room(row.pop("sizes"), workload, limit, longest) | row for row in table],
    }


def _table(found: Planned, methods: dict[str, Any], target: Target) -> list[dict[str, Any]]:
    """Every method with its activations kept and recomputed: its `sizes`, and whether it is the recipe's `own` way."""
    from common import memory

    process = 0 if target.gpu else memory.held()
    rows = []
    for name, model in methods.items():
        for recomputes in (False, True):
            own = model is found.actor.model and recomputes == found.recomputes
            sizes = _sizes(model, found, recomputes, process, target)
            rows.append({"method": name, "checkpointing": recomputes, "own": own, "sizes": sizes})
    return rows


def run(module: Any, args: Any, folder: Path, target: Target) -> Planned:
    """The recipe up to its forecast, without its prints."""
    values = {"output_dir": str(folder / "run"), "dry_run": True, "overwrite": True, "eval_suite": "none"}
    for name, value in {**values, "report_to": "none"}.items():
        if hasattr(args, name):
            setattr(args, name, value)
    try:
        with planned(target), contextlib.redirect_stdout(io.StringIO()):
            module.main(args)
    except Planned as found:
        return found
    raise UserError(f"tunebook plan: {module.__file__} ends without asking common.forecast, so it cannot be planned")


def _method(model: Any) -> str:
    kinds = {str(config.peft_type.value) for config in getattr(model, "peft_config", {}).values()}
    if kinds == {"LORA"}:
        four_bit = any(type(part).__name__ == "Shape4bit" for part in model.modules())
        return "QLoRA" if four_bit else "LoRA"
    if all(parameter.requires_grad for parameter in model.parameters()):
        return "full"
    return "this recipe"


def _others(found: Planned, module: Any, args: Any, folder: Path, target: Target) -> dict[str, Any]:
    """Models of the methods that a recipe is not: full, and LoRA and QLoRA with its own adapters where it has some."""
    from common.commands import ls

    own, others = _method(found.actor.model), {}
    if own != "full":
        others["full"] = shape(args.model, target.loaded(full=True), four_bit=False, full=True)[0]
    for name, four_bit in (("LoRA", False), ("QLoRA", True)):
        if name == own:
            continue
        if own in ("LoRA", "QLoRA"):
            source, given = module, args
        else:
            source = recipe(ls.recipes()["lora_alpaca"])
            given = source.Args(model=args.model)
        others[name] = run(source, given, folder / name, replace(target, four_bit=four_bit)).actor.model
    return others


def _sizes(model: Any, found: Planned, recomputes: bool, process: int, target: Target) -> fits.Sizes:
    from common import footprint, shapes
    from common.lengths import IGNORE_INDEX

    if recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    batch = found.actor.collate(found.workload.longest)
    padded = bool((batch["attention_mask"] == 0).any()) if "attention_mask" in batch else False
    states = footprint.optimizer_states(model, found.optimizer)
    return fits.Sizes(
        weights=footprint.weights(model) + found.beside,
        gradients=footprint.gradients(model),
        optimizer=2 * footprint.gradients(model) if states is None else states,
        process=process,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        accumulates=found.actor.accumulation > 1,
        labels=float((batch["labels"] != IGNORE_INDEX).float().mean()),
        moments=shapes.moments(model, padded, target.dtype if target.gpu else None),
        hidden=model.config.get_text_config().hidden_size if target.gpu else None,
        update=footprint.update(model, found.optimizer, target.gpu),
    )


def _room(sizes: fits.Sizes, workload: Workload, limit: int, longest: int) -> dict[str, Any]:
    """The peak; the most rows of the longest batch's width that fit, and the longest of as many rows as it has.

    Where a batch is one row (packed, for Unsloth's forwards on a GPU), both are of the rows that are joined in it.
    """
    (rows, width), joined = workload.shape, workload.joined
    peak = sizes.peak(rows, width)
    if joined > 1:
        most = fits.longest_width(sizes, 1, limit) * joined // width
        across = fits.longest_width(sizes, 1, limit, longest * joined) // joined
    else:
        most, across = fits.most_rows(sizes, width, limit), fits.longest_width(sizes, rows, limit, longest)
    return {"peak_bytes": peak, "fits": peak <= limit, "rows": most, "width": across}


def time(file: Path, words: list[str], folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the whole run, and its peak, from copies of the model that have a few layers and random weights.

    Returns:
        `seconds`, `peak_bytes` and `how`; or `unknown`, why there are none.
    """
    if not plan["here"]:
        return {"unknown": "there is no such GPU here to measure it on"}
    if not plan["fits"]:
        return {"unknown": "it does not fit here"}
    depths = (plan["layers"],) if plan["layers"] <= max(DEPTHS) + 1 else DEPTHS
    results = []
    for layers in depths:
        copy = folder / f"layers{layers}"
        shallow(plan["model"], layers, copy)
        command = [sys.executable, "-c", ALONE, str(file), str(copy), str(folder / f"run{layers}"), *words]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path[1:]])}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"unknown": f"steps of {layers} layers take more than {PATIENCE // 60} minutes"}
        shutil.rmtree(copy)
        if done.returncode:
            return {"unknown": f"{layers} layers could not be run: {done.stderr.strip().splitlines()[-1]}"}
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    seconds, peak = (_continued([one[name] for one in results], plan["layers"]) for name in ("seconds", "peak_bytes"))
    how = f"measured here on {' and '.join(map(str, depths))} of {plan['layers']} layers"
    return {"seconds": seconds, "peak_bytes": round(peak), "how": how}


def _continued(values: list[float], layers: int) -> float:
    """A value that grows by the same with every layer, at so many layers."""
    if len(values) == 1:
        return values[0]
    each = max(0.0, (values[1] - values[0]) / (DEPTHS[1] - DEPTHS[0]))
    return values[0] + (layers - DEPTHS[0]) * each
