"""More training rows from the ones you have. Originals stay; each row says what it was made by and from.

    tunebook augment my_split/train.jsonl --output more.jsonl
    tunebook augment my_split/train.jsonl --output_dir more
    tunebook augment my_split/train.jsonl --output more.jsonl --methods templates fold_input --share 0.3
    tunebook augment my_split/train.jsonl --output more.jsonl --methods paraphrase --model http://localhost:8000/v1 \\
        --model_name my-model

Augment after the split, or copies of a row land on two sides. Look at what was made: tunebook inspect more.jsonl
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tunebook.common import files
from tunebook.common.errors import UserError
from tunebook.common.run_folder import output_dir


@dataclass
class Args:
    # Files, folders, a Hub name or pocket; words like output=COLUMN after a file name its columns.
    data: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")] = field(
        default_factory=list
    )
    output: str = ""  # the new file, one row a line (.jsonl)
    output_dir: str = ""  # or a folder for it, where it is called train.jsonl: --dataset takes the folder
    # Need no model: templates, fold_input, drop_input. Need one: paraphrase, responses, back_translation.
    methods: list[str] = field(default_factory=lambda: ["templates"])
    bad_rows: Literal["refuse", "drop"] = "refuse"  # drop: leave rows out that cannot be trained on, and count them
    share: float = 1.0  # of the rows that each method takes
    copies: int = 1  # rows that a method tries to make of one
    seed: int = 0  # which rows, which wordings; the same seed gives the same file
    model: str = ""  # http://host:port/v1 (key: OPENAI_API_KEY), a folder, a Hub name or pocket
    model_name: str = ""  # the name under which an endpoint serves it
    max_new_tokens: int = 512  # tokens of a model's answer
    temperature: float = 0.8  # of a model's answers; 0 always takes the likeliest word
    language: str = "German"  # that back_translation goes through
    overwrite: bool = False  # write over the file of an earlier call
    json: str = ""  # also write the counts to this file


def main(args: Args) -> dict[str, Any]:
    from tunebook.common.commands import inputs
    from tunebook.common.data import augment

    args = check(args)
    if args.output_dir:
        folder = output_dir.prepare(args.output_dir, args.overwrite, marker="train.jsonl")
        if folder.resolve() in {Path(word).resolve() for word in args.data}:
            raise UserError(f"--output_dir {args.output_dir} is the data itself; choose another folder")
    needed = [method for method in args.methods if method in augment.NEEDS_MODEL]
    inputs.writable({"--output": args.output, "--json": args.json}, args.data)
    with inputs.plain_names():
        found = inputs.rows(args.data, "augment", only_train=True, bad_rows=args.bad_rows)
        rows = list(found)
    print(*found.columns(), sep="\n")
    model = _model(args) if needed else None
    new, counts = augment.augment(
        rows, args.methods, args.seed, args.share, args.copies, model, args.language, args.temperature
    )
    files.write_atomic(args.output, map(files.json_line, new))
    report = {"output": args.output, "written": len(new), "seed": args.seed, **counts.as_dict()}
    if args.json:
        files.write_json(args.json, report)
    print(counts.summary())
    print(f"written: {len(new):,} rows in {args.output}")
    unknown = sum(counts.skipped.get("templates", {}).values())
    if unknown > len(rows) / 2:
        print(
            f"templates know few openings, and {unknown:,} of {len(rows):,} rows begin otherwise: --methods paraphrase "
            "--model NAME rewords any of them"
        )
    return report


class LocalModel:
    """A model on this machine, in the template that it was trained with.

    Args:
        word: a folder, a Hub name or pocket.
    """

    def __init__(self, word: str, max_new_tokens: int):
        from tunebook.common.models.inference import InferenceModel

        self.adapted, self.max_new_tokens = InferenceModel(word), max_new_tokens

    def answers(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str | None]:
        """See augment.TextModel. A prompt that leaves no room for an answer has none."""
        from tunebook.common import generation
        from tunebook.common.generation.chat import Conversation
        from tunebook.common.generation.decoding import Decoding

        model, tokenizer, template = self.adapted.model, self.adapted.tokenizer, self.adapted.template
        stop = generation.stop_conditions(tokenizer, template, model)
        texts: list[str | None] = [None] * len(prompts)
        seen, rounds = Counter[str](), dict[int, list[int]]()
        for index, text in enumerate(prompts):  # equal prompts need a seed each, or their answers would be equal, too
            rounds.setdefault(seen[text], []).append(index)
            seen[text] += 1
        top_p = 0.95 if temperature > 0 else 1.0
        for number, indices in rounds.items():
            decoding = Decoding(self.max_new_tokens, temperature, top_p, seed=seed + number)
            batch: dict[int, list[int]] = {}
            for index in indices:
                ids = Conversation(tokenizer, template).prompt(prompts[index])[0]
                with contextlib.suppress(UserError):
                    generation.remaining_tokens(model, ids, decoding)
                    batch[index] = ids
            answers = generation.generate(model, tokenizer, list(batch.values()), decoding, stop, batch_size=16)
            for index, answer in zip(batch, answers, strict=True):
                texts[index] = answer.text.strip() or None
        return texts


def _model(args: Args) -> Any:
    """The model that `--model` names: an augment.TextModel."""
    if not args.model.startswith(("http://", "https://")):
        return LocalModel(args.model, args.max_new_tokens)
    from tunebook.common.generation.endpoint import Endpoint

    return Endpoint(args.model, args.model_name, {"max_tokens": args.max_new_tokens})


def check(args: Args) -> Args:
    """The arguments with the file that --output_dir stands for; those that cannot work are refused."""
    from tunebook.common.data import augment

    if args.output_dir:
        if args.output:
            raise UserError("--output and --output_dir both say where the rows go; give one of them")
        if args.output_dir.endswith(".jsonl"):
            raise UserError(f"--output_dir {args.output_dir} looks like a file: --output {args.output_dir}")
        args = dataclasses.replace(args, output=str(Path(args.output_dir) / "train.jsonl"))
    augment.check(args.methods, args.share, args.copies, args.model)
    if args.model.startswith("http") and not args.model_name:
        raise UserError("--model_name says which model the endpoint is to use; it is missing")
    if not args.output:
        raise UserError("name the new file: --output more.jsonl, or a folder for it: --output_dir more")
    if not args.output.endswith(".jsonl"):
        raise UserError(f"--output {args.output}: rows are written one a line; name a .jsonl file")
    if Path(args.output).exists() and not args.overwrite:
        raise UserError(f"--output {args.output} exists; choose another file or add --overwrite")
    if not 0 <= args.temperature <= 5:
        raise UserError(f"--temperature {args.temperature}: expected 0 to 5")
    if args.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens {args.max_new_tokens}: expected 1 or more")
    return args
