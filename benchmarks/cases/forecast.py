"""One configuration of benchmarks/forecast.py, in a process of its own; the last line it prints is its figures as JSON.

python -m benchmarks.cases.forecast FOLDER METHOD CHECKPOINTING ROWS WIDTH STEPS
"""

import json
import sys
import time
from pathlib import Path


def main(folder: str, method: str, checkpointing: str, rows: str, width: str, steps: str) -> None:
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from common import callbacks, forecast, memory, models, sampling

    recomputed = checkpointing == "on"
    libraries = memory.held()
    model, tokenizer = models.load(folder, int(width), four_bit=method == "qlora", full=method == "full")
    if method != "full":
        model = FastLanguageModel.get_peft_model(
            model, r=16, lora_alpha=32, target_modules="all-linear", use_gradient_checkpointing=recomputed
        )
    config = SFTConfig(
        output_dir=str(Path(folder) / f"run-{method}-{checkpointing}"),
        max_length=int(width),
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=int(rows),
        gradient_checkpointing=recomputed,
        max_steps=int(steps),
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        **models.precision(),
    )
    data = Dataset.from_list(examples(int(rows) * int(steps), int(width), model.config.vocab_size))
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=config)
    models.train_in_float32(trainer.model)
    sampling.bucket(trainer)
    expected = forecast.rehearse(trainer)
    meter = callbacks.measure(trainer, Path(folder) / f"log-{method}-{checkpointing}.jsonl")
    begun, cpu = time.monotonic(), time.process_time()
    trainer.train()
    print(
        json.dumps(
            {
                "arithmetic_bytes": expected.arithmetic_bytes,
                "forecast_bytes": expected.peak_bytes,
                "measured_bytes": meter.measured()["peak_bytes"],
                "libraries_bytes": libraries,
                "forecast_seconds": expected.seconds,
                "measured_seconds": meter.measured()["seconds"],
                "wall": time.monotonic() - begun,
                "cpu": time.process_time() - cpu,
                "trainable": models.parameters(trainer.model)[0],
            }
        )
    )


def examples(count: int, width: int, vocabulary: int) -> list[dict]:
    """Rows of a quarter of `width` to all of it; the second half of each trains."""
    import numpy

    random = numpy.random.default_rng(0)
    found = []
    for length in random.integers(width // 4, width + 1, count).tolist():
        ids = random.integers(10, vocabulary, length).tolist()
        found.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
