"""Every benchmark runs at its quick size and writes what it measured."""

import json
import runpy
import subprocess
import sys

import forked
import pytest
from paths import ROOT

PROCESSES = ("gpu", "export")  # they start several
CASES = [
    pytest.param(path, marks=pytest.mark.slow if path.stem in PROCESSES else (), id=path.name)
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
]


@pytest.mark.recipe
@pytest.mark.parametrize("path", CASES)
def test_quick(path, tmp_path, forks, monkeypatch):
    words = ["--quick", "--json", "out.json"]
    if path.stem == "gpu":
        monkeypatch.undo()
        command = [sys.executable, str(path), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    elif path.stem == "forecast":  # it starts a process for each case: forks here
        monkeypatch.chdir(tmp_path)
        file = runpy.run_path(str(path))
        file["main"](file["Args"](quick=True, json="out.json"))
    else:
        done = forked.run(path, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["machine"] and result["seconds"]
    assert result.get("different_labels", 0) == 0
