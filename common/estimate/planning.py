"""A plan of a recipe: memory by arithmetic on a meta model, what would fit, and time from truncated copies."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tunebook.common import catalog, cli, models, resources
from tunebook.common.errors import UserError
from tunebook.common.estimate import arithmetic, gpus
from tunebook.common.estimate.meta_model import PlanReady, meta_model, plan_mode, profile, truncated_copy
from tunebook.common.models import device
from tunebook.common.models.device import Device

DEPTHS = (1, 3)  # layers of the copies that are timed; what a layer takes is the difference
TIMEOUT = 900  # seconds for a copy
RUN_COPY = """
import json, sys
from pathlib import Path
from tunebook.common import catalog, cli
file, model, folder, *words = sys.argv[1:]
cli._environment()
module = catalog.load(Path(file))
args = cli.parse(module.Args, words)
args.model, args.output_dir, args.dry_run = model, folder, True
print("\\n" + json.dumps(module.main(args)))
"""


def plan(file: Path, words: list[str], folder: Path, card: gpus.Card | None = None) -> dict[str, Any]:
    """Memory of a recipe, by part, and whether it fits; and which other methods, batch sizes and lengths would.

    Args:
        words: flags of the recipe.
        folder: for what the recipe writes.
        card: the GPU that is planned for; None: this device.

    Raises:
        UserError, CheckFailed: the recipe's own, of its arguments and data.
    """
    target = gpus.here() if card is None else card
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # before CUDA starts: a meta model needs no GPU
        return _plan(file, words, folder, target) | {"here": card is None}


def _plan(file: Path, words: list[str], folder: Path, card: gpus.Card) -> dict[str, Any]:
    module, planned = catalog.load(file), device.make(gpu=card.free is not None, bf16=card.bf16)
    args = cli.parse(module.Args, words, module.__doc__ or "")
    ready = run(module, args, folder, planned)
    model, schedule = ready.run.model, ready.schedule
    rows, width = schedule.shape
    limit = resources.limit() if card.free is None else card.free
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 2**20)
    method = _method(model)
    methods = {method: model, **_other_methods(method, module, args, folder, planned)}
    process, table = 0 if planned.gpu else resources.held(), []
    memory: Any = None
    for name, other in methods.items():
        for checkpointing in (False, True):
            each = _memory_model(other, ready, checkpointing, process, planned)
            own = name == method and checkpointing == ready.checkpointing
            peak, (most, length) = each.peak(rows, width), arithmetic.largest_batch(each, schedule, limit, longest)
            row = {"peak_bytes": peak, "fits": peak <= limit, "rows": most, "width": length}
            table.append({**row, "method": name, "checkpointing": checkpointing, "own": own})
            memory = each if own else memory
    trainable, parameters = models.parameters(model)
    return {
        "recipe": file.stem,
        "model": args.model,
        "parameters": parameters,
        "trainable": trainable,
        "method": method,
        "optimizer": ready.optimizer,
        "known_optimizer": arithmetic.optimizer_states(model, ready.optimizer) is not None,
        "device": card.words,
        "gpu": planned.gpu,
        "dtype": str(planned.dtype).removeprefix("torch."),
        "limit_bytes": limit,
        "longest": {"rows": rows, "width": width, "name": schedule.name()},
        "joined": schedule.joined,
        "steps": schedule.steps,
        "layers": model.config.get_text_config().num_hidden_layers,
        "parts": memory.parts(rows, width),
        "peak_bytes": memory.peak(rows, width),
        "fits": memory.peak(rows, width) <= limit,
        "table": table,
    }


def run(module: Any, args: Any, folder: Path, planned: Device, load_in_4bit: bool | None = None) -> PlanReady:
    """The recipe up to its forecast, without its output; `load_in_4bit` as in plan_mode."""
    args.output_dir, args.dry_run, args.overwrite = str(folder / "run"), True, True
    args.eval_suite = args.report_to = "none"
    try:
        with plan_mode(planned, load_in_4bit), contextlib.redirect_stdout(io.StringIO()):
            module.main(args)
    except PlanReady as ready:
        return ready
    raise UserError(f"tunebook plan: {module.__file__} ends without a forecast, so it cannot be planned")


def _method(model: Any) -> str:
    kinds = {str(config.peft_type.value) for config in getattr(model, "peft_config", {}).values()}
    if kinds == {"LORA"}:
        return "QLoRA" if getattr(model, "is_loaded_in_4bit", False) else "LoRA"
    if all(parameter.requires_grad for parameter in model.parameters()):
        return "full"
    return "this recipe"


def _other_methods(own: str, module: Any, args: Any, folder: Path, planned: Device) -> dict[str, Any]:
    """Models of other methods than the recipe's: full, and LoRA and QLoRA, with its own adapters where it has some."""
    others = {}
    if own != "full":
        others["full"] = meta_model(args.model, planned.weights_dtype(full=True), four_bit=False, full=True)[0]
    if own not in ("LoRA", "QLoRA"):
        module = catalog.load(catalog.find("lora_alpaca", "tunebook plan"))
        args = module.Args(model=args.model)
    for name, four_bit in (("LoRA", False), ("QLoRA", True)):
        if name != own:
            others[name] = run(module, args, folder / name, planned, four_bit).run.model
    return others


def _memory_model(
    model: Any, ready: PlanReady, checkpointing: bool, process: int, planned: Device
) -> arithmetic.MemoryModel:
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    batch, accumulation = ready.run.collate(ready.schedule.longest), ready.run.accumulation
    padded = bool((batch["attention_mask"] == 0).any()) if "attention_mask" in batch else False
    step = profile(model, padded, planned.dtype if planned.gpu else None)
    memory = arithmetic.memory_model(model, ready.optimizer, batch, accumulation, planned.gpu, process, step)
    memory.weights += ready.others
    return memory


def time(file: Path, words: list[str], folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """`seconds` and `peak_bytes` of the whole run, extrapolated from truncated copies with random weights, and `how`;
    or `unknown`: why there are none."""
    if not plan["here"]:
        return {"unknown": "there is no such GPU here to measure it on"}
    if not plan["fits"]:
        return {"unknown": "it does not fit here"}
    depths = (plan["layers"],) if plan["layers"] <= max(DEPTHS) + 1 else DEPTHS
    results = []
    for layers in depths:
        copy = folder / f"layers{layers}"
        truncated_copy(plan["model"], layers, copy)
        command = [sys.executable, "-c", RUN_COPY, str(file), str(copy), str(folder / f"run{layers}"), *words]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
        except subprocess.TimeoutExpired:
            return {"unknown": f"steps of {layers} layers take more than {TIMEOUT // 60} minutes"}
        shutil.rmtree(copy)
        if done.returncode:
            return {"unknown": f"{layers} layers could not be run: {done.stderr.strip().splitlines()[-1]}"}
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    seconds, peak = (
        _extrapolate([result[name] for result in results], plan["layers"]) for name in ("seconds", "peak_bytes")
    )
    how = f"measured here on {' and '.join(map(str, depths))} of {plan['layers']} layers"
    return {"seconds": seconds, "peak_bytes": round(peak), "how": how}


def _extrapolate(values: list[float], layers: int) -> float:
    """A value at so many layers, from those at DEPTHS; a single value stays."""
    if len(values) == 1:
        return values[0]
    per_layer = max(0.0, (values[1] - values[0]) / (DEPTHS[1] - DEPTHS[0]))
    return values[0] + (layers - DEPTHS[0]) * per_layer
