"""On-policy distillation: the student answers the prompts itself, and its teacher says what it thinks of each token.

    accelerate launch recipes/distill_on_policy.py
    accelerate launch recipes/distill_on_policy.py --model runs/my_sft/merged --teacher unsloth/Llama-3.1-8B-Instruct

The answers in the data are not learnt from. A student that cannot answer at all should be tuned on them first.
"""

from dataclasses import dataclass, field

from common import cli


@dataclass
class Args:
    model: str = "pocket"  # Hub name, folder, or the bundled model
    teacher: str = "pocket_teacher"  # the same; with the student's tokenizer
    temperature: float = 1.0  # of both models' probabilities, and of the answers
    beta: float = 1.0  # 0: KL(teacher‖student), 1: KL(student‖teacher), between: Jensen-Shannon
    max_completion_length: int = 24  # tokens of an answer of the student
    lora_r: int = 16  # rank of the student's adapters; 0: all its weights train
    four_bit: str = "none"  # whose weights are in 4 bits: none, teacher, student or both
    dataset: list[str] = field(default_factory=lambda: ["pocket"])  # files or Hub names; a.json:0.7 b.csv:0.3 mixes
    bad_rows: str = "refuse"  # what becomes of rows that cannot be trained on; drop: left out, counted by reason
    output_dir: str = "runs/distill_on_policy"  # what the run leaves behind
    max_length: int = 512  # tokens of prompt and answer; longer rows are dropped, and counted
    learning_rate: float | None = None  # None: 2e-3 below 50 M parameters, else 2e-4, or 2e-5 for all weights
    per_device_train_batch_size: int = 16  # rows a device takes at once
    gradient_accumulation_steps: int = 1  # batches to one step of the optimiser
    num_train_epochs: float | None = None  # times over the training rows; None: 5 below 50 M parameters, else 3
    max_steps: int = -1  # stop after so many steps; -1: after the epochs
    eval_suite: str = "auto"  # lm-eval suite before and after; auto: pocket's own; none: skip
    report_to: str = "none"  # none, tensorboard, wandb or trackio
    seed: int = 0
    resume: bool = True  # go on with a run that stopped in output_dir
    overwrite: bool = False  # start anew over a run that is already in output_dir
    sft: list[str] = field(default_factory=list)  # any other DistillationConfig field: --sft top_p=0.9
    dry_run: bool = False  # prepare the data, show what trains, forecast memory and time, and stop


def main(args: Args) -> dict:
    from common import checks, data, loading, masking, mix, models, report, resuming, rows, templates
    from evals import harness

    models.locate(args.model, args.max_length)
    tasks = harness.suite_for(args.eval_suite, args.dataset)
    folder = cli.fresh_folder(args.output_dir, args.overwrite, marker="report.json")
    sides = data.load(args.dataset, seed=args.seed, bad_rows=args.bad_rows)
    rows.refuse_weights(sides["train"], "distill_on_policy", "Leave them out: the student learns from its own answers")

    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import DistillationConfig, DistillationTrainer

    from common import callbacks, defaults, distillation, generation, lora, losses, on_policy, serving, teaching

    blend = losses.Blend(1.0, args.temperature, args.beta)
    overrides = cli.overrides(args.sft, DistillationConfig, written=set(vars(args)))
    checkpoint = checks.continues(folder, vars(args), args.resume, args.overwrite)

    # Models: each in the precision of the device, or in 4 bits.
    model, tokenizer = models.load(args.model, args.max_length, args.four_bit in ("student", "both"), args.lora_r == 0)
    teacher = distillation.teacher(args.teacher, args.max_length, args.four_bit in ("teacher", "both"), tokenizer)

    # Data: rows -> ids and labels, with every row that is lost counted.
    template = templates.ALPACA
    defaults.choose(args, model, tokenizer, template, rate=(2e-3, 2e-4 if args.lora_r else 2e-5), epochs=(5, 3))
    train, counts = masking.encode(sides["train"], tokenizer, template, args.max_length, folder=folder / "tokens")
    print(f"{' '.join(args.dataset)}: {counts.summary()}", *sides.notes, sep="\n")
    counts.require_trainable(args.max_length)
    train, counts.sources = mix.mix(train, sides.shares, sides.by, args.seed)

    samples = generation.Samples(tokenizer, template, sides["test"] or sides["validation"], count=4)
    scores = harness.Scores(tasks, folder / "eval")
    if not args.dry_run:
        samples.take("before", model)
        scores.take("before", model, tokenizer)

    if args.lora_r:
        rank = dict(r=args.lora_r, lora_alpha=2 * args.lora_r)
        model = lora.add(model, **rank, target_modules="all-linear", random_state=args.seed)
    distillation.prepare(model, args.model)
    config = dict(
        output_dir=str(folder),
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        beta=args.beta,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=bool(models.checkpointing()),
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # a share of the steps
        weight_decay=0.0,
        optim="adamw_torch_fused",
        logging_steps=0.01,
        save_steps=0.2,
        save_total_limit=2,
        report_to=args.report_to,
        seed=args.seed,
        **models.precision(),
        **loading.settings(),
    )

    def loss(trainer, model, batch, items=None):
        return distillation.loss(trainer, model, batch, items, teacher, blend)

    class OnPolicy(DistillationTrainer):
        def _tokenize_prompts(self, prompts):  # they are ids already, in which no text of the data is control
            return prompts, None, {}

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            batch = on_policy.batch_of(inputs)
            watch.answered(batch)
            return loss(self, model, batch, inputs["num_items_in_batch"].clamp(min=1))  # TRL's is a kernel for GPUs

    trainer = OnPolicy(
        model=model,
        processing_class=serving.dressed(tokenizer, template, model),
        train_dataset=on_policy.prompts(train),
        args=DistillationConfig(**{**config, **overrides}),
        callbacks=[callbacks.Watchdog()],
    )
    models.train_in_float32(trainer.model)
    mask_view, expected = on_policy.rehearse(
        trainer, train, tokenizer, lambda model, batch: loss(trainer, model, batch)
    )
    if args.dry_run:
        return expected

    watch = on_policy.measure(trainer, folder / "log.jsonl")
    resuming.train(trainer, checkpoint)

    base, result = (models.locate(args.model), folder / "adapter") if args.lora_r else (None, folder / "model")
    trainer.save_model(str(result))
    samples.take("after", model)
    scores.take("after", model, tokenizer)
    account = teaching.join(scores.account(base or result, result if base else None), teacher, (), blend)
    return report.write(
        __file__, folder, vars(args), model, counts, mask_view, expected, watch.meter, samples.rows, account
    )


if __name__ == "__main__":
    cli.run(main, Args)
