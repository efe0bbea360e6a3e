"""The `tunebook` console script: one module a command, loaded when it is asked for, so that every --help is quick."""

import importlib
import importlib.metadata
import sys

# name -> (module with `Args` and `main(args)`, one line of help). Modules are named, not imported: a command of evals
# can stand here although common knows nothing of evals.
COMMANDS: dict[str, tuple[str, str]] = {
    "ls": ("tunebook.common.commands.ls", "the recipes, one line each"),
    "cp": ("tunebook.common.commands.cp", "copy a recipe to a file of your own"),
    "new": ("tunebook.common.commands.new", "look at your rows, and write a recipe that suits them"),
    "inspect": (
        "tunebook.common.commands.inspect",
        "what is in a dataset, what is wrong with it, and which tokens train",
    ),
    "split": ("tunebook.common.commands.split", "train, validation and test files, with the proof that nothing leaks"),
    "augment": ("tunebook.common.commands.augment", "more rows from the ones you have; the originals stay, marked"),
    "chat": ("tunebook.common.commands.chat", "talk to a model and its adapters, in the terminal or on a page"),
    "export": ("tunebook.common.commands.export", "weights for a server, and the proof that they are what was trained"),
    "verify": ("tunebook.common.commands.verify", "the same proof, of an export that somebody else made"),
    "plan": ("tunebook.common.commands.plan", "memory and time of a recipe before it runs, and what would fit"),
    "table": ("tunebook.evals.commands.table", "several methods side by side on your model and data"),
    "runs": ("tunebook.common.commands.runs", "all runs of a folder, in the terminal or on one page"),
    "eval": ("tunebook.evals.commands.eval", "scores on benchmarks or on your own test rows, through lm-eval"),
    "compare": (
        "tunebook.evals.commands.compare",
        "two models on the same lm-eval items, and how sure the difference is",
    ),
    "judge": ("tunebook.evals.commands.judge", "a model judges two models' answers, in both orders"),
    "rate": (
        "tunebook.evals.commands.rate",
        "people judge two models' answers without names, on a page of this machine",
    ),
    "safety": ("tunebook.evals.commands.safety", "safety and bias beside quality, and what the numbers cannot say"),
    "doctor": ("tunebook.common.commands.doctor", "versions, device, what will be used and what is wrong"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command, given as words (default: those of the process), and end the process with its exit code."""
    from tunebook.common import cli, errors
    from tunebook.common.process import terminal

    terminal.protect(goes_on=False)
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name == "help":
        name, words = (words[0], ["--help"]) if words else ("--help", [])
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"tunebook {importlib.metadata.version('tunebook')}")
        return
    if name not in COMMANDS:
        known = f"the commands are {', '.join(COMMANDS)}{errors.nearest(name, COMMANDS)}"
        print(f"error: tunebook {name}: no such command; {known}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(COMMANDS[name][0])
    sys.argv[0] = f"tunebook {name}"  # what --help and messages about flags call it
    cli.run(module.main, module.Args, words, goes_on=False)


def usage() -> str:
    """The commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: tunebook COMMAND ...", "", *lines, "", "tunebook COMMAND --help says what it takes."])
