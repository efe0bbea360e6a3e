"""Every benchmark runs at its quick size and writes what it measured."""

import json
import runpy

import forked
import pytest
from paths import ROOT

PARENTS = ("forecast.py", "gpu.py")  # those that start a process for each case


@pytest.mark.recipe
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_quick(path, tmp_path, forks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path.name in PARENTS:
        monkeypatch.syspath_prepend(str(path.parent))
        file = runpy.run_path(str(path))
        file["main"](file["Args"](quick=True, json="out.json"))
    else:
        done = forked.run(path, "--quick", "--json", "out.json")
        assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["machine"] and result["seconds"]
    assert result.get("different_labels", 0) == 0
