"""Watches a recipe from inside its own process and writes what it saw as JSON; the recipe is run as it is.

python tests/recipe_probe.py SEEN.json recipes/lora_alpaca.py --max_steps 5 ...
"""

import json
import runpy
import sys
from pathlib import Path


class Probe:
    """What is known of a run: its classes, gradients, movements, and flags around all that answers or scores."""

    def __init__(self, file):
        self.file, self.model, self.started = Path(file), None, {}
        self.seen = {"checkpointing": [], "gradients": {}, "changed_flags": []}

    def begins(self, model, trainer=None):
        """Training is about to begin."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.started = {name: value.detach().clone() for name, value in trained(model)}
        self.names = {id(value): name for name, value in trained(model)}
        self.seen |= {
            "bases": [kind.__name__ for kind in type(trainer).__mro__],
            "forward": type(base.base_model).forward.__module__,
            "decoder": type(base).__module__,
            "dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in self.started.values()}),
            "weights": sorted({str(value.dtype).removeprefix("torch.") for value in model.parameters()}),
            "trained": len(self.started),
            "projections": projections(base),
            "attention": model.config._attn_implementation,
        }
        register_optimizer_step_pre_hook(self.stepping)

    def stepping(self, optimizer, args, kwargs):
        """The optimizer is about to make a step."""
        self.seen["checkpointing"].append(checkpointing(self.model))
        for group in optimizer.param_groups:
            for value in group["params"]:
                name = self.names.get(id(value))
                if name and value.grad is not None and bool(value.grad.isfinite().all()) and bool(value.grad.any()):
                    self.seen["gradients"][name] = self.seen["gradients"].get(name, 0) + 1

    def around(self, owner, name, model_of):
        """Flags of the model must be the same before and after every call of owner.name."""
        call = getattr(owner, name)

        def watched(*args, **kwargs):
            model = model_of(*args, **kwargs)
            before = flags(model)
            result = call(*args, **kwargs)
            if flags(model) != before:
                self.seen["changed_flags"].append(name)
            self.seen[f"calls_{name}"] = self.seen.get(f"calls_{name}", 0) + 1
            return result

        setattr(owner, name, watched)

    def ends(self, model):
        """Training is over, and everything is saved."""
        import torch

        now = dict(trained(self.model))
        moved = [name for name, value in self.started.items() if not torch.equal(value, now[name])]
        gradients = self.seen.pop("gradients")
        self.seen |= {
            "still": sorted(self.started.keys() - set(moved)),
            "without_gradient": sorted(self.started.keys() - gradients.keys()),
        }
        if torch.cuda.is_available():
            self.seen |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        ids = torch.arange(5, 45, device=model.device)[None]
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, use_cache=False).logits
        torch.save(logits.float().cpu(), self.file.with_suffix(".logits"))
        self.file.write_text(json.dumps(self.seen, indent=1))


def projections(base):
    """The function that makes queries, keys and values in Unsloth's forwards; None in transformers' own."""
    parts = [vars(module)["apply_qkv"] for module in base.modules() if "apply_qkv" in vars(module)]
    return getattr(parts[0], "__name__", None) if parts else None


def trained(model):
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def flags(model):
    return [(module.training, getattr(module, "gradient_checkpointing", None)) for module in model.modules()]


def checkpointing(model):
    return sum(bool(getattr(module, "gradient_checkpointing", None)) for module in model.modules())


def watch(file):
    """Watch the recipe that this process is about to run."""
    from tunebook.common import report
    from tunebook.common.distillation import on_policy
    from tunebook.common.estimate import forecast
    from tunebook.common.generation import generation
    from tunebook.common.training import callbacks
    from tunebook.evals.harness import scoring

    probe = Probe(file)
    forecast_run, forecast_loop, whole, write = (
        forecast.forecast, forecast.forecast_loop, on_policy.rehearse, report.write,
    )  # fmt: skip

    def of_trainer(trainer, *args, **kwargs):
        expected = forecast_run(trainer, *args, **kwargs)
        probe.begins(trainer.model, trainer)
        return expected

    def of_loop(run, *args, **kwargs):
        expected = forecast_loop(run, *args, **kwargs)
        probe.begins(run.model)
        return expected

    def of_answers(trainer, *args, **kwargs):
        found = whole(trainer, *args, **kwargs)
        probe.begins(trainer.model, trainer)
        return found

    def written(recipe, folder, args, model, *rest):
        result = write(recipe, folder, args, model, *rest)
        probe.ends(model)
        return result

    forecast.forecast, forecast.forecast_loop, report.write = of_trainer, of_loop, written
    on_policy.rehearse = of_answers
    generation.Samples.max_new_tokens = 8
    probe.around(generation, "generate", lambda model, *args, **kwargs: model)
    probe.around(scoring, "score", lambda model, *args, **kwargs: model)
    probe.around(callbacks, "evaluate", lambda trainer: trainer.model)


if __name__ == "__main__":
    file, *sys.argv = sys.argv[1:]
    watch(file)
    runpy.run_path(sys.argv[0], run_name="__main__")
