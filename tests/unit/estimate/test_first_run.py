"""docs/first_run.md: its tables are what its script computes, of models with the sizes that they are known to have."""

import json
import re

import forked
import pytest
import torch
from paths import ROOT, WHOLE
from transformers import AutoConfig, AutoModelForCausalLM

MODELS = json.loads((ROOT / "docs" / "first_run.json").read_text())
SMALLEST = "Llama-3.2-1B"


def cells(text):
    """The lines of tables, as their cells."""
    return [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in text.splitlines() if "|" in line]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_each_model_has_as_many_parameters_as_its_files(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(model["config"]))
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert sum(parameter.numel() for parameter in made.parameters()) == model["parameters"]


def test_every_model_has_a_line_in_both_tables():
    page = (ROOT / "docs" / "first_run.md").read_text()
    for part in (page.partition("### QLoRA")[2].partition("###")[0], page.partition("### LoRA")[2].partition("## ")[0]):
        assert [line[0] for line in cells(part)[2:]] == [model["name"] for model in MODELS]


@pytest.mark.slow
@pytest.mark.recipe
def test_the_tables_are_what_the_script_prints(tmp_path):
    words = () if WHOLE else ("--only", SMALLEST)
    done = forked.run(ROOT / "docs" / "first_run.py", *words, cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (ROOT / "docs" / "first_run.md").read_text()
    for method in ("QLoRA", "LoRA"):
        found = cells(re.split(rf"^{method}\n\n", done.stdout, flags=re.MULTILINE)[1].partition("\n\n")[0])
        shown = cells(page.partition(f"### {method}\n")[2].partition("##")[0])
        assert found[2:] and set(found[2:]) <= set(shown)
