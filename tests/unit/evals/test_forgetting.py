"""The verdict about what tuning cost: by its rule, on pocket's weights, and on runs that are good and over-trained."""

import json
import random

import browser
import forked
import pytest
import torch
from paths import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunebook.common.pocket import FOLDER
from tunebook.evals import harness
from tunebook.evals.compare import comparison, forgetting


def scoring(**tasks):
    """As harness.score returns it; values below 0 stand for log-likelihoods of ten bytes."""
    metrics, items, higher = {}, {}, {}
    for task, values in tasks.items():
        text = values[0] < 0
        metric = "bits_per_byte" if text else "acc"
        mean = sum(values) / len(values)
        metrics[task] = {metric: -mean / 10 / 0.6931471805599453 if text else mean}
        items[task] = {place: {metric: [value, 10] if text else value} for place, value in enumerate(values)}
        higher[task] = {metric: not text}
    return {"metrics": metrics, "items": items, "higher": higher}


def shares(right, of=300):
    return [1.0] * right + [0.0] * (of - right)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (297, "retained"),  # nothing changed
        (300, "retained"),  # more is no loss
        (296, "retained"),  # one item lost, none won
        (294, "inconclusive"),  # three lost, none won: p = 0.25
        (288, "degraded"),  # nine lost: 1.6 to 5.6 points
        (280, "regressed"),
        (150, "regressed"),
    ],
)
def test_the_rule_on_a_task(after, says):
    found = forgetting.verdict(scoring(facts=shares(297)), scoring(facts=shares(after)))
    assert found["verdict"] == says, found["words"]
    one = found["tasks"]["facts"]
    assert one["loss_low"] <= (297 - after) / 300 <= one["loss_high"]
    assert (says == "retained") == (one["loss_high"] <= 0.02)


def test_few_items_decide_little():
    assert forgetting.verdict(scoring(a=shares(20, 20)), scoring(a=shares(18, 20)))["verdict"] == "inconclusive"
    assert forgetting.verdict(scoring(a=shares(20, 20)), scoring(a=shares(20, 20)))["verdict"] == "inconclusive"
    assert forgetting.verdict(scoring(a=shares(20, 20)), scoring(a=shares(5, 20)))["verdict"] == "regressed"


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (1.0, "retained"),
        (0.7, "retained"),
        (1.005, "retained"),
        (1.06, "degraded"),
        (1.2, "regressed"),
        (1.41, "regressed"),
        (3, "regressed"),
    ],
)
def test_the_rule_on_texts(factor, says):
    chance = random.Random(1)
    before = [-chance.uniform(2, 9) for _ in range(120)]
    after = [value * factor * chance.uniform(0.8, 1.2) if factor != 1 else value for value in before]
    found = forgetting.verdict(scoring(text=before), scoring(text=after))
    assert found["verdict"].startswith(says), found["words"]
    if factor == 3:
        assert "%, regressed)" in found["words"] and found["tasks"]["text"]["loss_low"] == pytest.approx(2, abs=0.2)


def test_what_is_taught_does_not_count_and_one_loss_is_enough():
    before = scoring(pocket_seen=shares(150), facts=shares(297), other=shares(290))
    after = scoring(pocket_seen=shares(0), facts=shares(297), other=shares(200))
    found = forgetting.verdict(before, after)
    assert list(found["tasks"]) == ["facts", "other"] and found["verdict"] == "regressed"
    assert found["tasks"]["facts"]["verdict"] == "retained" and "99.0 % → 99.0 %" in found["words"]
    assert forgetting.verdict(scoring(pocket_seen=shares(1)), scoring(pocket_seen=shares(1))) == {}
    assert forgetting.verdict({"metrics": {}, "items": {}}, {"metrics": {}, "items": {}}) == {}


def test_pocket_and_pocket_with_noise(tmp_path):
    """In memory and through lm-eval: the base against itself, and against weights that have lost much."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model", padding_side="left")
    scores = harness.Scores(["pocket_facts", "pocket_text"], tmp_path)
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32).eval()
    scores.evaluate("before", model, tokenizer)
    scores.evaluate("after", model, tokenizer)
    results = scores.results(None, None)
    assert results["forgetting"]["verdict"] == "retained", results["forgetting"]["words"]
    assert list(results["before"]) == list(results["comparison"]) == results["by_skill"]["columns"] == ["pocket_facts"]
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.5 * weight.std())
    scores.evaluate("after", model, tokenizer)
    found = scores.results(None, None)["forgetting"]
    assert {task["verdict"] for task in found["tasks"].values()} == {"regressed"}, found["words"]
    json.dumps(found, allow_nan=False)


@pytest.mark.recipe
@pytest.mark.slow
def test_a_good_run_and_one_with_twenty_times_the_learning_rate(tmp_path):
    """The same recipe for the same steps, each in its own process; what the page and the terminal say of it."""
    found = {}
    for name, rate in {"good": 2e-3, "over-trained": 4e-2}.items():
        flags = [
            "--output_dir",
            tmp_path / name,
            "--learning_rate",
            rate,
            "--max_steps",
            12,
            "--eval_suite",
            "pocket_chat",
        ]
        done = forked.run(ROOT / "recipes" / "lora_alpaca.py", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        found[name] = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))["scores"]["forgetting"]
        assert f"forgetting: {found[name]['words']}" in done.stdout
        assert f"Forgetting: {found[name]['verdict']}" in (tmp_path / name / "report.html").read_text(encoding="utf-8")
        agrees_with_compare(tmp_path / name / "eval", found[name])
    browser.look(tmp_path / "good" / "report.html")
    good, over_trained = (found[name]["tasks"]["pocket_facts"] for name in ("good", "over-trained"))
    assert good["verdict"] != "regressed", found["good"]["words"]
    assert over_trained["verdict"] == "regressed" and over_trained["loss_low"] > 0.02, found["over-trained"]["words"]


def agrees_with_compare(folder, found):
    """tunebook compare, on the files that the run has left, finds the same losses."""
    for row in comparison.compare(folder / "before", folder / "after")["rows"]:
        if row["headline"] and row["task"] in found["tasks"]:
            mine = found["tasks"][row["task"]]
            assert row["p_holm"] == pytest.approx(mine["p_holm"])
            assert (row["verdict"] == "worse") == (mine["verdict"] in ("regressed", "degraded")), (row, mine)
