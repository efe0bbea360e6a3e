"""Task category of a row, by the first words of its English instruction."""

import re

METHOD = (
    "the first verb or question word that is in tunebook's lists (English), searched in the first clauses of the "
    "instruction; rows without one are other"
)
CLAUSES = 5  # "Given the text below, please summarize it": the verb that counts often stands behind a comma
WORDS: dict[str, str] = {
    "write": "generate create write compose construct design develop invent draft make come produce formulate devise "
    "brainstorm imagine build compile prepare craft assemble plan script program implement role-play pretend form "
    "hypothesize recreate",
    "answer": "what what's how who whom whose which when where why is are was were do does did can could will would "
    "should has have tell answer respond reply",
    "explain": "describe explain discuss define compare analyze analyse evaluate elaborate interpret outline contrast "
    "differentiate distinguish illustrate assess examine justify argue teach state",
    "list": "name list give suggest provide find recommend propose cite offer specify think curate present recall "
    "research search look show mention collect retrieve quote enumerate share",
    "rewrite": "rewrite re-write edit convert change translate reword paraphrase replace transform rearrange insert "
    "delete remove reverse combine modify format update correct reorganize reorder reformulate rephrase fix "
    "improve expand compress turn put add complete fill arrange simplify shorten express capitalize proofread "
    "revise adapt restructure continue finish punctuate spell reformat adjust merge join restate reconstruct "
    "reframe alter reduce re-arrange re-order re-word clean",
    "classify": "classify identify categorize categorise determine select choose detect sort pick rank assign match "
    "group label divide organize rate check guess infer predict decide recognize extract parse mark highlight order "
    "separate tag judge verify spot",
    "summarize": "summarize summarise condense abridge recap abstract synthesize",
    "calculate": "calculate compute solve estimate multiply count subtract sum average round factor integrate derive "
    "prove",
}
OTHER = "other"
NAMES = (*WORDS, OTHER)
_OF = {word: name for name, words in reversed(WORDS.items()) for word in words.split()}
_FILLERS = frozenset(
    [
        "please",
        "now",
        "then",
        "next",
        "first",
        "also",
        "you",
        "need",
        "to",
        "kindly",
        "just",
        "automatically",
        "briefly",
    ]
)
_BREAKS = re.compile(r"[.,:;!?\n]+|\s(?:and|then)\s")
_POLITE = re.compile(r"^(?:(?:can|could|would|will) you|i (?:want|need|would like|'d like) you to|help me(?: to)?)\s+")


def of(text: str) -> str:
    """The category of an instruction: one of NAMES."""
    for clause in _BREAKS.split(text[:400].lower(), maxsplit=CLAUSES)[:CLAUSES]:
        words = _POLITE.sub("", clause.strip(" \t\"'“”*#-(").removeprefix("please ")).split()
        first = next((word for word in words if word not in _FILLERS), "")
        if first in _OF:
            return _OF[first]
    return OTHER
