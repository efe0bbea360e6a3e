"""What a model answers and scores before it is trained and after."""

from pathlib import Path
from typing import Any

from tunebook.common import generation, models, pocket
from tunebook.common.training import defaults
from tunebook.evals.harness import scoring, suites


class BeforeAfter:
    """Answers to a few held-out rows (`samples`), and the scores of a run's --eval_suite.

    Args:
        run: a tunebook.common.run.Run.

    Raises:
        UserError: there is no such suite.
    """

    def __init__(self, run: Any):
        self.args, self.dry_run = run.args, run.args.dry_run
        self.scores = scoring.Scores(suites.bundled_tasks(run.args.eval_suite, run.args.dataset), run.dir / "eval")
        self.samples: Any = None
        self.tokenizer: Any = None

    def before(self, model: Any, tokenizer: Any, template: Any, splits: Any, save_to: Path | None = None) -> None:
        """Let the model answer and score it, unless the run is a dry one.

        Args:
            save_to: a folder for it, where lm-eval's own command is to score the same weights.
        """
        self.tokenizer = tokenizer
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        held_out = splits["test"] or splits["validation"]
        self.samples = generation.Samples(tokenizer, template, held_out, count=4, positions=positions)
        if not self.dry_run:
            self._leave_out(model)
            self.samples.take("before", model)
            self.scores.evaluate("before", model, tokenizer, save_to)

    def _leave_out(self, model: Any) -> None:
        """Where no suite was asked for, and scoring a real model before and after would take longer than its training,
        it is left out."""
        args = self.args
        if args.eval_suite != "auto" or args.max_steps < 1 or models.parameters(model)[1] < defaults.SMALL:
            return
        rows = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        asked = sum(
            file.read_bytes().count(b"\n") for split, file in pocket.rows(args.dataset[0]).items() if split == "test"
        )
        if self.scores.tasks and rows < 2 * asked:
            self.scores.tasks = []
            print(
                f"not scored by lm-eval: {asked} items, before and after, are more than the {rows} rows of "
                f"{args.max_steps} steps; --eval_suite {args.dataset[0]} scores them"
            )

    def after(self, model: Any, base: Path | str | None, adapter: Path | None) -> dict[str, Any]:
        """The same of the trained model; both, their comparison and lm-eval's command, as report.write takes them.

        Args:
            base, adapter: what that command has to load; None: it cannot.
        """
        self.samples.take("after", model)
        self.scores.evaluate("after", model, self.tokenizer)
        return self.scores.results(base, adapter)
