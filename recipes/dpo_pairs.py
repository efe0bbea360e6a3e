"""DPO on preference pairs: a model that answers learns which of two answers is better, held against what it was.

    accelerate launch recipes/dpo_pairs.py
    accelerate launch recipes/dpo_pairs.py --adapter runs/lora_alpaca

Starts from an SFT model (the reference is the model with the new adapter off) or adapter (the reference is its copy).

Measured, 1 CPU core: 4 min, 1.5 GiB; of 542 held-out pairs the better answer has the higher reward in 50 -> 93.7 %,
exact match 92.1 -> 90.9 % (seen), 78.4 -> 76.0 % (unseen).
"""

from dataclasses import dataclass, field

from common import cli, distributed


@dataclass
class Args:
    model: str = ""  # Hub name or folder of an SFT model, or a base; default: that of --adapter, or pocket_teacher
    adapter: str = "none"  # folder of an SFT run with LoRA, or of its adapter: runs/lora_alpaca
    template: str = "alpaca"  # that of the SFT run: alpaca, chatml, llama2, llama3, tokenizer (its own) or FILE.jinja
    four_bit: bool = False  # the base in NF4
    beta: float = 0.3  # how much leaving the reference costs; 0.1 is usual, but gets fewer of pocket's pairs right
    dataset: list[str] = field(default_factory=lambda: ["pocket_pairs"])  # files or Hub names; a:0.7 b:0.3 mixes
    bad_rows: str = "refuse"  # what becomes of rows that cannot be trained on; drop: left out, counted by reason
    output_dir: str = "runs/dpo_pairs"  # what the run leaves behind
    max_length: int = 512  # tokens of prompt and answer; pairs with a longer one are dropped, and counted
    learning_rate: float | None = None  # None: 1e-4 below 50 M parameters, else 5e-6
    per_device_train_batch_size: int = 16  # pairs a device takes at once
    gradient_accumulation_steps: int = 1  # batches to one step of the optimiser
    num_train_epochs: float | None = None  # times over the training rows; None: 2 below 50 M parameters, else 1
    max_steps: int = -1  # stop after so many steps; -1: after the epochs
    eval_suite: str = "auto"  # lm-eval suite before and after; auto: pocket's own; none: skip
    report_to: str = "none"  # none, tensorboard, wandb or trackio
    seed: int = 0
    resume: bool = True  # go on with a run that stopped in output_dir
    overwrite: bool = False  # start anew over a run that is already in output_dir
    sft: list[str] = field(default_factory=list)  # any other DPOConfig field: --sft loss_type=ipo optim=adafactor
    dry_run: bool = False  # prepare the data, show what trains, forecast memory and time, and stop


def main(args: Args) -> dict:
    from common import alignment, checks, forecast, loading, mix, models, pairs, preference, report, sampling, templates
    from evals import harness

    args.model, args.adapter = alignment.start_of(args.model, args.adapter)
    place = models.locate(args.model, args.max_length)
    tasks = harness.suite_for(args.eval_suite, args.dataset)
    folder = cli.fresh_folder(args.output_dir, args.overwrite, marker="report.json")
    sides = pairs.load(args.dataset, seed=args.seed, bad_rows=args.bad_rows)

    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import DPOConfig, DPOTrainer

    from common import adapted, callbacks, defaults, generation, lora, resuming, serving

    overrides = cli.overrides(args.sft, DPOConfig, written=set(vars(args)))
    checkpoint = checks.continues(folder, vars(args), args.resume, args.overwrite)

    # Model: what an SFT run has made.
    model, tokenizer = models.load(place, args.max_length, args.four_bit)
    if args.four_bit and not args.dry_run and distributed.is_main_process():
        models.save(model, tokenizer, folder / "base")  # for lm-eval's own command
    if args.adapter != "none":
        model = adapted.put_on(model, args.adapter, trains=True)

    # Data: pairs -> ids of prompt and both answers, with every pair that is lost counted.
    template = templates.get(args.template, tokenizer)
    alignment.check_template(template, args.template, args.adapter, place)
    defaults.choose(args, model, tokenizer, template, rate=(1e-4, 5e-6), epochs=(2, 1))
    train, counts = preference.encode(sides["train"], tokenizer, template, args.max_length)
    held_out, _ = preference.encode(sides["validation"][:300], tokenizer, template, args.max_length)
    judged, _ = preference.encode((sides["test"] or sides["validation"])[:1000], tokenizer, template, args.max_length)
    print(f"{' '.join(args.dataset)}: {counts.summary()}; {len(held_out)} held-out rows", *sides.notes, sep="\n")
    counts.require_trainable(args.max_length)
    train, counts.sources = mix.mix(train, sides.shares, sides.by, args.seed)

    samples = generation.Samples(tokenizer, template, sides["test"] or sides["validation"], count=4)
    scores = harness.Scores(tasks, folder / "eval")
    if not args.dry_run:
        samples.take("before", model)
        scores.take("before", model, tokenizer)

    if args.adapter == "none":
        model = lora.add(
            model, r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", random_state=args.seed
        )
    config = dict(
        output_dir=str(folder),
        max_length=args.max_length,
        beta=args.beta,
        loss_type=["sigmoid"],
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

    trainer = alignment.taking_ids(DPOTrainer)(
        model=model,
        processing_class=serving.dressed(tokenizer, template, model),
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        data_collator=preference.Collator(tokenizer.pad_token_id or 0),
        args=DPOConfig(**{**config, **overrides}),
        callbacks=[callbacks.Watchdog(), callbacks.ShowSamples(samples)],
    )
    models.train_in_float32(trainer.model)
    alignment.hold_reference(trainer, adapter=args.adapter != "none")
    sampling.bucket(trainer)
    mask_view = checks.first_batch(trainer.get_train_dataloader(), tokenizer)
    expected = forecast.rehearse(trainer).as_dict()
    if args.dry_run:
        return expected

    rewards = alignment.Rewards(trainer, judged)
    rewards.take("before")
    meter = callbacks.measure(trainer, folder / "log.jsonl", alignment.pairs_of)
    callbacks.evaluate(trainer)
    resuming.train(trainer, checkpoint)
    callbacks.evaluate(trainer)

    trainer.save_model(str(folder / "adapter"))
    rewards.take("after")
    samples.take("after", model)
    scores.take("after", model, tokenizer)
    account = rewards.join(scores.account(folder / "base" if args.four_bit else place, folder / "adapter"))
    return report.write(__file__, folder, vars(args), model, counts, mask_view, expected, meter, samples.rows, account)


if __name__ == "__main__":
    cli.run(main, Args)
