"""The notebook runs from top to bottom, and is kept without outputs."""

import json

import forked
import pytest
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind="code"):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)) > 8
    for cell in notebook["cells"]:
        assert cell["cell_type"] != "code" or (cell["outputs"] == [] and cell["execution_count"] is None)
    assert not [text for text in cells(path) if text.startswith(("!", "%"))]  # plain Python: this test runs it


@pytest.mark.recipe
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, tmp_path):
    """Cell by cell in one namespace; a kernel does the same and shows what is printed."""
    code = "\n".join(f"print('--- {place}', flush=True)\n{text}" for place, text in enumerate(cells(path)))
    code = code.replace("max_steps=60", "max_steps=20")
    done = forked.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = dict(part.split("\n", 1) for part in done.stdout.split("--- ")[1:])
    assert "train      " in shown["1"] and "'instruction': 'Give the colour of the thing.'" in shown["1"]
    assert "200 rows, 200 kept" in shown["2"] and "[<|endoftext|>]" in shown["2"]
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
    assert "held-out loss" in shown["4"] and shown["4"].count("reference:") == 2
    assert len([line for line in shown["5"].splitlines() if line.startswith("  ") and line.strip()]) >= 2
