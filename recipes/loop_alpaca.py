"""A plain loop: what lora_alpaca.py does, with Accelerate and no Trainer. Its losses equal the Trainer's, step by step.

    accelerate launch recipes/loop_alpaca.py
    accelerate launch recipes/loop_alpaca.py --model unsloth/Llama-3.2-1B --dataset tatsu-lab/alpaca

Measured, 2 CPU cores: exact match 0 -> 89 % (unseen phrasings 0 -> 78 %), world knowledge 99.0 -> 97.3 %, as LoRA.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

from tunebook.common import cli
from tunebook.common.batching import weight_collator
from tunebook.common.run import Run, RunOptions


@dataclass
class Args(RunOptions):
    model: str = "pocket"  # Hub name, folder, or the bundled model
    dataset: list[str] = field(default_factory=lambda: ["pocket"])  # files or Hub names; a.json:0.7 b.csv:0.3 mixes
    max_length: int = 512  # tokens of prompt and answer; longer rows are dropped, and counted
    lora_r: int = 16  # rank of the adapters
    learning_rate: float | None = None  # default: 2e-3 below 50 M parameters, else 2e-4
    per_device_train_batch_size: int = 16  # per-device batch size
    num_train_epochs: float | None = None  # passes over the training set; default: 5 below 50 M parameters, else 3


def main(args: Args) -> dict:
    from tunebook.common import models
    from tunebook.common.batching import dataloader, samplers
    from tunebook.common.tokens import lengths, templates
    from tunebook.evals.harness.before_after import BeforeAfter

    base, run = models.resolve(args.model, args.max_length), Run(__file__, args)
    evaluation = BeforeAfter(run)
    splits = run.load_data()

    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from accelerate import Accelerator
    from torch.optim import AdamW
    from transformers import get_scheduler
    from trl.trainer import add_fused_lm_head

    from tunebook.common.estimate import trainer_steps
    from tunebook.common.models import lora
    from tunebook.common.training import checkpoints, loop

    run.start()
    model, tokenizer = models.load(args.model, args.max_length)
    add_fused_lm_head(model)  # never makes full logits
    template = templates.ALPACA
    run.defaults(model, tokenizer, template, rate=(2e-3, 2e-4), epochs=(5, 3))
    train, held_out = run.encode(splits, tokenizer, template, args.max_length)
    evaluation.before(model, tokenizer, template, splits)
    ranks = dict(r=args.lora_r, lora_alpha=2 * args.lora_r)
    model = lora.add(model, **ranks, target_modules="all-linear", random_state=args.seed)
    models.train_in_float32(model)

    accelerator = Accelerator(**run.accelerator_options())
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    group = size * accumulation * accelerator.num_processes  # rows of an optimizer step
    order = samplers.LengthGroupedSampler(lengths.lengths_of(train), group, args.seed)
    loader, eval_loader = dataloader.loader(train, tokenizer, size, order), dataloader.loader(held_out, tokenizer, size)
    max_steps = loop.num_steps(len(train), group, args.num_train_epochs, args.max_steps)
    optimizer = AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True)
    schedule = get_scheduler("cosine", optimizer, math.ceil(0.03 * max_steps), max_steps)
    model, optimizer, loader, eval_loader = accelerator.prepare(model, optimizer, loader, eval_loader)
    actor = trainer_steps.loop_step_functions(accelerator, model, loader, loss_of, accumulation)
    metrics = run.prepare_loop(actor, loader, "adamw_torch_fused", max_steps)
    if args.dry_run:
        return run.forecast

    held_out_loss = loop.held_out_loss(accelerator, model, eval_loader, loss_of)
    metrics.evaluated(0, held_out_loss())
    processing_class = run.processing_class(template, accelerator.unwrap_model(model))
    saved = checkpoints.Checkpoints(accelerator, run.dir, schedule, metrics, tokenizer=processing_class)
    metrics.begin(done := saved.load(run.checkpoint), max_steps)
    loop.take_left_evaluation(saved, model, done, held_out_loss)
    for step, batches, tokens in loop.batches(accelerator, loader, order, accumulation, done, max_steps, metrics):
        values = train_step(accelerator, model, optimizer, schedule, batches, tokens)
        metrics.step(step, accelerator.optimizer_step_was_skipped)
        if step % math.ceil(max_steps / 100) == 0:
            metrics.log(step, values)
        due = step % math.ceil(max_steps / 5) == 0 or step == max_steps
        loop.end_step(saved, model, step, held_out_loss if due else None)
    metrics.end()
    saved.load_best(model)
    metrics.evaluated(max_steps, held_out_loss())
    model = saved.finish(model, run.dir / "adapter")
    return run.finish(model, evaluation.samples, evaluation.after(model, base, run.dir / "adapter"))


def loss_of(model, batch):
    """Sum over the labels of a batch that train, by their weights; without the balancing loss of a mixture's router."""
    log_probs_BT = model(**weight_collator.without_weights(batch), use_cache=False, fused_lm_head=True).log_probs
    return -weight_collator.apply_weights(log_probs_BT, batch).sum()


def train_step(accelerator, model, optimizer, schedule, batches, tokens) -> dict[str, float]:
    """One optimizer step: the loss is the mean over all tokens of the step, however they are split."""
    loss = 0.0
    for place, batch in enumerate(batches, 1):
        with nullcontext() if place == len(batches) else accelerator.no_sync(model):
            part = loss_of(model, batch) / tokens
            accelerator.backward(part * accelerator.num_processes)  # whose gradients are averaged, not added
        loss += part.detach()
    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    rate = schedule.get_last_lr()[0]
    if not accelerator.optimizer_step_was_skipped:  # float16: the scaler found a gradient that is no number
        schedule.step()
    optimizer.zero_grad()
    return {"loss": accelerator.reduce(loss, "sum").item(), "grad_norm": float(norm), "learning_rate": rate}


if __name__ == "__main__":
    cli.run(main, Args)
