"""`--help` of every command and recipe: word for word, and without what takes seconds to import."""

import json
import subprocess
import sys

import golden
import pytest
from paths import ROOT

from tunebook.common import commands

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
pytestmark = pytest.mark.golden
HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "unsloth", "lm_eval", "matplotlib", "scipy")
# Each in a fork of a Python that has imported nothing of ours.
CODE = """
import io, json, os, runpy, sys
commands, recipes, heavy = json.loads(sys.argv[1])
asked = [("command", name, ["-m", "tunebook.common.commands", name, "--help"]) for name in commands]
asked += [("recipe", name, ["recipes/" + name + ".py", "--help"]) for name in recipes]
for kind, name, words in asked:
    read, write = os.pipe()
    if os.fork() == 0:
        sys.stdout = out = io.StringIO()
        code = None
        try:
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        seen = [kind, name, code or 0, out.getvalue(), [one for one in heavy if one in sys.modules]]
        os.write(2, (json.dumps(seen) + chr(10)).encode())
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def helps():
    """(exit code, text, heavy modules) of every command and recipe."""
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "dumb", "PATH": "/usr/bin:/bin"}
    asked = json.dumps([list(commands.COMMANDS), RECIPES, HEAVY])
    done = subprocess.run(
        [sys.executable, "-c", CODE, asked], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    return {(kind, name): rest for kind, name, *rest in found}


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_of_a_command(helps, name):
    code, text, heavy = helps["command", name]
    assert code == 0 and f"usage: tunebook {name}" in text and "[STR]" not in text
    assert heavy == []
    golden.check(f"help/tunebook_{name}.txt", text)


@pytest.mark.parametrize("name", RECIPES)
def test_of_a_recipe(helps, name):
    code, text, heavy = helps["recipe", name]
    assert code == 0 and "--output-dir" in text.replace("_", "-")
    assert heavy == []
    golden.check(f"help/{name}.txt", text)
