"""One case of benchmarks/gpu.py, in a process of its own: it imports, waits for a line, trains, and writes what it saw.

    python benchmarks/cases/gpu.py '{"size": "tiny", "method": "LoRA", ...}' < /dev/null

benchmarks/gpu.py starts these; its docstring says what is measured.
"""

import json
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clock import matmul_rate, measure, now
from random_llama import WIDTH, make, rows


@dataclass
class Case:
    size: str
    method: str  # full, LoRA, QLoRA; make: write the random model
    packed: bool = False
    way: str = "tunebook"  # or TRL
    quick: bool = False
    folder: str = ""  # of the random model
    out: str = ""  # where the process writes what it found

    @property
    def rows(self) -> int:
        return 200 if self.quick else 8192

    @property
    def batch(self) -> int:
        """Rows or packed sequences a step: about as many tokens in both, 8,192 in eight sequences of TRL's default."""
        return (1 if self.quick else 8) if self.packed else (8 if self.quick else 80)


def ours(case: Case, results: str) -> Any:
    """A trainer as the recipes make it."""
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft
    from trl import SFTConfig, SFTTrainer

    from tunebook.common import models
    from tunebook.common.batching import dataloader, packing, samplers
    from tunebook.common.models import attention, device, lora

    model, tokenizer = models.load(case.folder, WIDTH, four_bit=case.method == "QLoRA", full=case.method == "full")
    if case.method != "full":
        model = lora.add(model, r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", random_state=0)
    data = rows(case.size, case.rows)
    optimizers = {"full": "paged_adamw_32bit", "LoRA": "adamw_torch_fused", "QLoRA": "paged_adamw_8bit"}
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=packing.pack_dataset(data, WIDTH) if case.packed else data,
        data_collator=attention.collator(model, tokenizer) if case.packed else None,
        args=SFTConfig(
            output_dir=results,
            max_length=WIDTH,
            packing=False,
            padding_free=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            per_device_train_batch_size=case.batch,
            gradient_checkpointing=bool(device.current().gradient_checkpointing),
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            weight_decay=0.0,
            optim=optimizers[case.method],
            **shared(),
            **device.current().precision,
            **dataloader.dataloader_settings(),
        ),
    )
    if case.method != "full":
        models.train_in_float32(trainer.model)
    if case.packed:
        attention.use_document_attention(trainer.model)
    else:
        samplers.group_by_length(trainer)
    return trainer


def trls(case: Case, results: str) -> Any:
    """A trainer as TRL's documentation makes it, with the same rows, rank and targets, and defaults for the rest."""
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    quantized = None
    if case.method == "QLoRA":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if gpu else torch.float32,
        )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model=case.folder,
        processing_class=AutoTokenizer.from_pretrained(case.folder),
        train_dataset=rows(case.size, case.rows),
        quantization_config=quantized,
        peft_config=None if case.method == "full" else lora,
        args=SFTConfig(
            output_dir=results,
            packing=case.packed,
            per_device_train_batch_size=case.batch,
            model_init_kwargs={"dtype": "bfloat16"} if gpu and case.method != "full" else None,
            bf16=gpu,
            **shared(),
        ),
    )


def shared() -> dict[str, Any]:
    """What both are given: they train until Clock stops them, say every loss as it is, and write nothing."""
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    return {"max_steps": 10_000, "logging_steps": 3, "logging_nan_inf_filter": False, **quiet}


def prepare(case: Case) -> dict[str, Any]:
    make(case.size, case.folder)
    return {"matmul_rate": matmul_rate()}


def train(case: Case) -> dict[str, Any]:
    from tunebook.common.errors import CheckFailed
    from tunebook.common.models import parameters
    from tunebook.common.training import checks

    begun = now()
    with tempfile.TemporaryDirectory() as results:
        trainer = (ours if case.way == "tunebook" else trls)(case, results)
        loaded = now() - begun
        difference = None
        if case.packed:
            try:
                difference = checks.check_document_isolation(trainer)
            except CheckFailed as refused:
                if case.way == "tunebook":
                    raise
                difference = str(refused)  # a finding about TRL here, not a failure of the benchmark
        found = measure(trainer, case.quick)
    trainable, total = parameters(trainer.model)
    assert ("unsloth" in sys.modules) == (case.way == "tunebook")
    return found | {"load_seconds": loaded, "isolation": difference, "trainable": trainable, "parameters": total}


def libraries(case: Case) -> None:
    """What takes long to import and touches no GPU memory to speak of."""
    import torch

    if case.method == "make":
        return
    if case.way == "tunebook":
        import unsloth  # noqa: F401
    elif not torch.cuda.is_available():
        plain_loss()
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401
    from trl import SFTTrainer  # noqa: F401


def plain_loss() -> None:
    """TRL's fused loss is a Triton kernel; its place on a CPU is taken by torch code of Unsloth, whose file is read by
    itself, for importing the package would patch TRL."""
    import importlib.util

    package = importlib.util.find_spec("unsloth_zoo")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "cpu" / "ops.py"
    spec = importlib.util.spec_from_file_location("unsloth_zoo_cpu_ops", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.patch_trl_fused_lm_head()


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    try:
        libraries(case)
        sys.stdin.readline()  # until the case before has left the GPU
        found = {"status": "measured", **(prepare if case.method == "make" else train)(case)}
    except Exception as error:
        traceback.print_exc()
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        found = {"status": "failed", "error": f"{type(error).__name__}: {lines[0][:300]}"}
    Path(case.out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
