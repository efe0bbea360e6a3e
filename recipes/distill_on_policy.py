"""On-policy distillation: the student answers the prompts itself, and its teacher says what it thinks of each token.

    accelerate launch recipes/distill_on_policy.py
    accelerate launch recipes/distill_on_policy.py --model runs/my_sft/merged --teacher unsloth/Llama-3.1-8B-Instruct

The answers in the data are not learned from. A student that cannot answer at all should be tuned on them first.
"""

from dataclasses import dataclass, field

from tunebook.common import cli
from tunebook.common.run import Run, RunOptions


@dataclass
class Args(RunOptions):
    model: str = "pocket"  # Hub name, folder, or the bundled model
    teacher: str = "pocket_teacher"  # the same; with the student's tokenizer
    temperature: float = 1.0  # of both models' probabilities, and of the answers
    beta: float = 1.0  # 0: KL(teacher‖student), 1: KL(student‖teacher), between: Jensen-Shannon
    max_completion_length: int = 24  # tokens of an answer of the student
    load_in_4bit: bool = False  # the student's base in NF4
    teacher_load_in_4bit: bool = False  # the teacher in NF4
    dataset: list[str] = field(default_factory=lambda: ["pocket"])  # files or Hub names; a.json:0.7 b.csv:0.3 mixes
    max_length: int = 512  # tokens of prompt and answer; longer rows are dropped, and counted
    lora_r: int = 16  # rank of the student's adapters
    learning_rate: float | None = None  # default: 2e-3 below 50 M parameters, else 2e-4
    per_device_train_batch_size: int = 16  # per-device batch size
    num_train_epochs: float | None = None  # passes over the training set; default: 5 below 50 M parameters, else 3
    set: list[str] = field(default_factory=list)  # other fields of DistillationConfig: top_p=0.9


def main(args: Args) -> dict:
    from tunebook.common import models
    from tunebook.common.data import rows
    from tunebook.common.tokens import templates
    from tunebook.evals.harness.before_after import BeforeAfter

    base, run = models.resolve(args.model, args.max_length), Run(__file__, args)
    evaluation = BeforeAfter(run)
    splits = run.load_data()
    rows.refuse_weights(splits["train"], "distill_on_policy", "Leave them out: the student learns from its own answers")

    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import DistillationConfig, DistillationTrainer

    from tunebook.common import distillation
    from tunebook.common.distillation import losses, on_policy, teacher_cache_writer
    from tunebook.common.models import lora

    blend = losses.DistillationLoss(1.0, args.temperature, args.beta)
    run.start(DistillationConfig)
    model, tokenizer = models.load(args.model, args.max_length, args.load_in_4bit)
    teacher = distillation.load_teacher(args.teacher, args.max_length, args.teacher_load_in_4bit, tokenizer)
    template = templates.ALPACA
    run.defaults(model, tokenizer, template, rate=(2e-3, 2e-4), epochs=(5, 3))
    train, _ = run.encode(splits, tokenizer, template, args.max_length, held_out=0)
    evaluation.before(model, tokenizer, template, splits)
    ranks = dict(r=args.lora_r, lora_alpha=2 * args.lora_r)
    model = lora.add(model, **ranks, target_modules="all-linear", random_state=args.seed)
    distillation.prepare(model, args.model)

    class OnPolicy(on_policy.taking_ids(DistillationTrainer)):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            batch = on_policy.batch_of(inputs)
            watch.answered(batch)
            items = inputs["num_items_in_batch"].clamp(min=1)
            return distillation.loss(self, model, batch, items, teacher, blend)  # TRL's is a kernel for GPUs

    trainer = OnPolicy(
        model=model,
        processing_class=run.processing_class(template, model),
        train_dataset=on_policy.prompts(train),
        callbacks=run.callbacks(evaluation.samples),
        args=run.config(  # adds what run and device decide: folders, checkpoints, precision, data loader, --set
            DistillationConfig,
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
            beta=args.beta,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,  # fraction of total steps
            weight_decay=0.0,
            optim="adamw_torch_fused",
        ),
    )
    run.preview, run.forecast = on_policy.rehearse(trainer, train, tokenizer, teacher, blend, args.debug_batches)
    if args.dry_run:
        return run.forecast

    watch = on_policy.measure(trainer, run.dir / "log.jsonl")
    run.train(trainer, watch.metrics)
    trainer.save_model(str(run.dir / "adapter"))
    scores = evaluation.after(model, base, run.dir / "adapter")
    return run.finish(model, evaluation.samples, teacher_cache_writer.add_to_scores(scores, teacher, None, blend))


if __name__ == "__main__":
    cli.run(main, Args)
