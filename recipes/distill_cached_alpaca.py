"""Distillation on Alpaca rows from a teacher that runs once: its likeliest tokens are kept in a file for all students.

    accelerate launch recipes/distill_cached_alpaca.py
    accelerate launch recipes/distill_cached_alpaca.py --targets runs/targets.safetensors --seed 1

With --targets, runs share one such file.
"""

from dataclasses import dataclass, field

from tunebook.common import cli
from tunebook.common.run import Run, TrainerOptions


@dataclass
class Args(TrainerOptions):
    model: str = "pocket"  # Hub name, folder, or the bundled model
    teacher: str = "pocket_teacher"  # the same; with the student's tokenizer
    alpha: float = 0.5  # weight of the teacher; the answers have the rest
    temperature: float = 2.0  # of both models' probabilities
    beta: float = 0.0  # 0: KL(teacher‖student), 1: KL(student‖teacher), between: Jensen-Shannon
    top_k: int = 64  # tokens of which the teacher's probability is kept; all others are one outcome
    targets: str | None = None  # the file, made where it is not there; default: targets.safetensors in output_dir
    load_in_4bit: bool = False  # the student's base in NF4
    dataset: list[str] = field(default_factory=lambda: ["pocket"])  # files or Hub names; a.json:0.7 b.csv:0.3 mixes
    max_length: int = 512  # tokens of prompt and answer; longer rows are dropped, and counted
    lora_r: int = 16  # rank of the student's adapters
    learning_rate: float | None = None  # default: 2e-3 below 50 M parameters, else 2e-4
    per_device_train_batch_size: int = 16  # per-device batch size
    num_train_epochs: float | None = None  # passes over the training set; default: 5 below 50 M parameters, else 3


def main(args: Args) -> dict:
    from tunebook.common import models
    from tunebook.common.tokens import templates
    from tunebook.evals.harness.before_after import BeforeAfter

    base, run = models.resolve(args.model, args.max_length), Run(__file__, args)
    evaluation = BeforeAfter(run)
    splits = run.load_data()

    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import SFTConfig, SFTTrainer

    from tunebook.common import distillation
    from tunebook.common.distillation import losses, teacher_cache, teacher_cache_writer
    from tunebook.common.models import lora
    from tunebook.common.training import weighted_loss

    blend = losses.DistillationLoss(args.alpha, args.temperature, args.beta)
    run.start(SFTConfig, unheard=distillation.UNUSED_FIELDS)
    model, tokenizer = models.load(args.model, args.max_length, args.load_in_4bit)

    template = templates.ALPACA
    run.defaults(model, tokenizer, template, rate=(2e-3, 2e-4), epochs=(5, 3))
    train, held_out = run.encode(splits, tokenizer, template, args.max_length)
    said = (args.teacher, args.temperature, args.top_k, args.max_length, held_out)
    teacher = teacher_cache_writer.open_or_make(
        args.targets or run.dir / "targets.safetensors", train, tokenizer, template, *said
    )
    evaluation.before(model, tokenizer, template, splits)
    ranks = dict(r=args.lora_r, lora_alpha=2 * args.lora_r)
    model = lora.add(model, **ranks, target_modules="all-linear", random_state=args.seed)
    distillation.prepare(model, args.model)

    class Distiller(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return distillation.loss(self, model, inputs, num_items_in_batch, teacher, blend)

    trainer = Distiller(
        model=model,
        processing_class=run.processing_class(template, model),
        train_dataset=train,
        eval_dataset=held_out,
        callbacks=run.callbacks(evaluation.samples),
        args=run.config(  # adds what run and device decide: folders, checkpoints, precision, data loader, --set
            SFTConfig,
            max_length=args.max_length,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,  # fraction of total steps
            weight_decay=0.0,
            optim="adamw_torch_fused",
            router_aux_loss_coef=0.0,  # a mixture of experts learns from teacher and labels alone
        ),
    )
    trainer.data_collator = teacher_cache.TargetCollator(trainer.data_collator, teacher)
    run.prepare(trainer, weigh=weighted_loss.pass_weights)  # one batch previewed; memory and time estimated
    if args.dry_run:
        return run.forecast

    run.train(trainer)
    trainer.save_model(str(run.dir / "adapter"))
    scores = evaluation.after(model, base, run.dir / "adapter")
    return run.finish(model, evaluation.samples, teacher_cache_writer.add_to_scores(scores, teacher, held_out, blend))


if __name__ == "__main__":
    cli.run(main, Args)
