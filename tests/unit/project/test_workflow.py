"""The workflow of GitHub Actions parses, and runs `make test` on the Pythons of pyproject.toml, without secrets."""

import re
import tomllib

import yaml
from paths import ROOT

FILE = ROOT / ".github" / "workflows" / "ci.yml"


def test_it_runs_make_test_on_every_python_that_is_supported():
    (job,) = yaml.safe_load(FILE.read_text())["jobs"].values()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least, below = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups())
    supported = [f"3.{minor}" for minor in range(least, below)]
    assert job["strategy"]["matrix"]["python"] == supported
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert named == supported
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert [command for command in commands if command.startswith("make test PYTHON=python${{ matrix.python }}")]
    assert re.search(r"^test:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_actions_are_pinned_and_no_secret_is_read():
    text = FILE.read_text()
    used = re.findall(r"uses: (\S+)", text)
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", one) for one in used)
    assert "secrets." not in text and yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_makefile_takes_the_same_pythons():
    least, below = re.search(
        r"\(3, (\d+)\) <= sys\.version_info < \(3, (\d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{least},<3.{below}"
