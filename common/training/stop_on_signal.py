"""A Trainer that ends at a signal: the step is finished and saved; an evaluation under way is left, and taken when the
run goes on."""

from typing import Any

from transformers import TrainerCallback

from tunebook.common.process import stopping

EVALUATION = "tunebook.evaluation"  # in a checkpoint's trainer_state.json: it was left


class StopOnSignal(TrainerCallback):
    """At a signal the step ends, a checkpoint of it is written, and the run ends.

    The checkpoint does not hold that training is to stop: it would say so to the run that goes on from it.

    Attributes:
        due: whether the step would be saved without a signal, too.
    """

    due = False

    def on_train_begin(self, args, state, control, **kwargs):
        stopping.wait()

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and not control.should_evaluate:
            control.should_log = True  # a loss that is no number ends the run before it is saved
        if not _end_of_epoch(args, state):
            self._save_if_asked(args, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        if _end_of_epoch(args, state):
            self._save_if_asked(args, control)

    def _save_if_asked(self, args: Any, control: Any) -> None:
        self.due = control.should_save
        if stopping.asked(args.world_size, args.device):
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if stopping.asked(args.world_size, args.device):
            stopping.end(args.world_size)

    def on_train_end(self, args, state, control, **kwargs):
        stopping.end(args.world_size)


def attach(trainer: Any) -> None:
    """Let a signal end the trainer's evaluations at their next batch, with a checkpoint that says so."""
    (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, StopOnSignal))
    predict, finish_step, save = trainer.prediction_step, trainer._maybe_log_save_evaluate, trainer._save_checkpoint
    args = trainer.args

    def prediction_step(*words: Any, **named: Any) -> Any:
        stopping.leave_evaluation(args.world_size, args.device)
        return predict(*words, **named)

    def finish(tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *words: Any, **named: Any) -> None:
        try:
            finish_step(tr_loss, grad_norm, model, trial, *words, **named)
        except stopping.EvaluationLeft:
            trainer.state.stateful_callbacks[EVALUATION] = {"due": is_due()}
            trainer._save_checkpoint(model, trial)
            trainer.control = trainer.callback_handler.on_save(args, trainer.state, trainer.control)

    def save_checkpoint(model: Any, trial: Any) -> None:
        _settle_best(trainer, is_due())
        save(model, trial)

    def is_due() -> bool:
        return callback.due or args.save_strategy == "best"  # which is decided by the evaluation

    trainer.prediction_step, trainer._maybe_log_save_evaluate = prediction_step, finish
    trainer._save_checkpoint = save_checkpoint


def take_left_evaluation(trainer: Any, checkpoint: str) -> None:
    """Take the evaluation that a signal ended, if there was one, as the step would have."""
    callbacks: Any = trainer.state.stateful_callbacks  # a dict once the state was read from a checkpoint
    if (left := callbacks.pop(EVALUATION, None)) is None:
        return
    try:
        metrics = trainer._evaluate(None, None)
    except stopping.EvaluationLeft:  # by the next signal: the checkpoint holds what it has held
        stopping.end(trainer.args.world_size)
        return
    trainer._determine_best_metric(metrics=metrics, trial=None)
    _settle_best(trainer, left["due"])
    if trainer.state.best_global_step == trainer.state.global_step:
        trainer.state.best_model_checkpoint = checkpoint


def _settle_best(trainer: Any, due: bool) -> None:
    """A checkpoint that only a signal has made is none of those from which the best one is taken."""
    if not due and trainer.state.best_global_step == trainer.state.global_step:
        trainer.state.best_global_step = None


def _end_of_epoch(args: Any, state: Any) -> bool:
    """Whether the Trainer evaluates, logs or saves at the end of an epoch, after this last step of it."""
    strategies = (args.eval_strategy, args.save_strategy, args.logging_strategy)
    return "epoch" in strategies and float(state.epoch).is_integer()
