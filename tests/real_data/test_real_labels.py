"""Labels against TRL's own preparation of the same prompts and completions, on real tokenizers and rows."""

import json

import pytest
from paths import DATA, TOKENIZERS, WHOLE, needs_data

pytestmark = [
    pytest.mark.xdist_group("unsloth"),  # imported in this process: in one is enough
    pytest.mark.real_data,
    pytest.mark.recipe,
    needs_data,
]
ROWS = 1500 if WHOLE else 400


@pytest.mark.parametrize(
    "name", ["deepseek", "gpt-neox-20b", "gpt2", "llama2", "llama3", "mistral-v3", "phi-3-mini", "qwen2.5", "qwen3"]
)
def test_labels_equal_trl(name, tmp_path):
    import unsloth  # noqa: F401
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from tunebook.common.tokens import encoding
    from tunebook.common.tokens.templates import ALPACA

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / name)
    rows = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))
    # TRL reads special-token text in a row as control; ours does not, so such rows have no common answer.
    special = [text for text in tokenizer.all_special_tokens if text]
    rows = [row for row in rows if not any(text in "".join(row.values()) for text in special) and row["output"].strip()]
    rows = rows[:: len(rows) // ROWS]
    kept, counts = encoding.encode(rows, tokenizer, ALPACA, 4096)
    assert counts.kept == len(rows) >= ROWS

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                                        num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    pairs = [{"prompt": ALPACA.prompt(row), "completion": ALPACA.completion(row)} for row in rows]
    trainer = SFTTrainer(
        model=tiny,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
        args=SFTConfig(output_dir=str(tmp_path), max_length=4096, completion_only_loss=True, report_to="none"),
    )
    theirs = trainer.train_dataset
    assert len(theirs) == len(kept)
    different = [
        example["row"]
        for example, their in zip(kept, theirs, strict=True)
        if example["input_ids"] != their["input_ids"] or example["labels"] != their["labels"]
    ]
    assert not different, f"{len(different)} rows differ, first {different[:5]}"
