"""Every static page, of made-up figures and hostile names, in seconds and without training."""

import copy
import json
import random

from judge_server import Server

from tunebook.common import commands
from tunebook.common.report import dataset, methods_table, run, runs, runs_view
from tunebook.common.tokens import templates, tokenization
from tunebook.evals.compare import comparison
from tunebook.evals.compare import page as comparison_page

WILD = "<script>alert(1)</script>"


def scored(task, before, after, general, metric="exact_match"):
    """A tested row of a run's report: items right before and after, as lists of 0 and 1."""
    shares = [sum(values) / len(values) for values in (before, after)]
    row = comparison.measure(task, metric, True, before, after, tuple(shares))
    row.headline = True
    return row, general


def rows():
    """Rows of four tasks: one better, one that cannot be told, one worse, one with a hostile name."""
    found = [
        scored("pocket_seen", [0] * 200, [1] * 150 + [0] * 50, False),
        scored("pocket_unseen", [0, 1] * 50, [1, 0] * 50, False),
        scored("pocket_facts", [1] * 200, [1] * 170 + [0] * 30, True, "acc"),
        scored(f"{WILD} \\(x\\) $y", [0, 1] * 40, [0, 1] * 40, True, "acc"),
    ]
    comparison.judge([row for row, _ in found])
    return [row.as_dict() | {"general": general} for row, general in found]


def report(name="lora_alpaca", seed=0, **args):
    """report.json of a run that was stopped once."""
    chance = random.Random(seed)
    loss = [[step, 7.0 * 0.97**step + chance.random()] for step in range(1, 101)]
    tests = rows()
    lost = {row["task"]: {"verdict": "regressed" if row["verdict"] == "worse" else "retained"} for row in tests[2:]}
    part = {"begun": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:05:00+00:00", "from_step": 0, "to_step": 60,
            "how": "stopped by SIGTERM", "processes": 1, "seconds": 40.0, "trained_tokens": 5000,
            "peak_bytes": 2**30, "changes": ["rank 8 -> 16"]}  # fmt: skip
    return {
        "recipe": name,
        "args": {"output_dir": f"runs/{name}", "model": "pocket", "dataset": [WILD], "lora_r": 16,
                 "learning_rate": 2e-3, "max_steps": 100, "eval_suite": "auto", "set": [], **args},
        "device": "CPU, 1 thread",
        "samples": [
            {"asked": f"Say {WILD}", "prompt": f"### Instruction:\nSay {WILD}", "before": "no (cut at 64 tokens)",
             "after": WILD, "reference": WILD},
            {"prompt": "An earlier version has no `asked`.", "before": "same", "after": "same", "reference": "other"},
        ],
        "versions": {"torch": "2.13.0", "lm_eval": "0.4.13"},
        "commit": "abc",
        "data": {"rows": 100, "kept": 90, "dropped": {"too_long": 10}, "truncated": 0, "tokens": 5000,
                 "trained_tokens": 700, "special_text": 1, "padding_share": 0.1,
                 "sources": {WILD: {"rows": 50, "of_rows": 60, "tokens": 2500},
                             "b": {"rows": 40, "of_rows": 40, "tokens": 9}}},
        "forecast": {"peak_bytes": 2**30, "seconds": 60.0},
        "run": {"processes": 2, "global_batch": 8, "repeated": {"steps": 3, "seconds": 2.0, "trained_tokens": 70},
                "parts": [part, {**part, "from_step": 57, "to_step": 100, "how": "finished", "changes": []}]},
        "measured": {"peak_bytes": 2**30, "seconds": 75.5, "tokens_per_second": 900.0,
                     "trained_tokens_per_second": 120.0, "trained_tokens": 9000, "data_wait_share": 0.01,
                     "seconds_to_first_step": 9.0,
                     "evaluation_seconds": 7.0, "evaluation_share": 0.09, "skipped_steps": 2},
        "train": {"steps": 100, "loss": loss, "loss_name": "cross-entropy", "parts": {},
                  "evaluations": [[step, 7.0 * 0.97**step] for step in range(0, 101, 20)],
                  "trainable_parameters": 1000, "all_parameters": 100_000,
                  "parameters": [{"kind": "attention", "parameters": 100, "trained": 10, "bits": [4, 32], "bytes": 999,
                                  "gradient": "all tensors"}],
                  "saved": {"bytes": 100, "difference": ""}},
        "eval": {"loss": 0.33, "loss_name": "cross-entropy, nats a token", "perplexity": 1.39, "curve_rows": 40,
                 "held_out_rows": 300},
        "scores": {
            "before": {row["task"]: {row["metric"]: row["before"]} for row in tests},
            "after": {row["task"]: {row["metric"]: row["after"]} for row in tests},
            "comparison": {row["task"]: {row["metric"]: {key: row[key] for key in ("before", "after", "items")}}
                           for row in tests},
            "tests": tests,
            "forgetting": {"verdict": "regressed", "tasks": lost, "words": "regressed: ...", "meaning": "A margin."},
        },
    }  # fmt: skip


def extra():
    return {"by_skill": {"columns": ["pocket_seen"], "rows": {WILD: ["3 of 4"]}}, "command": f"lm_eval {WILD}",
            "train_command": "python recipes/lora_alpaca.py", "loss_before": 7.0}  # fmt: skip


def log(folder):
    """log.jsonl with all that pages draw."""
    lines = [
        {"step": step, "loss": 7.0 - step / 20, "learning_rate": 2e-3 * (1 - step / 100), "grad_norm": 1 + step % 7,
         "trained_tokens_per_second": 100 + step, "memory_bytes": 2**30 + step, "rewards/chosen": step / 50,
         "rewards/rejected": -step / 50, "rewards/margins": step / 25, "rewards/accuracies": 0.5 + step / 200,
         "mean_token_accuracy": step / 100}
        for step in range(1, 101)
    ]  # fmt: skip
    lines += [{"step": step, "eval_loss": 7.0 - step / 20, "eval_mean_token_accuracy": step / 100} for step in (0, 50)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"cut o', encoding="utf-8")


def run_page(folder):
    folder.mkdir(parents=True, exist_ok=True)
    log(folder)
    (folder / "report.html").write_text(run._page(report(), [["a ", False], [WILD, True]], extra(), folder))
    return folder / "report.html"


def distilled_page(folder):
    """Of a distillation without suites, whose log is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    found = report("distill_alpaca")
    nothing = {"before": {}, "after": {}, "comparison": {}, "tests": [], "forgetting": {}}
    parts = {"divergence": [[1, 3.0], [2, 2.0]], "cross_entropy": [[1, 6.0], [2, 5.0]]}
    found |= {"scores": nothing, "distillation": {
        "teacher": WILD, "alpha": 0.5, "temperature": 2.0, "beta": 0.0, "loss": "0.5·T²·KL + 0.5·cross-entropy",
        "divergence": "KL(teacher‖student)", "held_out_loss": 0.2}}  # fmt: skip
    found["train"]["parts"] = parts
    more = extra() | {"by_skill": {"columns": [], "rows": {}}, "command": None}
    (folder / "report.html").write_text(run._page(found, [], more, folder), encoding="utf-8")
    return folder / "report.html"


def table_page(folder):
    names = ["sft_alpaca", "lora_alpaca", f"mine {WILD}"]
    reports = [report(name, seed) for seed, name in enumerate(names)]
    found = [methods_table.row(name, name, one, "./it/report.html") for name, one in zip(names, reports, strict=True)]
    models = {
        name: {"value": 0.9 - place / 10, "low": place and -0.2, "high": place and 0.1 - place / 10, "p_holm": 0.2,
               "verdict": ("best", "not distinguishable", "worse")[place]}
        for place, name in enumerate(names)
    }  # fmt: skip
    against = {"pocket_seen": {"metric": "exact_match", "share": True, "higher": True, "items": 200, "models": models}}
    curves = {name: one["train"]["evaluations"] for name, one in zip(names, reports, strict=True)}
    page = methods_table.page(found, curves, ["a note"], {"flags": WILD}, against)
    (folder / "table.html").write_text(page, encoding="utf-8")
    return folder / "table.html"


def compare_page(folder):
    side = {"folder": f"/a/long/path/of/scores/{WILD}", "model": None, "dtype": "torch.float32", "chat_template": False,
            "lm_eval": "0.4.13"}  # fmt: skip
    item = {"task": "pocket_seen", "item": 1, "prompt": WILD, "target": "x", "before": WILD, "after": "x",
            "before_value": 0.0, "after_value": 1.0}  # fmt: skip
    tests = rows()
    found = {"before": side, "after": side, "level": 0.95, "alpha": 0.05, "notes": [WILD],
             "rows": [*tests, {**copy.deepcopy(tests[0]), "headline": False, "p": None, "p_holm": None}],
             "items": {"pocket_seen": {"lost": [], "won": [item]}}}  # fmt: skip
    (folder / "compared.html").write_text(comparison_page.page(found), encoding="utf-8")
    return folder / "compared.html"


def judge_page(folder):
    names = {}
    for name, good in {"base": 3, "tuned": 2}.items():
        made = [{"instruction": f"Question {n}? {WILD}", "output": ("good " if n % good else "poor ") * (n + 1),
                 "generator": name, "dataset": "ab"[n % 2]} for n in range(24)]  # fmt: skip
        names[name] = folder / f"{name}.json"
        names[name].write_text(json.dumps(made), encoding="utf-8")
    server = Server()
    words = ["judge", *map(str, names.values()), "--judge", server.url, "--judge_name", "rules", "--output_dir"]
    try:
        commands.main([*words, str(folder / "judge")])
    finally:
        server.close()
    return folder / "judge" / "judge.html"


def inspect_page(folder):
    made = [{"instruction": f"Say word {n % 9} {WILD}", "input": "", "output": "word " * (n % 12), "row": n,
             "source": "a.json"} for n in range(1, 60)]  # fmt: skip
    tokenizer, _ = tokenization.load("pocket")
    found, _ = dataset.look(made, tokenizer, templates.get("alpaca"), 200, packed=True)
    words = {"data": "a.json", "tokenizer": "pocket", "template": "alpaca", "too_long": "drop", "warnings": ["odd"],
             "overlaps": [{"row": "1", "item": WILD, "words": "a b"}]}  # fmt: skip
    (folder / "inspect.html").write_text(dataset.page({**words, **found}), encoding="utf-8")
    return folder / "inspect.html"


def runs_folder(folder, count=3):
    """A folder of finished runs, a stopped, a running and a killed one, a damaged and a foreign one."""
    for number in range(count):
        place = folder / f"run {number}#"
        place.mkdir(parents=True)
        one = report(seed=number, lora_r=4 * number)
        (place / "report.json").write_text(json.dumps(one), encoding="utf-8")
        (place / "report.html").write_text("page", encoding="utf-8")
    identity = {"id": "x", "recipe": {"name": "lora_alpaca", "sha256": ""}, "args": {"model": WILD, "dataset": ["b"]},
                "parts": [{"begun": "2026-01-02T10:00:00+00:00", "from_step": 0}]}  # fmt: skip
    for name in ("deep/stopped", "killed", "running"):
        place = folder / name
        place.mkdir(parents=True)
        log(place)
        (place / "run.json").write_text(json.dumps(identity), encoding="utf-8")
        progress = {"ended": "2026-01-02T11:00:00+00:00", "to_step": 40, "seconds": 9.0, "trained_tokens": 900,
                    "peak_bytes": 2**30}  # fmt: skip
        (place / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    for name, text in {"damaged": '{"recipe": ', "foreign": '{"hello": 1}'}.items():
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(text, encoding="utf-8")
    return folder


def runs_page(folder):
    found, left_out = runs.collect(runs_folder(folder / "runs"))
    (folder / "runs.html").write_text(runs_view.page(folder / "runs", found, left_out, folder), encoding="utf-8")
    return folder / "runs.html"


def every(folder):
    """Name -> file of every page."""
    return {
        "run": run_page(folder / "run"),
        "distilled": distilled_page(folder / "distilled"),
        **{make.__name__.removesuffix("_page"): make(folder)
           for make in (table_page, compare_page, judge_page, inspect_page, runs_page)},
    }  # fmt: skip
