"""Prints what becomes of one real row, stage by stage; docs/architecture.md shows the output.

python docs/journey.py
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunebook.common import data
from tunebook.common.batching import packing
from tunebook.common.batching.collator import PackedCollator
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, templates
from tunebook.common.tokens.lengths import lengths_of

MODEL, ROWS, STEPS = str(FOLDER / "model"), 8, 20


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)

    print("1. data: a row is a plain dict, whatever file it came from")
    rows = [dict(row) for row in data.load("pocket")["train"][:ROWS]]
    row = rows[7]
    print("  ", {name: row[name] for name in ("instruction", "input", "output")})

    print("\n2. tokens: the template writes the prompt; labels of -100 do not train")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    encoded, stats = encoding.encode(rows, tokenizer, templates.ALPACA, max_length=512)
    ids, labels = encoded[7]["input_ids"], encoded[7]["labels"]
    print(f"   {len(ids)} tokens; the last six:")
    for token, label in list(zip(ids, labels, strict=True))[-6:]:
        print(f"     {token:5} {tokenizer.decode([token])!r:18} label {label}")

    print("\n3. batching: two ways to put eight rows together")
    lengths = lengths_of(encoded).tolist()
    width = max(lengths)
    print(f"   lengths {lengths}")
    print(f"   padded: {ROWS} x {width}, {1 - sum(lengths) / (ROWS * width):.0%} padding")
    bins = packing.pack_dataset(encoded, 256)
    batch = PackedCollator(tokenizer.pad_token_id)(list(bins))
    print(f"   packed: {tuple(batch['input_ids'].shape)}, documents of {bins['seq_lengths'][:]} tokens; "
          f"positions restart with each")  # fmt: skip

    print("\n4. models: a frozen base, and low-rank adapters that train")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained, every = model.get_nb_trainable_parameters()
    print(f"   {trained:,} of {every:,} parameters train")
    print(f"   before: {answer(model, tokenizer, row)!r}")

    print(f"\n5. training: {STEPS} steps on these rows")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    for step in range(STEPS):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, STEPS - 1):
            print(f"   step {step + 1:2}: loss {loss.item():.2f} nats per trained token")

    print(f"\n6. report: {stats.summary()}")
    print(f"   after: {answer(model, tokenizer, row)!r}, reference {row['output']!r}")


def answer(model, tokenizer, row: dict) -> str:
    """The model's greedy answer to a row's prompt."""
    inputs = tokenizer(templates.ALPACA.prompt(row), return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main()
