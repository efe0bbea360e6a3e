"""QLoRA on Alpaca rows: a frozen base in 4 bits, low-rank adapters on every linear layer, loss on the answer only.

    accelerate launch recipes/qlora_alpaca.py
    accelerate launch recipes/qlora_alpaca.py --model unsloth/Llama-3.2-1B --dataset tatsu-lab/alpaca
    python recipes/qlora_alpaca.py --config my_run.yaml --learning_rate 1e-4

MEASURED
"""

import math
import time
from dataclasses import dataclass, field

from common import cli

STARTED = time.time()


@dataclass
class Args:
    model: str = "pocket"  # Hub name, folder, or the bundled model
    dataset: str = "pocket"  # Hub name, .json or .jsonl file, or the bundled rows: instruction, input, output
    output_dir: str = "runs/qlora_alpaca"
    max_length: int = 512  # tokens of prompt and answer; longer rows are dropped, and counted
    learning_rate: float = 3e-3  # 3e-3 suits pocket; 2e-4 is usual from a billion parameters up
    per_device_train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3
    max_steps: int = -1  # stop after so many steps; -1: after the epochs
    eval_rows: int = 300  # held-out rows for the evaluation loss
    eval_suite: str = "auto"  # lm-eval suite before and after; auto: pocket's own; none: skip
    report_to: str = "none"  # none, tensorboard, wandb or trackio
    seed: int = 0
    resume: bool = True  # go on with a run that stopped in output_dir
    overwrite: bool = False  # start anew over a run that is already in output_dir
    sft: list[str] = field(default_factory=list)  # any other SFTConfig field: --sft warmup_steps=20 neftune_noise_alpha=5
    dry_run: bool = False  # prepare the data, show what trains, and stop


def main(args: Args) -> dict:
    from common import checks, data, masking, memory, models, report, templates
    from evals import harness

    # Everything that can be wrong with the arguments is found before anything slow begins.
    models.locate(args.model)
    tasks = harness.suite_for(args.eval_suite, args.dataset)
    folder = cli.fresh_folder(args.output_dir, args.overwrite, marker="report.json")
    sides = data.load(args.dataset, seed=args.seed)

    import unsloth  # noqa: F401, I001  first: it patches trl, transformers and peft
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from common import callbacks, generation

    extra_config = cli.overrides(args.sft, SFTConfig, written=set(vars(args)))
    checkpoint = checks.continues(folder, vars(args), args.resume, args.overwrite)
    peak = memory.Peak()

    # Model: the base in NF4 with double quantisation. Its scores are taken before anything is added to it.
    model, tokenizer = models.load(args.model, args.max_length, four_bit=True)
    print(f"{args.model} on {models.device()}, {str(models.dtype()).removeprefix('torch.')} compute")

    # Data: rows -> ids and labels, with every row that is lost counted.
    template = templates.ALPACA
    train, counts = masking.encode(sides["train"], tokenizer, template, args.max_length)
    held_out, _ = masking.encode(sides["validation"][: args.eval_rows], tokenizer, template, args.max_length)
    checks.gate(counts, args.max_length)
    print(f"{args.dataset}: {counts.as_dict()}; {len(held_out)} held-out rows")
    shown = (sides["test"] or sides["validation"])[:: max(1, len(sides["test"]) // 4)][:4]
    prompts, references = [template.prompt(row) for row in shown], [template.completion(row) for row in shown]
    answers_before = generation.answers(model, tokenizer, prompts)
    scores_before = harness.score(model, tokenizer, tasks, folder / "eval" / "before") if tasks else None
    if tasks:  # the plain lm_eval command needs the very weights that were scored
        model.save_pretrained(folder / "base-4bit")
        tokenizer.save_pretrained(folder / "base-4bit")

    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
        use_gradient_checkpointing=models.checkpointing(),
        random_state=args.seed,
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        args=SFTConfig(
            output_dir=str(folder),
            max_length=args.max_length,
            packing=False,
            padding_free=False,
            per_device_train_batch_size=args.per_device_train_batch_size,
            per_device_eval_batch_size=args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            num_train_epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            gradient_checkpointing=bool(models.checkpointing()),
            learning_rate=args.learning_rate,
            report_to=args.report_to,
            seed=args.seed,
            **{
                "optim": "adamw_8bit",  # without a GPU: fused AdamW
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.03,  # a share of the steps
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "logging_steps": 0.01,
                "eval_strategy": "steps" if held_out else "no",
                "eval_steps": 0.2,
                "save_strategy": "steps",
                "save_steps": 0.2,
                "save_total_limit": 2,
                "load_best_model_at_end": bool(held_out),
                "metric_for_best_model": "eval_loss",
                **models.precision(),
                **extra_config,
            },
        ),
    )
    mask_view = checks.first_batch(trainer, tokenizer)
    if args.dry_run:
        return {"data": counts.as_dict()}

    meter = callbacks.Meter(trainer, folder / "log.jsonl", STARTED, peak)
    trainer.add_callback(callbacks.Watchdog())
    trainer.add_callback(callbacks.Samples(tokenizer, prompts[:2], references[:2]))
    loss_before = trainer.evaluate()["eval_loss"] if held_out else None
    trainer.train(resume_from_checkpoint=checkpoint)
    loss_after = trainer.evaluate()["eval_loss"] if held_out else None

    trainer.save_model(str(folder / "adapter"))
    template.save(folder / "adapter")
    answers_after = generation.answers(model, tokenizer, prompts)
    scores_after = harness.score(model, tokenizer, tasks, folder / "eval" / "after") if tasks else None
    trainable, every = models.parameters(model)
    summary = {
        "recipe": "qlora_alpaca",
        "args": vars(args),
        "device": models.device(),
        "data": {**counts.as_dict(), "padding_share": meter.padding_share},
        "forecast": meter.forecast,
        "measured": {**meter.measured(), "peak_bytes": peak.stop()},
        "train": {"steps": trainer.state.global_step, "loss": meter.loss}
        | {"trainable_parameters": trainable, "all_parameters": every},
        "eval": {"loss": loss_after, "perplexity": loss_after and math.exp(min(loss_after, 700))},
        "scores": harness.both(scores_before, scores_after),
        "samples": [
            dict(zip(("prompt", "before", "after", "reference"), row, strict=True))
            for row in zip(prompts, answers_before, answers_after, references, strict=True)
        ],
    }
    table = harness.by_skill(scores_after) if scores_after else None
    plain = harness.command(folder / "base-4bit", folder / "adapter", tasks, models.dtype()) if tasks else None
    curves = {"loss_before": loss_before, "evaluations": meter.evaluations}
    report.write(folder, summary, mask_view, by_skill=table, command=plain, **curves)
    return summary


if __name__ == "__main__":
    cli.run(main, Args)
