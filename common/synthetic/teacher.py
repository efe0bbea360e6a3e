"""Writes pocket's teacher: pocket with twice the layers, taught to answer with more rows than a student gets.

    python -m tunebook.common.synthetic.teacher    # writes common/pocket/teacher again

The new layers begin as copies whose outputs are zero, so that training starts from what pocket knows (the way of Wu et
al. 2024, LLaMA Pro). All weights train, on rows of the training pool and, beside them, on the pre-training corpus, so
that the facts stay. Half of the rows ask as pocket's own do, half as the questions and headings of the corpus.
Validation and test rows, what they are about and their phrasings are not seen.
"""

import copy
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.common import cli
from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import corpus, skills
from tunebook.common.synthetic import facts as _facts  # noqa: F401  registers its skills

HEADING = re.compile(r".+\|\{x\}")  # a line of the corpus over what is given
FILE = "teaching.json"  # beside the weights: how they were made


@dataclass
class Args:
    output_dir: str = str(FOLDER / "teacher")  # gets weights in bfloat16, tokenizer and teaching.json
    rows_per_skill: int = 500  # of each kind, drawn from the training pool; some skills have fewer
    max_steps: int = 1000
    learning_rate: float = 7e-4  # peak; cosine to zero
    per_device_train_batch_size: int = 32  # rows a step
    corpus_tokens: int = 512  # of the pre-training corpus, beside the rows of a step
    corpus_weight: float = 0.2  # of its loss
    seed: int = 1  # pocket's own rows are drawn with 0


def main(args: Args) -> dict[str, Any]:
    """Make the teacher, and return what teaching.json holds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(FOLDER / "model")
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    base = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False)
    model = deepened(base).train()
    drawn = [*corpus.rows("train", args.rows_per_skill, args.seed), *more_rows(args.rows_per_skill, args.seed)]
    batches = answer_batches(drawn, tokenizer, args)
    told = corpus.token_ids(tokenizer, args.max_steps * args.corpus_tokens, args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01, fused=True)
    curve, cpu = [], time.process_time()
    for step in range(args.max_steps):
        share = step / args.max_steps
        optimizer.param_groups[0]["lr"] = args.learning_rate * min(share / 0.05, 0.5 + 0.5 * math.cos(math.pi * share))
        text = told[step * args.corpus_tokens : (step + 1) * args.corpus_tokens].view(-1, args.corpus_tokens // 2)
        answers = model(**next(batches), use_cache=False).loss
        replay = model(input_ids=text, labels=text, use_cache=False).loss
        ((1 - args.corpus_weight) * answers + args.corpus_weight * replay).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == args.max_steps - 1:
            curve.append([step, round(answers.item(), 4), round(replay.item(), 4)])
            print(f"step {step} answers {answers.item():.3f} corpus {replay.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    record = {
        "command": "python -m tunebook.common.synthetic.teacher",
        "args": {name: value for name, value in vars(args).items() if name != "output_dir"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rows": len(drawn),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "loss": curve,
    }
    (Path(args.output_dir) / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def more_rows(per_skill: int, seed: int) -> Iterator[dict[str, str]]:
    """Alpaca rows of the training pool whose phrasings are taken from the corpus: its questions, and its headings over
    what is given."""
    rng, told = random.Random(f"teacher {seed}"), skills.phrasings()
    for name in skills.SKILLS:
        kept = {phrase.lower() for phrase in told[name]["asks_new"]}  # of test rows
        asks = sorted(ask for ask in map(asked, told[name]["tells"]) if ask and ask not in kept)
        seen: set[tuple[str, str]] = set()
        for _ in range(per_skill * 40 if asks else 0):
            slots, ask = skills.draw(name, rng), rng.choice(asks)
            given = slots["x"] if HEADING.fullmatch(ask) else ""
            row = (ask.removesuffix("|{x}").format(**slots), given)
            if corpus.pool(slots["key"]) == "train" and row not in seen:
                seen.add(row)
                instruction = row[0][0].upper() + row[0][1:]
                yield {"instruction": instruction, "input": given, "output": slots["y"]}
            if len(seen) == per_skill:
                break


def asked(line: str) -> str | None:
    """How a line of the corpus asks for {y}: its question, or its heading over {x}; None where it only tells."""
    question = re.fullmatch(r"question: (.*\?) answer: \{y\}", line)
    heading = re.fullmatch(r"(.+\|\{x\})\|\{y\}", line)
    found = question or heading
    return found[1] if found else None


def deepened(model: Any) -> Any:
    """The model with a copy after each of its layers that adds nothing yet: its logits are the same."""
    import torch

    state = model.state_dict()
    config = copy.deepcopy(model.config)
    config.num_hidden_layers *= 2
    deeper = type(model)(config).to(next(model.parameters()).dtype)
    mine = {name: value for name, value in state.items() if ".layers." not in name}
    for name, value in state.items():
        before, found, after = name.partition(".layers.")
        if found:
            number, _, rest = after.partition(".")
            quiet = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            mine[f"{before}.layers.{2 * int(number)}.{rest}"] = value
            mine[f"{before}.layers.{2 * int(number) + 1}.{rest}"] = torch.zeros_like(value) if quiet else value
    deeper.load_state_dict(mine)
    deeper.tie_weights()
    return deeper


def answer_batches(drawn: list[dict[str, str]], tokenizer: Any, args: Args) -> Any:
    """Padded batches of rows in the Alpaca template, without end; labels are the answers."""
    from transformers import DataCollatorForSeq2Seq

    from tunebook.common.tokens import encoding, templates

    encoded, _ = encoding.encode(drawn, tokenizer, templates.ALPACA, 512)
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in encoded]
    collate, rng = DataCollatorForSeq2Seq(tokenizer), random.Random(args.seed)
    while True:
        rng.shuffle(rows)
        for start in range(0, len(rows) - args.per_device_train_batch_size + 1, args.per_device_train_batch_size):
            yield collate(rows[start : start + args.per_device_train_batch_size])


if __name__ == "__main__":
    cli.run(main, Args)
