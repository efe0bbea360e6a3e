"""The numbers of a run: against transformers and PEFT alone, in float32, row by row; and what they are called."""

import json
import re
from types import SimpleNamespace

import browser
import few
import forked
import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs of 64 rows with the loss of DFT; 12 held-out rows in batches of 8, of which the last has 4."""
    folder = tmp_path_factory.mktemp("numbers")
    flags = ["--dataset", few.rows(folder / "rows", train=64, others=12), "--per_device_train_batch_size", 8,
             "--num_train_epochs", 2, "--eval_suite", "none", "--output_dir", folder / "run"]  # fmt: skip
    more = ["--eval_share", "1", "--sft", "loss_type=dft", "dataloader_drop_last=true", "logging_steps=1"]
    done = forked.run(ROOT / "recipes" / "lora_alpaca.py", *flags, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "run" / "report.json").read_text(encoding="utf-8")), done.stdout


def held_out(folder, adapter):
    """(nats a token, share of tokens that are the likeliest, entropy) of the held-out rows, each row by itself."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunebook.common import data, models
    from tunebook.common.tokens import templates

    model = AutoModelForCausalLM.from_pretrained(models.resolve("pocket"), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models.resolve("pocket"))
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for row in data.load([str(folder / "rows")], seed=0)["validation"]:
        prompt = tokenizer(templates.ALPACA.prompt(row)).input_ids
        ids = [*prompt, *tokenizer(templates.ALPACA.completion(row)).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            said = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].double(), -1)
        labels = torch.tensor(ids[len(prompt) :])
        right, entropy = (said.argmax(-1) == labels).sum(), -(said.exp() * said).sum()
        sums += torch.stack([-said.gather(1, labels[:, None]).sum(), right.double(), entropy])
        count += len(labels)
    return (sums / count).tolist()


@pytest.mark.recipe
def test_a_held_out_loss_is_cross_entropy_over_all_rows_whatever_trains(run):
    folder, report, said = run
    evaluations = [loss for _, loss in report["train"]["evaluations"]]
    before, after = held_out(folder, None), held_out(folder, folder / "run" / "adapter")
    assert evaluations[0] == pytest.approx(before[0], abs=2e-4) and report["eval"]["loss"] == evaluations[-1]
    assert report["eval"]["loss"] == pytest.approx(after[0], abs=2e-4)
    assert report["eval"]["loss"] == pytest.approx(min(evaluations), abs=1e-5)  # the best is kept
    assert report["eval"]["loss"] < before[0] - 0.1
    assert report["eval"]["loss_name"] == "cross-entropy, nats a token" and report["train"]["loss_name"] == "DFT loss"
    assert report["train"]["loss"][0][1] < 1 < before[0]  # that of DFT is another measure, so another chart
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'<svg[^>]*aria-label="By step: ([^"]*)"', page)[:2]
    assert names == ["training DFT loss", "held-out cross-entropy, nats a token"]
    assert f"before {evaluations[0]:.4f} → after {evaluations[-1]:.4f}" in said


@pytest.mark.recipe
def test_what_is_told_beside_it_is_a_mean_over_tokens(run):
    folder, _, _ = run
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "eval_loss" in line)
    _, right, entropy = held_out(folder, None)
    assert first["eval_mean_token_accuracy"] == pytest.approx(right, abs=1e-6)
    assert first["eval_entropy"] == pytest.approx(entropy, abs=1e-3)


@pytest.mark.recipe
def test_trained_tokens_are_those_of_the_run(run):
    folder, report, _ = run
    once = report["data"]["trained_tokens"]
    assert report["train"]["steps"] == 16 and report["measured"]["trained_tokens"] == 2 * once
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    tile = re.search(r"Tokens trained</span><b>([\d,]+)</b><span>in 16 steps; the data has ([\d,]+)<", page)
    assert [int(number.replace(",", "")) for number in tile.groups()] == [2 * once, once]
    browser.look(folder / "run" / "report.html")


def test_what_losses_are_called():
    from tunebook.common.training import callbacks

    def called(kind, smoothing=0.0, router=0.0):
        args = SimpleNamespace(loss_type=kind, label_smoothing_factor=smoothing)
        smoother = object() if smoothing else None
        given = dict(args=args, label_smoother=smoother, aux_loss_enabled=bool(router), router_aux_loss_coef=router)
        return callbacks.names(SimpleNamespace(**given))

    assert called("nll") == ("cross-entropy", "held-out loss") and called("dft") == ("DFT loss", "held-out loss")
    assert called("nll", 0.1) == ("cross-entropy with label smoothing of 0.1", "held-out loss")
    assert called("nll", 0, 0.01)[0] == "cross-entropy + 0.01 x the balancing loss of the router"
    assert called(["ipo"], 0, 0.5)[0] == "DPO loss (ipo) + 0.5 x the balancing loss of the router"
    assert called(["sigmoid", "sft"]) == ("DPO loss (sigmoid + sft)", "held-out DPO loss (sigmoid + sft)")


def test_one_chart_holds_one_measure():
    from tunebook.common import report

    def charts(training, held_out, **more):
        train = {"loss": [[1, 2.0]], "evaluations": [[0, 3.0]], "loss_name": training,
                 "parts": {"divergence": [[1, 0.5]], "cross_entropy": [[1, 1.5]]}}  # fmt: skip
        return [list(chart) for chart in report.charts({"train": train, "eval": {"loss_name": held_out}, **more})]

    nats = "cross-entropy, nats a token"
    assert charts("cross-entropy", nats) == [["training cross-entropy", f"held-out {nats}"]]
    assert charts("DPO loss (ipo)", "DPO loss (ipo)") == [["training DPO loss (ipo)", "held-out DPO loss (ipo)"]]
    assert len(charts("cross-entropy with label smoothing of 0.1", nats)) == 2
    taught = {"divergence": "KL(teacher‖student)", "temperature": 2.0}
    apart, together = charts("0.5·T²·KL + 0.5·cross-entropy", nats, distillation=taught)
    assert apart == ["KL(teacher‖student) at T = 2, training"]
    assert together == ["training cross-entropy", f"held-out {nats}"]
