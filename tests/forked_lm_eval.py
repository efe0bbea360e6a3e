"""A server (see forked.py) that has lm-eval and nothing of tunebook or Unsloth: the command line `lm_eval` as forks."""

import functools
import os
import shlex

import forked


@functools.cache
def server():
    return forked.Server(__file__, HF_HUB_OFFLINE="1")


def run(command):
    """What a shell makes of `cd FOLDER && NAME=VALUE lm_eval ...`, as a CompletedProcess."""
    words, folder, environment = shlex.split(command), None, dict(os.environ)
    if words[0] == "cd":
        folder, words = words[1], words[3:]
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
    assert words.pop(0) == "lm_eval"
    return server().run("-m", "lm_eval", *words, cwd=folder, env=environment)


def load():
    import lm_eval.evaluator
    import lm_eval.models.huggingface
    import lm_eval.tasks  # noqa: F401


def main():
    job = forked.next_child(load)
    import datasets

    if "HF_DATASETS_CACHE" in job["env"]:  # read at the import
        datasets.config.HF_DATASETS_CACHE = job["env"]["HF_DATASETS_CACHE"]
    forked.execute(job["words"])


if __name__ == "__main__":
    main()
