"""Private names of other libraries that this project uses: each is there, and is called as it is called here.

Where a pin is lifted, this fails with a list of what to look at, and no run with a wrong gradient.
"""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import trl
from paths import ROOT

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "bitsandbytes", "datasets", "lm_eval", "unsloth")
# Private name -> where it is, and its parameters. Of an attribute that an __init__ sets: the class, and None.
FUNCTIONS = {
    "_compile_jinja_template": ("transformers.utils.chat_template_utils", ["chat_template"]),
    "_current_graph_task_id": ("torch._C", None),
    "_disable_current_modes": ("torch.utils._python_dispatch", []),
    "_determine_best_metric": ("transformers.Trainer", ["self", "metrics", "trial"]),
    "_evaluate": ("transformers.Trainer", ["self", "trial", "ignore_keys_for_eval", "skip_scheduler"]),
    "_generate_and_score_completions": ("trl.trainer.grpo_trainer.GRPOTrainer", ["self", "inputs"]),
    "_get_num_items_in_batch": ("transformers.Trainer", ["self", "batch_samples", "device"]),
    "_get_train_sampler": ("transformers.Trainer", ["self", "train_dataset"]),
    "_load_best_model": ("transformers.Trainer", ["self"]),
    "_load_from_checkpoint": ("transformers.Trainer", ["self", "resume_from_checkpoint", "model"]),
    "_load_optimizer_and_scheduler": ("transformers.Trainer", ["self", "checkpoint"]),
    "_load_spec": ("lm_eval.tasks.TaskManager", ["self", "spec"]),
    "_loglikelihood_tokens": (
        "lm_eval.models.huggingface.HFLM", ["self", "requests", "disable_tqdm", "override_bs"],
    ),
    "_maybe_log_save_evaluate": (
        "transformers.Trainer",
        ["self", "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time",
         "learning_rate"],
    ),
    "_prepare_dataset": ("trl.DPOTrainer", ["self", "dataset", "processing_class", "args", "dataset_name"]),
    "_prepare_inputs": ("transformers.Trainer", ["self", "inputs"]),
    "_save_checkpoint": ("transformers.Trainer", ["self", "model", "trial"]),
    "_scaled_dot_product_flash_attention_for_cpu": ("torch.ops.aten", None),
    "_set_signature_columns_if_needed": ("transformers.Trainer", ["self"]),
    "_tokenize_prompts": ("trl.DistillationTrainer", ["self", "prompts"]),
}  # fmt: skip
ATTRIBUTES = {
    "_attn_implementation": "transformers.PretrainedConfig",
    "_cdata": "torch.UntypedStorage",
    "_globalstep_last_logged": "transformers.Trainer",
    "_is_accelerate_prepared": "accelerate.Accelerator",
    "_keys_to_ignore_on_save": "transformers.PreTrainedModel",
    "_metrics": "trl.SFTTrainer",
    "_modules": "torch.nn.Module",
    "_name_or_path": "transformers.PretrainedConfig",
    "_shared_state": "accelerate.PartialState",
    "_signature_columns": "transformers.Trainer",
    "_special_tokens_map": "transformers.PreTrainedTokenizerBase",
    "_total_loss_scalar": "transformers.Trainer",
    "_total_train_tokens": "trl.SFTTrainer",
    "_tr_loss": "transformers.Trainer",
    "_train_batch_size": "transformers.Trainer",
}
MODULES = {"_C": "torch", "_dynamo": "torch", "_python_dispatch": "torch.utils", "_pytree": "torch.utils"}


def named(tree):
    """Private names of a file that are not its own: attributes, imports, methods that replace one of a foreign base."""
    own, found = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                own.add(name)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if name not in own:
                found.add(name)
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in LIBRARIES:
                found |= {*module.split("."), *(one.name for one in names)}
            case ast.ClassDef(bases=[_, *_], body=body):
                found |= {part.name for part in body if isinstance(part, ast.FunctionDef)} & FUNCTIONS.keys()
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def users():
    """Name -> files that use it, of those names that no file of ours defines."""
    files = [path for folder in ("common", "evals", "recipes") for path in (ROOT / folder).rglob("*.py")]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    defined = {getattr(node, "name", "") for tree in trees.values() for node in ast.walk(tree)} - FUNCTIONS.keys()
    stored = {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
        and node.value.id in {"self", *defined}
    }  # fmt: skip
    found = {}
    for path, tree in trees.items():
        for name in named(tree) - defined - (stored - ATTRIBUTES.keys() - FUNCTIONS.keys()):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def test_every_private_name_is_listed_here_and_used():
    found = users()
    found.pop("_exit", None)  # of os, documented
    listed = FUNCTIONS.keys() | ATTRIBUTES.keys() | MODULES.keys()
    assert found.keys() - listed == set(), {name: found[name] for name in found.keys() - listed}
    assert listed - found.keys() == set(), "no longer used: take them out of this file"


def at(place):
    """What a dotted name means: a module, or a class in one."""
    try:
        return importlib.import_module(place)
    except ImportError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    place, parameters = FUNCTIONS[name]
    found = getattr(at(place), name, None)
    assert callable(found), f"{place} has no {name}: {users().get(name)}"
    if parameters is not None:
        assert list(inspect.signature(found).parameters) == parameters, users().get(name)


def source(kind):
    """The text of a class; of the library's whole file where Unsloth has put a class of its own in its place."""
    try:
        return inspect.getsource(kind)
    except OSError:
        name = kind.__name__.removeprefix("_").removeprefix("Unsloth")
        files = (Path(trl.__file__).parent / "trainer").glob("*_trainer.py")
        return "".join(text for text in (file.read_text() for file in files) if f"class {name}(" in text)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name):
    owner = at(ATTRIBUTES[name])
    there = hasattr(owner, name) or any(f".{name} = " in source(kind) for kind in owner.__mro__[:-1])
    assert there, f"{ATTRIBUTES[name]} has no {name}: {users().get(name)}"


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    importlib.import_module(f"{MODULES[name]}.{name}")


def test_bars_of_lm_eval_are_drawn_by_a_name_that_can_be_replaced():
    """evals/harness/scoring.py puts its own in the place of this name in these modules; descriptions are as there."""
    from tunebook.evals.harness.scoring import RequestBar

    root = Path(importlib.util.find_spec("lm_eval").origin).parent
    texts = [(root / name).read_text() for name in ("api/model.py", "api/task.py", "models/huggingface.py")]
    assert all("\nfrom tqdm import tqdm\n" in text for text in texts)
    assert all(f'desc="{name}"' in "".join(texts) for name in RequestBar.names if name)
