"""Fields of a trainer's config that `--set` may give: those that would do nothing are refused, and so is what TRL or
transformers would refuse after the model is loaded."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tunebook.common import cli
from tunebook.common.errors import UserError

# When runs evaluate and save (run.Run.config), which transformers holds against what a user gives.
EVALUATION_SCHEDULE = {"eval_strategy": "steps", "eval_steps": 0.2, "save_steps": 0.2, "load_best_model_at_end": True}
TOGETHER = (
    "The best checkpoint is taken at the end, so evaluating and saving go together: give both, as in "
    "eval_steps=100 save_steps=100 or eval_strategy=epoch save_strategy=epoch, or add load_best_model_at_end=false"
)
PACKED = "recipes/packed_alpaca.py joins rows"
LABELED = "rows come with their labels: *_alpaca.py train the answers, chat_sharegpt.py all assistant turns or the last"
ORDERED = "rows of like length stand together, in an order drawn from the seed (data_seed=N draws another)"
SOURCE = "rows are read and encoded before the trainer is made: --dataset names files and columns"
TOKENIZER = "rows are encoded before it would be heard: set it in the tokenizer that --model names"
LOADED = "the model is loaded before it would be heard: give --model a folder or Hub name that is as wanted"
MEASURED = "held-out rows are measured by their loss alone: tunebook eval takes other metrics"
TRACKED = "trackio keeps the run in its folder: TRACKIO_SPACE_ID=..., or trackio sync afterwards"
# Field -> why it would do nothing here, and what does it: in all recipes.
UNUSED_FIELDS = {
    "packing": PACKED,
    "packing_strategy": PACKED,
    "eval_packing": PACKED,
    "padding_free": PACKED + ", without padding",
    "completion_only_loss": LABELED,
    "assistant_only_loss": LABELED,
    "truncation_mode": "no row is cut: longer ones are dropped and counted; --max_length",
    "shuffle_dataset": ORDERED,
    "train_sampling_strategy": ORDERED,
    "length_column_name": ORDERED,
    "dataset_text_field": SOURCE + ", as in output=COLUMN",
    "dataset_kwargs": SOURCE,
    "dataset_num_proc": SOURCE,
    "remove_unused_columns": SOURCE,
    "label_names": SOURCE,
    "eos_token": TOKENIZER,
    "pad_token": TOKENIZER,
    "chat_template_path": TOKENIZER,
    "model_init_kwargs": LOADED,
    "trust_remote_code": LOADED,
    "use_cpu": LOADED + "; CUDA_VISIBLE_DEVICES= hides the GPU",
    "use_cache": "training keeps no cache of keys and values, whatever it says",
    "include_for_metrics": MEASURED,
    "batch_eval_metrics": MEASURED,
    "prediction_loss_only": MEASURED,
    "eval_do_concat_batches": MEASURED,
    "eval_use_gather_object": MEASURED,
    "eval_accumulation_steps": MEASURED,
    "auto_find_batch_size": "--find_batch_size halves the batch and keeps the rows of a step",
    "disable_tqdm": "a bar is shown where standard error is a terminal: 2> log.txt turns it off",
    "do_train": "a recipe trains and evaluates",
    "do_eval": "a recipe trains and evaluates; eval_strategy=no load_best_model_at_end=false saves the time between",
    "do_predict": "a recipe trains and evaluates: tunebook eval scores a test set",
    "save_only_model": "a run could not go on: a checkpoint needs its optimizer and schedule",
    "resume_from_checkpoint": "--resume goes on with the run of output_dir",
    "ignore_data_skip": "a run that goes on would train on rows that it has had; to find its place takes a second",
    "parallelism_config": "every process has the whole model",
    "enable_jit_checkpoint": "a signal ends the step and saves it, whatever it says",
    "trackio_space_id": TRACKED,
    "trackio_bucket_id": TRACKED,
    "trackio_static_space_id": TRACKED,
    "local_rank": "torchrun and accelerate launch set it",
}
UNEVALUATED = "no held-out rows are looked at while it trains"
# More of them by the config's name; None: there it does something.
MORE: dict[str, dict[str, str | None]] = {
    "DPOConfig": {
        "label_smoothing_factor": "label_smoothing is that of preferences",
        "pad_to_multiple_of": "pairs are padded to the longest",
    },
    "DistillationConfig": {
        "shuffle_dataset": None,
        **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "load_best_model_at_end",
                         "metric_for_best_model", "greater_is_better"), UNEVALUATED),
        "label_smoothing_factor": "a student that answers by itself has no labels to smooth",
        "chat_template_kwargs": SOURCE,
        "max_tool_calling_iterations": "there are no tools",
        "teacher_model_name_or_path": "--teacher",
        "teacher_model_revision": LOADED,
        "teacher_model_init_kwargs": LOADED,
    },
}  # fmt: skip
# What one kind of recipe does not take, beside that.
VIRTUAL = {
    "label_smoothing_factor": "transformers would hold virtual tokens against the wrong labels; lora_alpaca takes it"
}
PREFIXES = VIRTUAL | {
    "gradient_checkpointing": "transformers leaves prefixes out where it recomputes a layer; lora_alpaca takes it"
}
JOINED = {"pad_to_multiple_of": "rows are joined up to --max_length"}
HUB = "push_to_hub=true"
# Field -> what it needs to do anything: a test of the whole config, and how to say it.
NEEDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **{name: (lambda config: config.push_to_hub, HUB) for name in (
        "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision")},
    "liger_kernel_config": (lambda config: config.use_liger_kernel, "use_liger_kernel=true"),
    "eval_steps": (lambda config: config.eval_strategy == "steps", "eval_strategy=steps"),
    "eval_delay": (lambda config: config.eval_strategy != "no", "eval_strategy=steps or epoch"),
    "save_steps": (lambda config: config.save_strategy == "steps", "save_strategy=steps"),
    "logging_steps": (lambda config: config.logging_strategy == "steps", "logging_strategy=steps"),
    "metric_for_best_model": (
        lambda config: config.load_best_model_at_end or config.save_strategy == "best"
        or config.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"), "load_best_model_at_end=true"),
    "greater_is_better": (lambda config: config.metric_for_best_model, "metric_for_best_model"),
    "optim_target_modules": (
        lambda config: str(config.optim.value).startswith(("galore", "apollo")), "an optimizer of GaLore or APOLLO"),
    "label_smoothing_factor": (lambda config: getattr(config, "loss_type", "nll") == "nll", "loss_type=nll"),
    "dataloader_persistent_workers": (lambda config: config.dataloader_num_workers, "dataloader_num_workers=1 or more"),
    "precompute_ref_batch_size": (lambda config: config.precompute_ref_log_probs, "precompute_ref_log_probs=true"),
    "label_smoothing": (
        lambda config: {"exo_pair", "robust", "aot", "aot_unpaired"} & set(config.loss_type),
        "loss_type=robust, exo_pair, aot or aot_unpaired"),
    "discopop_tau": (lambda config: "discopop" in config.loss_type, "loss_type=discopop"),
    "f_alpha_divergence_coef": (
        lambda config: config.f_divergence_type == "alpha_divergence", "f_divergence_type=alpha_divergence"),
    "ref_model_mixup_alpha": (lambda config: config.sync_ref_model, "sync_ref_model=true"),
    "ref_model_sync_steps": (lambda config: config.sync_ref_model, "sync_ref_model=true"),
}  # fmt: skip
LOSSES = {  # of TRL's trainers
    "SFTConfig": ("nll", "dft", "chunked_nll"),
    "DPOConfig": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
}  # fmt: skip
MOST = 1e9
# The numbers that a field takes, both ends among them. Transformers takes others, and fails or does nothing later.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("save_steps", "eval_steps", "logging_steps"), (1e-9, MOST)),
    **dict.fromkeys(("save_total_limit", "per_device_eval_batch_size", "dataloader_prefetch_factor", "ddp_timeout",
                     "pad_to_multiple_of", "torch_empty_cache_steps"), (1, MOST)),
    **dict.fromkeys(("warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha", "eval_delay"), (0, MOST)),
    "adam_epsilon": (1e-30, MOST),  # half of an adapter has no gradient in the first step, and 0 / 0 is no number
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (0, 0.999999999)),
    "dataloader_num_workers": (0, 256),
    "data_seed": (0, 2**32 - 1),
}  # fmt: skip
WORDS = {
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
}
OF_A_GPU = ("tf32", "activation_offloading")
RECOMPUTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
# What evaluations tell beside the loss, by the config's name (training/callbacks.py makes them means over tokens).
METRICS = {"SFTConfig": ("mean_token_accuracy", "entropy"), "DPOConfig": ("rewards/accuracies", "rewards/margins")}


def overrides(
    pairs: list[str], config_class: type, written: set[str], unheard: dict[str, str] | None = None
) -> dict[str, Any]:
    """`NAME=VALUE` words as keyword arguments of `config_class`, for --set.

    Args:
        pairs, written: as `cli.values`.
        unheard: more fields without effect in this recipe -> why, and what does it.

    Raises:
        UserError: as `cli.values`; or all fields without effect; or the first values that TRL or transformers refuse.
    """
    values = cli.values(pairs, config_class, written)
    unused = {**UNUSED_FIELDS, **MORE.get(kind(config_class), {}), **(unheard or {})}
    refused = [f"{name}: {why}" for name, why in unused.items() if why and name in values]
    if refused:
        raise UserError("--set, what this recipe does not take:\n  " + "\n  ".join(refused))
    if outside := list(filter(None, (_outside(name, value) for name, value in values.items()))):
        raise UserError("\n  ".join(outside))
    if not values:
        return values
    config, problem = _make(values, config_class)
    if problem:
        raise UserError(f"--set {_named(_culprits(values, config_class))}: {problem}")
    for name in values:
        holds, needed = NEEDS.get(name, (None, ""))
        if holds and not holds(config):
            raise UserError(f"--set {_named({name: values[name]})}: it does nothing without {needed}")
    for names, test in CHECKS.items():
        tested = {name: values[name] for name in names if name in values}
        if tested and (problem := _problem(test, config, config_class)):
            raise UserError(f"--set {_named(tested)}: {problem}")
    return values


def _has_gpu() -> bool:
    from tunebook.common.models import device

    return device.current().gpu


def _outside(name: str, value: Any) -> str:
    """Why a value is none that its field takes, where that is known."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"--set {name}={value}: it is not a number to train with"
    low, high = RANGES.get(name, (0, 0))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and name in RANGES and not low <= value <= high:
        return f"--set {name}={value:g}: it is from {low:g} to {high:g}"
    if name in WORDS and value not in WORDS[name]:
        return f"--set {name}={value}: it is one of {', '.join(map(str, WORDS[name]))}"
    if name in OF_A_GPU and value is True and not _has_gpu():
        return f"--set {name}=true: it does nothing without a GPU"
    if name == "gradient_checkpointing_kwargs" and isinstance(value, dict) and (over := set(value) - {*RECOMPUTING}):
        return f"--set {name}: there is no {min(map(str, over))}, but {', '.join(RECOMPUTING)}"
    return ""


def kind(config_class: type) -> str:
    """The name of TRL's config that this is or derives from, as Unsloth's do on a GPU."""
    names = [base.__name__ for base in config_class.__mro__]
    return next((name for name in names if name in {*METRICS, *MORE}), names[0])


def _make(values: dict[str, Any], config_class: Any) -> tuple[Any, str]:
    """The config of a recipe with these values, or why there is none."""
    from tunebook.common.batching import dataloader
    from tunebook.common.models import device

    schedule = {} if UNEVALUATED in MORE.get(kind(config_class), {}).values() else EVALUATION_SCHEDULE
    written = {**schedule, **device.current().precision, **dataloader.dataloader_settings()}
    try:
        return config_class(output_dir="unused", **{**written, **values}), ""
    except Exception as error:  # whatever the library raises, it is about these values
        words = " ".join(str(error).split())
        return None, TOGETHER if "load_best_model_at_end requires" in words else words


def _culprits(values: dict[str, Any], config_class: type) -> dict[str, Any]:
    """Those values without which the others are accepted; all where there is no such one."""
    culprits = {}
    for name, value in values.items():
        rest = {other: values[other] for other in values if other != name}
        if not _make(rest, config_class)[1]:
            culprits[name] = value
    return culprits or values


def _named(values: dict[str, Any]) -> str:
    words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return " ".join(f"{name}={word}" for name, word in words.items())


def _problem(test: Callable[[Any, type], str | None], config: Any, config_class: type) -> str:
    try:
        return test(config, config_class) or ""
    except Exception as error:
        return " ".join(str(error).split())


def _schedule(config: Any, config_class: type) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    warmup, more = config.get_warmup_steps(100), config.lr_scheduler_kwargs
    get_scheduler(config.lr_scheduler_type, optimizer, warmup, 100, scheduler_specific_kwargs=more)


def _optimizer(config: Any, config_class: type) -> str | None:
    from transformers import Trainer

    if config.optim_target_modules is None:  # those of other optimizers are looked up in the model
        Trainer.get_optimizer_cls_and_kwargs(config)


def _optimizer_words(config: Any, config_class: type) -> str | None:
    from transformers import Trainer

    if not config.optim_args or config.optim_target_modules is not None:
        return None
    kind, values = Trainer.get_optimizer_cls_and_kwargs(config)
    if (kind, values) == Trainer.get_optimizer_cls_and_kwargs(dataclasses.replace(config, optim_args=None)):
        return f"{config.optim.value} reads nothing of it"
    return None


def _metric(config: Any, config_class: type) -> str | None:
    known = ("loss", *METRICS.get(kind(config_class), ()))
    if kind(config_class) in METRICS and config.metric_for_best_model.removeprefix("eval_") not in known:
        return f"an evaluation tells {', '.join(f'eval_{name}' for name in known)}"


def _loss(config: Any, config_class: type) -> str | None:
    known = LOSSES.get(kind(config_class))
    if known is None:
        return None
    if isinstance(config.loss_type, str):
        return None if config.loss_type in known else f"there is {', '.join(known)}"
    if strange := set(config.loss_type) - set(known):
        return f"there is no {min(strange)}, but {', '.join(known)}"
    if "exo_pair" in config.loss_type and config.label_smoothing == 0:
        return "exo_pair needs a label_smoothing above 0, such as 0.001"
    if config.use_weighting and {"aot", "aot_unpaired"} & set(config.loss_type):
        return "use_weighting does not go with aot and aot_unpaired"


def _liger(config: Any, config_class: type) -> str | None:
    from transformers.utils.import_utils import is_liger_kernel_available

    if config.use_liger_kernel and not is_liger_kernel_available():
        return "liger-kernel is not installed: pip install liger-kernel"


def _hub(config: Any, config_class: type) -> str | None:
    from huggingface_hub import whoami

    if config.push_to_hub:
        try:
            whoami(config.hub_token)
        except Exception as error:
            return f"the Hub does not let this machine in ({type(error).__name__}): hf auth login, or push afterwards"


CHECKS: dict[tuple[str, ...], Callable[[Any, type], str | None]] = {
    ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"): _schedule,
    ("optim", "optim_args"): _optimizer,
    ("optim_args",): _optimizer_words,
    ("metric_for_best_model",): _metric,
    ("loss_type", "label_smoothing", "use_weighting"): _loss,
    ("use_liger_kernel",): _liger,
    ("push_to_hub",): _hub,
}
