"""An evaluation before any score is taken: its tasks with their data, its model, and all that is wrong with them."""

from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.tokens import templates
from tunebook.evals.compare import runs
from tunebook.evals.harness import bertscore, catalog, heldout, preflight, suites
from tunebook.evals.harness.scored_model import ScoredModel, absolute
from tunebook.evals.harness.scoring import Settings

BOOTSTRAP = 1000  # resamples for standard errors that have no formula


class Plan:
    """What `tunebook eval` is to do.

    Args:
        args: tunebook.evals.commands.eval.Args.
        folder: of the datasets; None: the Hub.

    Attributes:
        names, tasks: of the tasks, and as lm-eval has built them.
        benchmarks: the same by name.
        metadata: what tasks are told beside their settings.
        seen: own rows that the adapter was trained on, {"rows", "of", "tokens"}, or None.
        model: not loaded yet.
        settings: of the scoring.
        notes: what a reader of the scores must know.

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
        if args.dataset:
            self.names, chat = ["heldout"], False
        else:
            self.names, chat = suites.tasks_of(args.suite, args.tasks, args.chat_template)
        if args.base and not args.adapter:
            raise UserError("--base scores the base of --adapter, asked as the adapter is; name the adapter")
        self.model = ScoredModel(args.model, args.adapter, args.four_bit, args.base)
        self.notes = list(self.model.notes)
        # The prompts of safety are asked in the template that the model was trained in.
        safety = not args.dataset and not chat and any(name.startswith("safety") for name in self.names)
        if args.template and not (args.dataset or safety):
            raise UserError("--template is for --dataset and safety's prompts; --chat_template asks in the tokenizer's")
        self.seen, bare, stops = None, False, {}
        self.metadata: dict[str, Any] = {}
        if args.dataset:
            bare, stops = self._own_rows(args)
        elif safety:
            self.metadata = self._template(args.template)
        self.benchmarks = catalog.Benchmarks(self.names, self.metadata)
        positions, tokenizer = self.model.positions(), self.model.tokenizer
        problems = preflight.problems(
            self.benchmarks, folder, tokenizer, positions, chat, args.allow_code, args.max_gen_toks
        )
        self.tasks, unbuilt = ([], []) if problems else self.benchmarks.build(folder)
        if problems + unbuilt:
            raise UserError("nothing was scored:\n  " + "\n  ".join(problems + unbuilt))
        tasks, limit = catalog.flat(self.tasks), args.limit or None
        self.notes += preflight.incomplete(tasks)
        self.notes += preflight.cut(self.benchmarks, tasks, tokenizer, positions, chat, limit, args.max_gen_toks)
        if chat and not args.chat_template:
            self.notes.append("the suite is for chat models: its questions are asked in the tokenizer's chat template")
        self.settings = Settings(
            batch_size=args.batch_size,
            limit=limit,
            chat_template=chat,
            seed=args.seed,
            gen_kwargs=stops | ({"max_gen_toks": args.max_gen_toks} if args.max_gen_toks else {}),
            allow_code=args.allow_code,
            bootstrap_iters=BOOTSTRAP,
            bare=bare,
        )

    def _own_rows(self, args: Any) -> tuple[bool, dict[str, Any]]:
        """Set `metadata` and `seen` for the user's own rows; whether they are scored bare, and where answers end."""
        if args.chat_template:
            raise UserError("--chat_template is for benchmarks; of your own rows --template names the template")
        dataset = [absolute(word) for word in args.dataset]
        self.metadata = {"dataset": dataset, **self._template(args.template)}
        if args.bert_model:
            encoder = absolute(args.bert_model)
            bertscore.of(encoder, args.bert_layer)  # now, before hours are spent
            self.metadata |= {"bert_model": encoder, "bert_layer": args.bert_layer}
        bare = heldout.bare(tuple(dataset), self.metadata["template"], self.metadata["tokenizer"])
        rows, tokenizer = heldout.read(tuple(dataset)), self.model.tokenizer
        if not args.base and (seen := runs.seen(self.model.trained, rows, tokenizer)):
            count, tokens = seen
            self.seen = {"rows": count, "of": len(rows), "tokens": str(tokens)}
            if count:
                self.notes.append(
                    f"{count} of the {len(rows)} rows are among those that the model was trained on ({tokens.parent}): "
                    "of them the scores say what it remembers, not what it has learned; score rows that it has not "
                    "seen (tunebook split makes files of splits)"
                )
        self.metadata |= {"add_bos_token": False} if bare else {}
        return bare, heldout.stops(tokenizer, templates.get(self.metadata["template"], tokenizer), self.model.end)

    def _template(self, name: str) -> dict[str, Any]:
        """--metadata of tasks whose prompts are put into the model's template."""
        model = self.model
        template, note = heldout.choose(name, [model.trained, model.base], model.tokenizer)
        self.notes += [note] if note else []
        return {"template": template, "tokenizer": absolute(model.trained if model.own_tokenizer else model.base)}
