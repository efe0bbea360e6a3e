"""Named sets of tasks: benchmarks by lm-eval's own tasks (HumanEval's is ours, for its safety), and pocket's."""

from dataclasses import dataclass

from tunebook.common.errors import UserError, nearest


@dataclass(frozen=True)
class Suite:
    """Tasks, and what they are for."""

    tasks: tuple[str, ...]
    line: str
    chat: bool = False  # for chat models: prompts are questions in the tokenizer's chat template
    bundled: bool = False  # its data are bundled: recipes score it before and after


POCKET = ("pocket_seen", "pocket_unseen", "pocket_facts", "pocket_text")
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
    "general": Suite(
        ("general_knowledge",),
        "questions of our own about what most people know: what tuning a real model has cost, in a minute",
        bundled=True,
    ),
    "pocket": Suite(POCKET, "the bundled data: instructions, world knowledge, text", bundled=True),
    "pocket_pairs": Suite(POCKET, "the same, after preference training", bundled=True),
    "pocket_chat": Suite(("pocket_chat", *POCKET[2:]), "the bundled data: second turns of conversations", bundled=True),
}  # fmt: skip
# Tasks whose prompt for a chat model is another one.
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
    """Names of the tasks of --suite or --tasks, and whether they are asked in the chat template.

    Raises:
        UserError: there is no such suite, or not exactly one of the two was given.
    """
    if bool(suite) == bool(tasks):
        raise UserError(f"give one of --suite ({', '.join(SUITES)}), --tasks NAME ... and --dataset FILE")
    if tasks:
        return [name for name in dict.fromkeys(",".join(tasks).split(",")) if name], chat_template
    if suite not in SUITES:
        raise UserError(f"--suite {suite}: there is {', '.join(SUITES)}{nearest(suite, SUITES)}")
    chat = chat_template or SUITES[suite].chat
    return [IN_CHAT.get(name, name) if chat else name for name in SUITES[suite].tasks], chat


def bundled_tasks(suite: str, dataset: list[str]) -> list[str]:
    """The tasks of `--eval_suite`; `auto`: pocket's own suite for pocket's own rows, none for other data.

    Raises:
        UserError: there is no such suite.
    """
    bundled = {name: list(found.tasks) for name, found in SUITES.items() if found.bundled}
    if suite == "auto":
        return bundled.get(dataset[0], []) if len(dataset) == 1 else []
    if suite != "none" and suite not in bundled:
        raise UserError(f"--eval_suite {suite}: there is {', '.join(bundled)}, auto and none{nearest(suite, bundled)}")
    return bundled.get(suite, [])


def described() -> str:
    """The suites, a line or two each, for --help."""
    return "\n".join(f"  {name:6} {', '.join(suite.tasks)}\n         {suite.line}" for name, suite in SUITES.items())
