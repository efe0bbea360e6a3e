"""Sets of benchmarks for one question each, by lm-eval's own tasks; only HumanEval's is ours, for its safety."""

from dataclasses import dataclass

from tunebook.common.errors import UserError, nearest


@dataclass(frozen=True)
class Suite:
    """What a suite runs, and what it is for.

    Attributes:
        chat: it is for chat models: prompts are questions in the tokenizer's chat template.
    """

    tasks: tuple[str, ...]
    line: str
    chat: bool = False


# MMLU's four groups in `quick`: one subject each, of those with short questions.
SUITES = {
    "quick": Suite(
        (
            "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu_elementary_mathematics", "mmlu_philosophy",
            "mmlu_high_school_psychology", "mmlu_nutrition",
        ),
        "after every run: choices are scored and no answer is written, so it takes minutes",
    ),
    "core": Suite(
        ("mmlu", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2", "truthfulqa_gen", "gsm8k", "bbh"),
        "before and after a tuning that counts: knowledge, truthfulness, arithmetic, reasoning; hours",
    ),
    "code": Suite(
        ("humaneval_contained",),
        "HumanEval; needs --allow_code: programs that the model writes are run, contained (sandbox/seccomp.py)",
    ),
    "chat": Suite(
        ("ifeval", "truthfulqa_gen", "gsm8k_cot", "arc_challenge_chat", "bbh_cot_zeroshot"),
        "what a chat model answers: does it follow instructions, and has it kept its skills; hours",
        chat=True,
    ),
    "safety": Suite(
        ("safety",),
        "refusals and over-refusals, stereotypes, pronouns; tunebook safety shows them beside quality",
    ),
}  # fmt: skip
# Tasks that ask a chat model in other words than a model that goes on with text.
IN_CHAT = {"humaneval_contained": "humaneval_contained_chat"}

# Items of the published test sets: {dataset path: {config or "": items}}; what has fewer is not that benchmark.
PUBLISHED = {
    "allenai/ai2_arc": {"ARC-Challenge": 1172, "ARC-Easy": 2376},
    "google/IFEval": {"": 541},
    "openai/gsm8k": {"main": 1319},
    "openai/openai_humaneval": {"": 164},
    "truthfulqa/truthful_qa": {"generation": 817, "multiple_choice": 817},
}


def tasks_of(suite: str, tasks: list[str], chat_template: bool) -> tuple[list[str], bool]:
    """Names of the tasks to run, and whether they are asked in the chat template.

    Args:
        suite, tasks: --suite and --tasks as typed; one of them is empty.

    Raises:
        UserError: there is no such suite, or not exactly one of the two was given.
    """
    if bool(suite) == bool(tasks):
        raise UserError(f"give one of --suite ({', '.join(SUITES)}), --tasks NAME ... and --dataset FILE")
    if tasks:
        return [name for name in dict.fromkeys(",".join(tasks).split(",")) if name], chat_template
    if suite not in SUITES:
        raise UserError(f"--suite {suite}: there is {', '.join(SUITES)}{nearest(suite, SUITES)}")
    found = SUITES[suite]
    chat = chat_template or found.chat
    return [IN_CHAT.get(name, name) if chat else name for name in found.tasks], chat


def described() -> str:
    """The suites, a line or two each, for --help."""
    return "\n".join(f"  {name:6} {', '.join(suite.tasks)}\n         {suite.line}" for name, suite in SUITES.items())
