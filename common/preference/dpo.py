"""Direct preference optimization: starting point, reference, and metrics on held-out pairs."""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

from tunebook.common import models
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.models import inference
from tunebook.common.preference import encoding
from tunebook.common.process import progress
from tunebook.common.tokens import templates
from tunebook.common.tokens.templates import AnyTemplate
from tunebook.common.training.metrics import TrainingMetrics

TASK = "held_out_pairs"  # as the report calls them among the scores


def starting_point(model: str | None, adapter: str | None) -> tuple[str, str | None]:
    """The model and the adapter folder to start from, as --model and --adapter name them.

    Without --model: the base that the adapter was trained on, or pocket_teacher where there is no adapter.

    Raises:
        UserError: no LoRA adapter, or its base is not there and no other is named.
    """
    if adapter is None:
        return model or "pocket_teacher", adapter
    folder = check_adapter(adapter)
    base = inference.base_of(folder)
    if not (model or base):
        raise UserError(f"--adapter {adapter}: its {inference.PEFT} names no base; name it by --model")
    if not model:
        try:
            models.resolve(base)
        except UserError as error:
            raise UserError(f"--adapter {adapter}: name its base by --model, as it lies elsewhere: {error}") from None
        return base, folder
    if base and base != model and Path(base).resolve() != Path(models.resolve(model)).resolve():
        print(f"note: the adapter was trained on {base}; here it is on {model}")
    return model, folder


def check_adapter(name: str) -> str:
    """The folder of a PEFT LoRA adapter: the one named, or adapter/ in it.

    Raises:
        UserError: there is none, or one of another kind.
    """
    folder = Path(name)
    if not (folder / inference.PEFT).exists() and (folder / "adapter" / inference.PEFT).exists():
        folder = folder / "adapter"
    try:
        kind = json.loads((folder / inference.PEFT).read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"--adapter {name}: there is no adapter ({inference.PEFT}). An SFT run makes one: "
            "accelerate launch recipes/lora_alpaca.py leaves runs/lora_alpaca/adapter"
        ) from None
    if kind != "LORA":
        raise UserError(f"--adapter {name}: it is of the kind {kind}; preferences go on from a LoRA adapter")
    return str(folder)


def load(base: str, adapter: str | None, max_length: int, kept: Path | None, write: bool = True) -> tuple[Any, Any]:
    """The model to start from, with its adapter on it, and its tokenizer.

    Args:
        kept: a folder for the base, which is then loaded in 4 bits; None: in the device's precision.
        write: whether it is saved there.
    """
    model, tokenizer = models.load(base, max_length, four_bit=kept is not None)
    if kept is not None and write and is_main_process():
        models.save(model, tokenizer, kept)
    return model if adapter is None else inference.load_adapter(model, adapter, trains=True), tokenizer


def template(name: str, tokenizer: Any, *folders: str | None) -> AnyTemplate:
    """The template of that name, checked against those saved with the model or adapter.

    Raises:
        UserError: there is none, or it is another.
    """
    chosen = templates.get(name, tokenizer)
    for folder in filter(None, folders):
        if (Path(folder) / templates.FILE).exists() and (saved := templates.load(folder)) != chosen:
            raise UserError(
                f"--template {name}: {folder} was tuned with {saved.name}; --template {saved.name}"
                + (f", with the variables and the thinking of {folder}/{templates.FILE}" if saved.name == name else "")
            )
    return chosen


def PreTokenizedDPOTrainer(trainer: type) -> type:
    """TRL's DPOTrainer for pairs that are encoded already (preference.encode, preference.Collator)."""

    import torch

    class Trainer(trainer):
        def __init__(self, model: Any, **kwargs: Any):
            # PEFT makes the copy of an adapter on the CPU even where the model has no weights (tunebook plan).
            with torch.device("meta") if model.device.type == "meta" else contextlib.nullcontext():
                super().__init__(model=model, **kwargs)

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            return super().compute_loss(model, encoding.masked(inputs), return_outputs, **kwargs)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super().compute_ref_log_probs(model, encoding.masked(inputs))

    return Trainer


def set_reference(trainer: Any, adapter: bool) -> None:
    """Make the reference of a DPOTrainer exact, and keep it out of what is saved. Call it before training.

    TRL (1.15) has put a frozen copy of the adapter, `ref`, beside it. With an adapter to start from, that copy is the
    reference; the adapter gets its values back, as those on a 4-bit base were rounded to bfloat16. A new adapter adds
    nothing yet: the reference is the model with the adapter off, and the copy goes.

    Only the adapter itself is saved: transformers (5.17) would load the copy alone on resuming.
    """
    import torch

    model = trainer.model
    models.train_in_float32(model)
    if not adapter:
        model.delete_adapter("ref")
        return
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if ".default." in name:
                weight.copy_(weights[name.replace(".default.", ".ref.")])
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=["default"])


def num_pairs(inputs: dict[str, Any]) -> Any:
    """float64 (): pairs of a batch, for callbacks.track_metrics."""
    import torch

    return torch.tensor(len(inputs["input_ids"]) // 2, dtype=torch.float64, device=inputs["input_ids"].device)


def measure(trainer: Any, log_file: Path) -> TrainingMetrics:
    """As callbacks.track_metrics, of pairs."""
    from tunebook.common.training import callbacks

    return callbacks.track_metrics(trainer, log_file, num_pairs)


class Rewards:
    """Rewards of held-out pairs (encoded by preference.encode) before and after; each process looks at all of them."""

    def __init__(self, trainer: Any, pairs: Any):
        self.trainer, self.pairs = trainer, pairs
        self.results: dict[str, dict[str, float]] = {}

    def evaluate(self, when: str) -> None:
        """Look at the pairs `before` or `after`, and say what is found."""
        if not len(self.pairs):
            return
        metrics = self.results[when] = reward_metrics(*_log_ratios(self.trainer, self.pairs), self.trainer.beta)
        print(
            f"{len(self.pairs)} held-out pairs {when}: rewards {metrics['reward_chosen']:+.2f} and "
            f"{metrics['reward_rejected']:+.2f}, margin {metrics['margin']:+.2f}; the better answer has the higher "
            f"reward in {metrics['accuracy']:.1%}, and is likelier in {metrics['likelier']:.1%}",
            flush=True,
        )

    def join(self, scores: dict[str, Any]) -> dict[str, Any]:
        """The results of harness.Scores with `preference`, and its shares in the comparison as one more task."""
        if not self.results:
            return scores
        before, after = self.results["before"], self.results["after"]
        shares = {
            name: {"before": before[name], "after": after[name], "items": len(self.pairs)}
            for name in ("accuracy", "likelier")
        }
        comparison = {**scores["comparison"], TASK: shares}
        return {**scores, "comparison": comparison, "preference": {**self.results, "pairs": len(self.pairs)}}


def reward_metrics(policy: Any, reference: Any, beta: float) -> dict[str, float]:
    """Metrics of log-probabilities, float64 (2, N) each: the chosen answers, then the rejected ones.

    Returns:
        Means of `reward_chosen` and `reward_rejected` (beta times policy less reference, Rafailov et al. 2023);
        `margin`, their difference; `accuracy`, the share of pairs whose chosen answer has the higher reward, and
        `likelier`, of those whose chosen answer is likelier to the policy alone. A tie counts one half. `ties`: the
        share of equal rewards.
    """
    rewards = beta * (policy - reference)

    def share(pair: Any) -> float:
        return float(((pair[0] > pair[1]).double() + 0.5 * (pair[0] == pair[1]).double()).mean())

    return {
        "reward_chosen": float(rewards[0].mean()),
        "reward_rejected": float(rewards[1].mean()),
        "margin": float((rewards[0] - rewards[1]).mean()),
        "accuracy": share(rewards),
        "ties": float((rewards[0] == rewards[1]).double().mean()),
        "likelier": share(policy),
    }


def _log_ratios(trainer: Any, pairs: Any) -> tuple[Any, Any]:
    """Log-probabilities of all answers under policy and reference, float64 (2, N) each, as the trainer has them."""
    import torch

    model, size, batches = trainer.model, trainer.args.eval_batch_size, []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            starts = range(0, len(pairs), size)
            for start in progress.track(starts, "held-out pairs", len(starts), "batches"):
                rows = [pairs[place] for place in range(start, min(start + size, len(pairs)))]
                batch = trainer._prepare_inputs(encoding.Collator(trainer.data_collator.pad_token_id)(rows))
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
                with trainer.compute_loss_context_manager():
                    log_probs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
                answers = log_probs.sum(1).chunk(2)
                batches.append(
                    torch.stack([torch.stack(answers), torch.stack(trainer.compute_ref_log_probs(model, batch))])
                )
    finally:
        model.train(was_training)
    policy, reference = torch.cat(batches, 2).double().cpu()
    return policy, reference
