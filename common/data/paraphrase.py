"""Rule-based paraphrases of an English instruction's opening, for `augment`."""

import re

from tunebook.common.data import categories

# {x} is the instruction with a small first letter, {X} as it is, {q} small and without its full stop.
ORDERS = (
    "Please {x}", "Kindly {x}", "I would like you to {x}", "I want you to {x}", "I need you to {x}",
    "Your task is to {x}", "Your job is to {x}", "Here is a task for you: {x}", "Task: {X}", "What I need is this: {x}",
    "{X} Thank you.", "Could you please {q}?", "Can you {q}?", "Would you {q}?", "Are you able to {q}?",
)  # fmt: skip
QUESTIONS = (
    "I have a question: {x}", "Question: {X}", "Please answer this question: {x}", "Here is a question for you: {x}",
    "I would like to know: {x}", "Tell me, {x}", "Can you answer this? {X}", "Could you help me with a question? {X}",
    "A quick question: {x}", "Please help me understand: {x}", "{X} Please answer.", "Answer the following: {x}",
)  # fmt: skip
ASKS = {"what", "what's", "how", "who", "whom", "whose", "which", "when", "where", "why", "is", "are", "were"}
ASKS |= {"do", "does", "did", "can", "could"}
ORDER_WORDS = frozenset(word for words in categories.WORDS.values() for word in words.split()) - ASKS - {
    "will", "would", "should", "has", "have", "form", "sum", "average", "round", "factor", "present", "state",
}  # fmt: skip


def wordings(text: str) -> list[str]:
    """The text under each opening that suits it; none where it is no English order or question that we recognise."""
    text = text.strip()
    first = re.match(r"[A-Za-z'-]+", text)
    word = first.group().lower() if first else ""
    asks = word in ASKS and text.endswith("?")
    if not asks and (word not in ORDER_WORDS or text.endswith("?")):
        return []
    small = text[0].lower() + text[1:]
    bare = small.removesuffix(".")
    # «Can you ...?» holds one sentence; with more, the question mark would stand at the wrong one.
    single = not re.search(r"[.!?:;\n]", bare)
    openings = QUESTIONS if asks else ORDERS
    if text[-1] not in ".!?":
        openings = tuple(form for form in openings if not form.startswith("{X}"))
    return [form.format(x=small, X=text, q=bare) for form in openings if single or "{q}" not in form]
