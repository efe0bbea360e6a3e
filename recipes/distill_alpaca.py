"""Distillation on Alpaca rows: a student learns from a larger model's probabilities, and from the answers.

    accelerate launch recipes/distill_alpaca.py
    accelerate launch recipes/distill_alpaca.py --model unsloth/Llama-3.2-1B --teacher unsloth/Llama-3.1-8B-Instruct

Loss: alpha·T²·KL(teacher‖student) + (1 - alpha)·cross entropy, on answers only. Held-out loss: cross entropy alone.
Measured (benchmarks/distill_students.py, pocket, alpha 0.9, T 1, five seeds): where 27 % of rows have another's answer
exact match is 69.6 %, from labels alone 58.6 %; on right answers the teacher brings nothing: 80.2 and 82.5 %.
"""

from dataclasses import dataclass, field

from common import cli


@dataclass
class Args:
    model: str = "pocket"  # Hub name, folder, or the bundled model
    teacher: str = "pocket_teacher"  # the same; with the student's tokenizer
    alpha: float = 0.5  # weight of the teacher; the answers have the rest
    temperature: float = 2.0  # of both models' probabilities
    beta: float = 0.0  # 0: KL(teacher‖student), 1: KL(student‖teacher), between: Jensen-Shannon
    lora_r: int = 16  # rank of the student's adapters; 0: all its weights train
    four_bit: str = "none"  # whose weights are in 4 bits: none, teacher, student or both
    packing: bool = False  # rows together in full sequences of max_length, in which none sees another
    dataset: list[str] = field(default_factory=lambda: ["pocket"])  # files or Hub names; a.json:0.7 b.csv:0.3 mixes
    bad_rows: str = "refuse"  # what becomes of rows that cannot be trained on; drop: left out, counted by reason
    output_dir: str = "runs/distill_alpaca"  # what the run leaves behind
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
    sft: list[str] = field(default_factory=list)  # any other SFTConfig field: --sft warmup_steps=20 optim=adafactor
    dry_run: bool = False  # prepare the data, show what trains, forecast memory and time, and stop


def main(args: Args) -> dict:
    from common import batches, checks, data, forecast, loading, masking, mix, models, packing, report, templates
    from evals import harness

    models.locate(args.model, args.max_length)
    tasks = harness.suite_for(args.eval_suite, args.dataset)
    folder = cli.fresh_folder(args.output_dir, args.overwrite, marker="report.json")
    sides = data.load(args.dataset, seed=args.seed, bad_rows=args.bad_rows)

    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import SFTConfig, SFTTrainer

    from common import callbacks, defaults, distillation, generation, lora, losses, resuming, serving, teaching

    blend = losses.Blend(args.alpha, args.temperature, args.beta)
    overrides = cli.overrides(args.sft, SFTConfig, written=set(vars(args)), unheard=distillation.UNHEARD)
    checkpoint = checks.continues(folder, vars(args), args.resume, args.overwrite)

    # Models: each in the precision of the device, or in 4 bits.
    model, tokenizer = models.load(args.model, args.max_length, args.four_bit in ("student", "both"), args.lora_r == 0)
    teacher = distillation.teacher(args.teacher, args.max_length, args.four_bit in ("teacher", "both"), tokenizer)

    # Data: rows -> ids and labels, with every row that is lost counted.
    template = templates.ALPACA
    defaults.choose(args, model, tokenizer, template, rate=(2e-3, 2e-4 if args.lora_r else 2e-5), epochs=(5, 3))
    train, counts = masking.encode(sides["train"], tokenizer, template, args.max_length, folder=folder / "tokens")
    held_out, _ = masking.encode(sides["validation"][:300], tokenizer, template, args.max_length)
    print(f"{' '.join(args.dataset)}: {counts.summary()}; {len(held_out)} held-out rows", *sides.notes, sep="\n")
    counts.require_trainable(args.max_length)
    train, counts.sources = mix.mix(train, sides.shares, sides.by, args.seed)
    if args.packing:
        train, held_out = (packing.packed(r, args.max_length) if len(r) else r for r in (train, held_out))
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
        max_length=args.max_length,
        packing=False,  # rows that are to be packed are packed already
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # ids and labels are there already
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=bool(models.checkpointing()),
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # a share of the steps
        weight_decay=0.0,
        optim="adamw_torch_fused",
        router_aux_loss_coef=0.0,  # a mixture of experts learns from teacher and labels alone
        logging_steps=0.01,
        eval_strategy="steps" if len(held_out) else "no",
        eval_steps=0.2,
        save_steps=0.2,
        save_total_limit=2,
        load_best_model_at_end=len(held_out) > 0,
        report_to=args.report_to,
        seed=args.seed,
        **models.precision(),
        **loading.settings(),
    )

    class Distiller(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return distillation.loss(self, model, inputs, num_items_in_batch, teacher, blend)

    trainer = Distiller(
        model=model,
        processing_class=serving.dressed(tokenizer, template, model),
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        data_collator=batches.collator(model, tokenizer) if args.packing else None,
        args=SFTConfig(**{**config, **overrides}),
        callbacks=[callbacks.Watchdog(), callbacks.ShowSamples(samples)],
    )
    models.train_in_float32(trainer.model)
    distillation.arrange(trainer, args.packing, teacher.model)
    mask_view = checks.first_batch(trainer.get_train_dataloader(), tokenizer)
    expected = forecast.rehearse(trainer).as_dict()
    if args.dry_run:
        return expected

    meter = callbacks.measure(trainer, folder / "log.jsonl")
    callbacks.evaluate(trainer)
    resuming.train(trainer, checkpoint)
    callbacks.evaluate(trainer)

    base, result = (models.locate(args.model), folder / "adapter") if args.lora_r else (None, folder / "model")
    trainer.save_model(str(result))
    samples.take("after", model)
    scores.take("after", model, tokenizer)
    account = teaching.join(scores.account(base or result, result if base else None), teacher, held_out, blend)
    return report.write(__file__, folder, vars(args), model, counts, mask_view, expected, meter, samples.rows, account)


if __name__ == "__main__":
    cli.run(main, Args)
