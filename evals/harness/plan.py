"""An evaluation before any score is taken: its tasks with their data, its model, and all that is wrong with them."""

import os
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.tokens import templates
from tunebook.evals.compare import runs
from tunebook.evals.harness import catalog, preflight, suites
from tunebook.evals.harness.scored_model import ScoredModel, absolute
from tunebook.evals.harness.scoring import Settings

BOOTSTRAP = 1000  # resamples for standard errors that have no formula
OWN = ["heldout"]  # the tasks of --dataset
ASKED = "safety"  # so the names of tasks begin whose prompts are asked as the model was trained to be asked


class Plan:
    """What `tunebook eval` is to do.

    Args:
        args: tunebook.evals.commands.eval.Args.
        folder: of the data sets; None: the Hub.

    Attributes:
        names, tasks: of the tasks, and as lm-eval has built them. `inside`: names of tasks that are parts of groups.
        found: the same by name.
        ours: some stand in evals/tasks. `metadata`: what they are told beside their settings.
        bare: as harness.Settings. `seen`: own rows that the adapter was trained on, {"rows", "of", "tokens"}, or None.
        loaded: the model, not loaded yet. `settings`: of the scoring. `notes`: what a reader of the scores must know.

        rows_alone: lm-eval alone must take one row at a time, as it would put padding behind virtual tokens.

    Raises:
        UserError: something would spoil the scores; all that was found, in one message.
    """

    def __init__(self, args: Any, folder: Path | None):
        if (args.bert_model or args.bert_layer) and not args.dataset:
            raise UserError("--bert_model and --bert_layer are for --dataset")
        if args.bert_layer and not args.bert_model:
            raise UserError("--bert_layer needs --bert_model")
        if args.dataset and (args.suite or args.tasks):
            raise UserError("--dataset scores your own rows; give --suite or --tasks in a run of their own")
        self.names, chat = (OWN, False) if args.dataset else suites.tasks_of(args.suite, args.tasks, args.chat_template)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("tunebook eval runs as one process; start it without torchrun or accelerate launch")
        self.bare, self.seen, self.rows_alone = False, None, False  # the last is known once the model is loaded
        if args.base and not args.adapter:
            raise UserError("--base scores the base of --adapter, asked as the adapter is; name the adapter")
        self.loaded = ScoredModel(args.model, args.adapter, args.four_bit, args.base)
        self.notes = list(self.loaded.notes)
        asked = not args.dataset and any(name.startswith(ASKED) for name in self.names) and not chat
        if args.template and not (args.dataset or asked):
            raise UserError("--template is for --dataset and safety's prompts; --chat_template asks in the tokenizer's")
        self.metadata, ends = self._own(args) if args.dataset else (self._template(args) if asked else {}, {})
        found = self.found = catalog.Benchmarks(self.names, self.metadata)
        positions, tokenizer = self.loaded.positions(), self.loaded.tokenizer
        problems = preflight.problems(found, folder, tokenizer, positions, chat, args.allow_code, args.max_gen_toks)
        self.tasks, unbuilt = ([], []) if problems else found.build(folder)
        if problems + unbuilt:
            raise UserError("nothing was scored:\n  " + "\n  ".join(problems + unbuilt))
        self.ours, self.inside = found.ours(), found.inside()
        leaves = catalog.flat(self.tasks)
        self.notes += preflight.incomplete(leaves)
        self.notes += preflight.cut(found, leaves, tokenizer, positions, chat, args.limit or None, args.max_gen_toks)
        if chat and not args.chat_template:
            self.notes.append("the suite is for chat models: its questions are asked in the tokenizer's chat template")
        self.settings = Settings(
            batch_size=args.batch_size,
            limit=args.limit or None,
            chat_template=chat,
            seed=args.seed,
            gen_kwargs=ends | ({"max_gen_toks": args.max_gen_toks} if args.max_gen_toks else {}),
            allow_code=args.allow_code,
            bootstrap_iters=BOOTSTRAP,
            bare=self.bare,
        )

    def _own(self, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """--metadata and --gen_kwargs of the tasks over the user's own rows."""
        from tunebook.evals.harness import bertscore, heldout

        if args.chat_template:
            raise UserError("--chat_template is for benchmarks; of your own rows --template names the template")
        words = [str(Path(word).resolve()) if Path(word).exists() else word for word in args.dataset]
        metadata: dict[str, Any] = {"dataset": words, **self._template(args)}
        if args.bert_model:
            encoder = args.bert_model if not Path(args.bert_model).exists() else str(Path(args.bert_model).resolve())
            bertscore.of(encoder, args.bert_layer)  # before hours are spent, and kept
            metadata |= {"bert_model": encoder, "bert_layer": args.bert_layer}
        tokenizer, end = self.loaded.tokenizer, self.loaded.end
        place = tuple(words), metadata["template"], metadata["tokenizer"]
        self.bare, rows = heldout.bare(*place), heldout.read(tuple(words))
        if not args.base and (found := runs.seen(self.loaded.trained, rows, tokenizer)):
            self.seen = {"rows": found[0], "of": len(rows), "tokens": str(found[1])}
            if found[0]:
                self.notes.append(
                    f"{found[0]} of the {len(rows)} rows are among those that the model was trained on "
                    f"({found[1].parent}): of them the scores say what it remembers, not what it has learned; score "
                    "rows that it has not seen (tunebook split makes files of sides)"
                )
        metadata |= {"add_bos_token": False} if self.bare else {}
        return metadata, heldout.stops(tokenizer, templates.get(metadata["template"], tokenizer), end)

    def _template(self, args: Any) -> dict[str, Any]:
        """--metadata of tasks whose prompts are put into the model's template."""
        from tunebook.evals.harness import heldout

        loaded = self.loaded
        template, note = heldout.choose(args.template, [loaded.trained, loaded.place], loaded.tokenizer)
        self.notes += [note] if note else []
        return {"template": template, "tokenizer": absolute(loaded.trained if loaded.own_tokenizer else loaded.place)}
