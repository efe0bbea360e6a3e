"""What --sft takes: each field of the trainers' configs either does something or is refused by name, before the model.

The libraries are the oracle: what they refuse is refused, what they take is taken.
"""

import dataclasses
import inspect
import re

import forked
import pytest
from paths import ROOT

from tunebook.common import cli, errors
from tunebook.common.training import config_overrides

pytestmark = [pytest.mark.recipe, pytest.mark.xdist_group("unsloth")]  # imported in this process: in one is enough
# Fields that do something in a recipe; one that TRL or transformers adds has to be put here or in settings.UNHEARD.
HEARD = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm label_smoothing_factor
    bf16 fp16 bf16_full_eval fp16_full_eval tf32 gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config neftune_noise_alpha
    torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica report_to run_name project
    eval_strategy eval_steps eval_delay per_device_eval_batch_size
    eval_on_start save_strategy save_steps save_on_each_node save_total_limit
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    load_best_model_at_end metric_for_best_model greater_is_better
    restore_callback_states_from_checkpoint full_determinism seed data_seed accelerator_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug
    skip_memory_metrics router_aux_loss_coef max_length pad_to_multiple_of loss_type activation_offloading
    """
PREFERENCES = """
    disable_dropout precompute_ref_log_probs precompute_ref_batch_size loss_weights ld_alpha f_divergence_type
    f_alpha_divergence_coef label_smoothing beta use_weighting discopop_tau sync_ref_model ref_model_mixup_alpha
    ref_model_sync_steps
    """


@pytest.fixture(scope="module")
def configs():
    cli._environment()
    import unsloth  # noqa: F401  first: it patches trl
    from trl import DistillationConfig, DPOConfig, SFTConfig

    return {"SFT": SFTConfig, "DPO": DPOConfig, "answers": DistillationConfig}


def refusal(pairs, config, **more):
    """What `--sft` says to them; None where it takes them."""
    try:
        config_overrides.overrides(pairs, config, written={"learning_rate"}, **more)
    except errors.UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "more"), [("SFT", ""), ("DPO", PREFERENCES)])
def test_every_field_is_classified(configs, name, more):
    config = configs[name]
    known = {field.name for field in dataclasses.fields(config)}
    refused = (config_overrides.UNUSED_FIELDS | config_overrides.MORE.get(config.__name__, {})).keys()
    heard = {*HEARD.split(), *more.split()}
    assert known <= heard | refused, known - heard - refused
    assert not heard & config_overrides.UNUSED_FIELDS.keys() and config_overrides.NEEDS.keys() <= {
        *HEARD.split(),
        *PREFERENCES.split(),
    }


def test_fields_without_effect_are_refused_by_name(configs):
    for name in config_overrides.UNUSED_FIELDS.keys() & {field.name for field in dataclasses.fields(configs["SFT"])}:
        kind = str(configs["SFT"].__dataclass_fields__[name].type)
        text = "true" if "bool" in kind else "3" if "int" in kind else "a"
        said = refusal([f"{name}={text}"], configs["SFT"])
        assert said and f"{name}: {config_overrides.UNUSED_FIELDS[name]}" in said, name
    said = refusal(["packing=true", "shuffle_dataset=true"], configs["SFT"])
    assert "packing: recipes/packed_alpaca.py" in said and "shuffle_dataset: rows of like length" in said
    assert refusal(["shuffle_dataset=false"], configs["answers"]) is None  # its sampler is TRL's
    assert "no held-out rows" in refusal(["eval_strategy=steps"], configs["answers"])
    assert "pad_to_multiple_of" in refusal(["pad_to_multiple_of=8"], configs["DPO"])
    assert refusal(["pad_to_multiple_of=8"], configs["SFT"]) is None


def test_a_config_that_is_made_from_trls_is_known(configs):
    made = dataclasses.make_dataclass("UnslothSFTConfig", [], bases=(configs["SFT"],))
    assert config_overrides.kind(made) == "SFTConfig" and "there is nll, dft" in refusal(["loss_type=foo"], made)
    other = dataclasses.make_dataclass("Own", [("loss_type", str, "mine")], bases=(configs["SFT"].__mro__[1],))
    assert refusal(["loss_type=foo"], other) is None and refusal(["metric_for_best_model=mine"], other) is None


def test_they_have_no_effect(configs, tmp_path):
    """TRL's trainer, made as the recipes make it, has the same first batch and loss with each of them."""
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTTrainer

    from tunebook.common.batching import samplers
    from tunebook.common.tokens.tokenization import load

    tokenizer, sizes = load("pocket")[0], dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    rows = Dataset.from_list(
        [{"input_ids": [*range(5, 9 + n)], "labels": [-100, 6, *range(7, 9 + n)]} for n in range(9)]
    )

    def seen(**given):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=3072, num_attention_heads=2, **sizes))
        fixed = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "padding_free": False, "seed": 0}
        args = configs["SFT"](
            **{"output_dir": str(tmp_path), "report_to": "none", "bf16": False, "gradient_checkpointing": False,
               "per_device_train_batch_size": 3, "max_length": 8, **fixed, **given}
        )  # fmt: skip
        trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=args)
        samplers.group_by_length(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
        return batch["input_ids"].tolist(), trainer.compute_loss(trainer.model, batch).item()

    plain = seen()
    for given in (
        {"packing": True}, {"padding_free": True}, {"eval_packing": True}, {"completion_only_loss": False},
        {"truncation_mode": "keep_end"}, {"shuffle_dataset": True}, {"dataset_text_field": "foo"},
        {"train_sampling_strategy": "sequential"}, {"use_cache": True}, {"dataset_num_proc": 2},
    ):  # fmt: skip
        assert seen(**given) == plain, given


@pytest.mark.parametrize(
    "words",
    ["eval_steps=2 save_steps=3", "save_strategy=epoch", "save_strategy=no", "eval_strategy=no", "eval_steps=100",
     "lr_scheduler_type=cosin", "logging_steps=0", "optim=adamm", "warmup_steps=-1", "dataloader_prefetch_factor=2",
     "hub_strategy=never", "debug=all", "accelerator_config={a: 1}", "eval_steps=2.5 save_steps=2.5",
     "eval_steps=10 save_steps=20", "eval_strategy=epoch save_strategy=epoch", "save_strategy=best",
     "eval_strategy=no save_strategy=no load_best_model_at_end=false", "warmup_steps=20", "max_grad_norm=0.5"],
)  # fmt: skip
def test_what_transformers_refuses_of_a_recipes_config_is_refused(configs, words):
    """Its own class is asked, with what the recipes write beside."""
    pairs = words.split() if "{" not in words else [words]
    values = cli.values(pairs, configs["SFT"], set())
    written = dict(eval_strategy="steps", eval_steps=0.2, save_steps=0.2, load_best_model_at_end=True, bf16=False)
    try:
        configs["SFT"](output_dir="unused", **{**written, **values})
        theirs = None
    except Exception as error:
        theirs = error
    said = refusal(pairs, configs["SFT"])
    assert (said is None) == (theirs is None), (said, theirs)
    assert said is None or (said.startswith(f"--set {pairs[0].partition('=')[0]}=") and "\n" not in said)


@pytest.mark.parametrize(
    ("name", "pairs", "says"),
    [
        ("SFT", ["metric_for_best_model=accuracy"], "eval_loss, eval_mean_token_accuracy, eval_entropy"),
        ("SFT", ["loss_type=nlll"], "there is nll, dft"),
        ("DPO", ["loss_type=[sigmoid, foo]"], "there is no foo"),
        ("DPO", ["loss_type=exo_pair"], "label_smoothing above 0"),
        ("DPO", ["label_smoothing=0.1"], "does nothing without loss_type=robust"),
        ("SFT", ["lr_scheduler_type=cosine_with_min_lr"], "lr_scheduler_type=cosine_with_min_lr: One of min_lr"),
        ("SFT", ["lr_scheduler_kwargs={foo: 1}"], "unexpected keyword argument 'foo'"),
        ("SFT", ["optim=lomo"], "lomo"),
        ("SFT", ["hub_model_id=me/it"], "does nothing without push_to_hub=true"),
        ("SFT", ["label_smoothing_factor=0.1", "loss_type=dft"], "does nothing without loss_type=nll"),
        ("SFT", ["eval_strategy=epoch", "save_strategy=epoch", "eval_steps=9"], "without eval_strategy=steps"),
        ("SFT", ["optim_args=a=b"], "reads nothing of it"),
        ("SFT", ["optim=ademamix", "optim_args=gamma=1"], "reads nothing of it"),
        ("SFT", ["optim_target_modules=all-linear"], "without an optimizer of GaLore or APOLLO"),
        ("SFT", ["ignore_data_skip=true"], "would train on rows that it has had"),
        ("SFT", ["save_total_limit=2.5"], "'2.5' is not a whole number"),
        ("SFT", ["gradient_checkpointing=flase"], "'flase' is not true or false"),
        ("SFT", ["logging_steps=ten"], "'ten' is not a number"),
        ("SFT", ["optim=sgd", "save_strategy=no"], "--set save_strategy=no: The best checkpoint"),  # not optim
    ],
)  # fmt: skip
def test_what_would_fail_later_is_refused_in_one_message(configs, name, pairs, says):
    assert says in (refusal(pairs, configs[name]) or "nothing")


def test_nested_numbers_are_numbers_and_words_are_words(configs):
    pairs = ["lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs={min_lr: 1e-4}", "run_name=1e5"]
    pairs += ["optim=adamw_torch", "weight_decay=1e-2", "eval_strategy=no", "load_best_model_at_end=false"]
    found = config_overrides.overrides(pairs, configs["SFT"], set())
    assert found["lr_scheduler_kwargs"] == {"min_lr": 1e-4} and found["weight_decay"] == 0.01
    assert found["run_name"] == "1e5" and found["eval_strategy"] == "no" and found["load_best_model_at_end"] is False


def test_the_losses_of_preferences_are_those_of_trl(configs):
    from trl import DPOTrainer

    named = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(inspect.getmodule(DPOTrainer))))
    assert named == set(config_overrides.LOSSES["DPOConfig"])


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        ("lora_alpaca", ["save_strategy=epoch"], "--set save_strategy=epoch: The best checkpoint"),
        ("packed_alpaca", ["packing=true"], "packing: recipes/packed_alpaca.py joins rows"),
        ("prefix_alpaca", ["gradient_checkpointing=true"], "gradient_checkpointing: transformers leaves prefixes out"),
        ("prompt_tuning_alpaca", ["label_smoothing_factor=0.1"], "label_smoothing_factor: transformers would hold"),
        ("distill_alpaca", ["loss_type=dft"], "loss_type: a student's loss"),
        ("dpo_pairs", ["loss_type=foo"], "--set loss_type=foo: "),
        ("lora_alpaca", ["project=mine", "run_name=mine"], "run_name: --report_to wandb or trackio reads it"),
    ],
)
def test_a_recipe_ends_with_2_before_anything_is_written(tmp_path, recipe, words, says):
    done = forked.run(ROOT / "recipes" / f"{recipe}.py", "--output_dir", tmp_path, "--sft", *words)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pair",
    ["save_steps=0", "save_steps=-1", "save_steps=1e300", "logging_steps=.nan", "warmup_steps=1e300", "weight_decay=-1",
     "weight_decay=.inf", "adam_beta1=2", "adam_beta2=1.5", "adam_epsilon=-1", "max_grad_norm=-1", "data_seed=-1",
     "label_smoothing_factor=1", "neftune_noise_alpha=-1", "dataloader_num_workers=-1", "data_seed=1e30",
     "dataloader_num_workers=1000000", "save_total_limit=0", "per_device_eval_batch_size=0", "ddp_timeout=-1",
     "log_level=evil", "run_name=[1]", "adam_epsilon=0",
     "pad_to_multiple_of=0", "eval_delay=-1", "include_num_input_tokens_seen=evil",
     "tf32=true", "activation_offloading=true",
     "gradient_checkpointing_kwargs={evil: 1}", "optim={a: 1}", "save_steps=[1]", "torch_empty_cache_steps=0"],
)  # fmt: skip
def test_what_would_fail_while_it_trains_is_refused(configs, pair):
    """Transformers takes these, and raises, or does nothing, an hour later."""
    said = refusal([pair], configs["SFT"])
    name = pair.partition("=")[0]
    assert said and said.startswith("--set") and name in said and len(said.splitlines()) <= 2, said


@pytest.mark.parametrize("pair", ["max_grad_norm=0", "adam_epsilon=1e-12", "save_total_limit=1", "logging_steps=0.5",
                                  "dataloader_num_workers=4", "data_seed=0", "log_level=warning"])  # fmt: skip
def test_ends_of_ranges_are_taken(configs, pair):
    assert refusal([pair], configs["SFT"]) is None
