"""Functions that the YAML files beside this one name."""

from tunebook.evals import sandbox


def program(doc, answer):
    """The item's function with the answer as its body, its tests, and the call that runs them."""
    return f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def verdicts(resps, docs):
    """A filter: each answer -> what became of its program, all of them side by side."""
    answers = [(doc, answer) for found, doc in zip(resps, docs, strict=True) for answer in found]
    said = iter(sandbox.run_all(program(doc, answer) for doc, answer in answers))
    return [[next(said) for _ in found] for found in resps]


def score(doc, results):
    """pass@1 of one item; with several answers to it, the share that passes."""
    (found,) = results
    return {"pass@1": sum(verdict == sandbox.PASSED for verdict in found) / len(found)}
