"""A plan of a recipe: memory by arithmetic on a model without weights, what would fit, and time from smaller copies."""

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

from tunebook.common import catalog, cli
from tunebook.common.errors import UserError
from tunebook.common.estimate import arithmetic, gpus
from tunebook.common.estimate.meta_model import PlanReady, meta_model, plan_mode, profile, truncated_copy
from tunebook.common.models import device
from tunebook.common.models.device import Device

DEPTHS = (1, 3)  # layers of the copies that are timed; what a layer takes is the difference
PATIENCE = 900  # seconds that a copy may take
ALONE = """
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
    """What a recipe will take: parts, peak and whether it fits; and what other methods, batches and lengths would.

    Args:
        words: flags of the recipe.
        folder: for what it writes on its way.
        card: the GPU that is planned for; None: this device.

    Raises:
        UserError, CheckFailed: what the recipe says of its arguments and data.
    """
    found = gpus.here() if card is None else card
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # before torch: a model without weights needs no GPU
        return _plan(file, words, folder, found) | {"here": card is None}


def _plan(file: Path, words: list[str], folder: Path, card: gpus.Card) -> dict[str, Any]:
    from tunebook.common import models, resources

    module, planned = catalog.load(file), device.make(gpu=card.free is not None, bf16=card.bf16)
    args = cli.parse(module.Args, words, module.__doc__ or "")
    ready = run(module, args, folder, planned)
    model, schedule = ready.run.model, ready.schedule
    rows, width = schedule.shape
    limit = resources.limit() if card.free is None else card.free
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 2**20)
    methods = {_method(model): model, **_other_methods(ready, module, args, folder, planned)}
    process, table, own = 0 if planned.gpu else resources.held(), [], None
    for name, other in methods.items():
        for recomputes in (False, True):
            found = _memory_model(other, ready, recomputes, process, planned)
            peak, (most, length) = found.peak(rows, width), arithmetic.largest_batch(found, schedule, limit, longest)
            row = {"method": name, "checkpointing": recomputes, "own": (other, recomputes) == (model, ready.recomputes)}
            table.append({"peak_bytes": peak, "fits": peak <= limit, "rows": most, "width": length, **row})
            own = found if row["own"] else own
    assert own is not None
    trainable, parameters = models.parameters(model)
    return {
        "recipe": file.stem,
        "model": args.model,
        "parameters": parameters,
        "trainable": trainable,
        "method": _method(model),
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
        "parts": own.parts(rows, width),
        "peak_bytes": own.peak(rows, width),
        "fits": own.peak(rows, width) <= limit,
        "table": table,
    }


def run(module: Any, args: Any, folder: Path, planned: Device, load_in_4bit: bool | None = None) -> PlanReady:
    """The recipe up to its forecast, without its prints.

    Args:
        load_in_4bit: load its base in 4 bits or not, whatever it says itself.
    """
    values = {"output_dir": str(folder / "run"), "dry_run": True, "overwrite": True, "eval_suite": "none"}
    for name, value in {**values, "report_to": "none"}.items():
        if hasattr(args, name):
            setattr(args, name, value)
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


def _other_methods(ready: PlanReady, module: Any, args: Any, folder: Path, planned: Device) -> dict[str, Any]:
    """Models of the methods that a recipe is not: full, and LoRA and QLoRA with its own adapters where it has some."""
    own, others = _method(ready.run.model), {}
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
    model: Any, ready: PlanReady, recomputes: bool, process: int, planned: Device
) -> arithmetic.MemoryModel:
    if recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    batch, accumulation = ready.run.collate(ready.schedule.longest), ready.run.accumulation
    padded = bool((batch["attention_mask"] == 0).any()) if "attention_mask" in batch else False
    step = profile(model, padded, planned.dtype if planned.gpu else None)
    found = arithmetic.memory_model(model, ready.optimizer, batch, accumulation, planned.gpu, process, step)
    found.weights += ready.others
    return found


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
        truncated_copy(plan["model"], layers, copy)
        command = [sys.executable, "-c", ALONE, str(file), str(copy), str(folder / f"run{layers}"), *words]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
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
