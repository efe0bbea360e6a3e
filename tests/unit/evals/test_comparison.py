"""`tunebook compare` on files that lm-eval itself writes, of models that answer by rule."""

import json
import math
import random
import re
import shutil
import zlib

import browser
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from tunebook.common import commands
from tunebook.common.errors import UserError
from tunebook.evals.compare import aggregates, comparison
from tunebook.evals.compare import page as comparison_page
from tunebook.evals.stats import paired

ITEMS = 60
COMMON = """
custom_dataset: !function utils.load
test_split: test
doc_to_text: "{{question}}"
num_fewshot: 0
metadata: {version: 1.0}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
TASKS = {
    "choice_a": CHOICE + "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n",
    "part_b": CHOICE + "process_docs: !function utils.first\n",
    "part_c": CHOICE + "process_docs: !function utils.rest\n",
    "written": """
output_type: generate_until
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
process_results: !function utils.written
metric_list:
  - {metric: overlap, aggregation: mean, higher_is_better: true}
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
  - {metric: parts, aggregation: !function utils.parts, higher_is_better: true}
  - {metric: chrf, aggregation: chrf, higher_is_better: true}
""",
    "filtered": """
output_type: generate_until
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: "(\\\\w+)$"}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
}
UTILS = """
def load(**_):
    import datasets, random
    words = "the old cat sat on a red mat near tall trees and sang".split()
    rows, chance = [], random.Random(5)
    for place in range(ITEMS):
        text = " ".join(chance.choices(words, k=chance.randint(4, 9)))
        row = {"question": f"Question {place}:", "choices": ["abc", "def", "ghi"], "answer": place % 3, "text": text}
        rows.append(row)
    return {"test": datasets.Dataset.from_list(rows)}

def first(docs):
    return docs.select(range(20))

def rest(docs):
    return docs.select(range(20, ITEMS))

def written(doc, results):
    wanted, said = doc["text"].split(), results[0].split()
    hits = [word in said for word in wanted]
    return {"overlap": sum(hits) / len(hits), "bleu": [doc["text"], results[0]], "parts": hits,
            "chrf": [doc["text"], results[0]]}

def parts(items):
    every = [hit for hits in items for hit in hits]
    return sum(every) / len(every)
"""


class ByRule(LM):
    """Knows a share of the items; which, depends on the item alone, so that the better model knows the worse one's."""

    def __init__(self, knows, tokenizer_name=""):
        super().__init__()
        self.knows, self._name = knows, tokenizer_name

    def ease(self, text):
        return zlib.crc32(text.encode()) % 1000 / 1000

    def loglikelihood(self, requests):
        found = []
        for request in requests:
            place = int(re.search(r"Question (\d+)", request.args[0])[1])
            right = ["abc", "def", "ghi"].index(request.args[1].strip()) == place % 3
            found.append((-1.0 if right == (self.ease(request.args[0]) < self.knows) else -2.0, False))
        return found

    def loglikelihood_rolling(self, requests):
        return [-len(request.args[0]) * (1 + self.ease(request.args[0]) - self.knows) for request in requests]

    def generate_until(self, requests):
        return [self._said(request) for request in requests]

    def _said(self, request):
        words = request.doc["text"].split()
        chance = random.Random(request.args[0])
        return " ".join(word if chance.random() < self.knows else "dog" for word in words)

    @property
    def tokenizer_name(self):
        return self._name

    def apply_chat_template(self, history, add_generation_prompt=True):
        return f"<{history[-1]['content']}>"

    def chat_template(self, name=False):
        return "<{{ content }}>"


@pytest.fixture(scope="module")
def score(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "utils.py").write_text(UTILS.replace("ITEMS", str(ITEMS)), encoding="utf-8")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON}{text}", encoding="utf-8")
    (folder / "both.yaml").write_text(
        "group: both\ntask: [part_b, part_c]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
        "metadata: {version: 1.0}\n", encoding="utf-8",
    )  # fmt: skip
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(knows, tasks=("choice_a", "both", "written", "filtered", "text"), limit=None, template=False):
        out = tmp_path_factory.mktemp("scores")
        tracker = EvaluationTracker(output_path=str(out))
        results = simple_evaluate(
            ByRule(knows), tasks=list(tasks), task_manager=manager, evaluation_tracker=tracker, limit=limit,
            bootstrap_iters=0, apply_chat_template=template, verbosity="ERROR",
        )  # fmt: skip
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in samples:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        return out

    return run


@pytest.fixture(scope="module")
def base(score):
    return score(0.4)


@pytest.fixture(scope="module")
def tuned(score):
    return score(0.7)


def rows_of(report):
    return {(row["task"], row["metric"]): row for row in report["rows"]}


def samples_of(folder, task):
    path = next(folder.rglob(f"samples_{task}_*.jsonl"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_metric_of_lm_eval_is_found_again_from_its_items(base, tuned):
    report = comparison.compare(base, tuned)
    rows = rows_of(report)
    results = json.loads(next(tuned.rglob("results_*.json")).read_text(encoding="utf-8"))["results"]
    for (task, metric), row in rows.items():
        name, _, kind = metric.partition(",")
        assert row["after"] == results[task][f"{name},{kind or 'none'}"]
        assert (row["test"] is None) == (metric == "chrf"), row
    tests = {key: row["test"] for key, row in rows.items() if row["test"]}
    assert tests["choice_a", "acc"] == tests["filtered", "exact_match,last"] == "exact McNemar"
    assert {tests["text", "bits_per_byte"], tests["written", "bleu"], tests["written", "parts"]} == {"paired bootstrap"}
    assert [key for key, row in rows.items() if row["headline"]] == [
        ("both", "acc"), ("choice_a", "acc_norm"), ("filtered", "exact_match,whole"), ("text", "bits_per_byte"),
        ("written", "overlap"),
    ]  # fmt: skip
    assert rows["part_b", "acc"]["part_of"] == "both" and rows["both", "acc"]["items"] == ITEMS


def test_counts_p_and_verdicts(base, tuned):
    report = comparison.compare(base, tuned)
    rows = rows_of(report)
    before = {sample["doc_id"]: sample["acc_norm"] for sample in samples_of(base, "choice_a")}
    after = {sample["doc_id"]: sample["acc_norm"] for sample in samples_of(tuned, "choice_a")}
    won = sum(after[item] > value for item, value in before.items())
    lost = sum(after[item] < value for item, value in before.items())
    row = rows["choice_a", "acc_norm"]
    assert (row["won"], row["lost"]) == (won, lost) and won > 0
    assert row["p"] == paired.mcnemar(lost, won) and (row["low"], row["high"]) == paired.score_interval(
        lost, won, ITEMS
    )
    tested = [row for row in report["rows"] if row["headline"]]
    assert [row["p_holm"] for row in tested] == paired.holm([row["p"] for row in tested])
    assert rows["text", "bits_per_byte"]["verdict"] == "better"  # lower is
    assert rows["text", "bits_per_byte"]["difference"] < 0 and rows["text", "bits_per_byte"]["won"] == ITEMS
    assert all(row["p"] is None and row["verdict"] == "" for row in report["rows"] if not row["headline"])
    back = rows_of(comparison.compare(tuned, base))
    assert back["text", "bits_per_byte"]["verdict"] == back["choice_a", "acc_norm"]["verdict"] == "worse"


def test_two_equal_models_are_not_different(score, base):
    report = comparison.compare(base, score(0.4))
    assert {row["verdict"] for row in report["rows"] if row["headline"]} == {"no difference shown"}
    assert {row["p_holm"] for row in report["rows"] if row["headline"]} == {1.0}


def test_items_side_by_side(base, tuned):
    items = comparison.compare(base, tuned)["items"]
    one = items["choice_a"]["won"][0]
    place = int(re.search(r"\d+", one["prompt"])[0])
    assert one["item"] == place and one["target"] == one["after"] == ["abc", "def", "ghi"][place % 3]
    assert one["before"] != one["target"] and (one["before_value"], one["after_value"]) == (0.0, 1.0)
    assert items["text"]["won"][0]["after"].startswith("log-likelihood -")
    assert "dog" in items["written"]["won"][0]["before"] and items["choice_a"]["lost"] == []
    assert items["both"]["won"][0]["task"] in ("part_b", "part_c")


def changed(folder, target, task, edit, results=None):
    """A copy of scores with each sample of a task, or the results, changed."""
    shutil.copytree(folder, target)
    path = next(target.rglob(f"samples_{task}_*.jsonl"))
    lines = [edit(sample) for sample in samples_of(folder, task)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line), encoding="utf-8")
    if results:
        file = next(target.rglob("results_*.json"))
        found = json.loads(file.read_text(encoding="utf-8"))
        results(found)
        file.write_text(json.dumps(found), encoding="utf-8")
    return target


def version(results):
    results["versions"]["text"] = 2.0


def dtype(results):
    results["config"]["model_dtype"] = "torch.bfloat16"


@pytest.mark.parametrize(
    ("edit", "results", "says"),
    [
        (lambda s: s if s["doc_id"] != 7 else None, None, r"choice_a: item 7 with doc_hash .* is in \S*base\S* alone"),
        (
            lambda s: s | {"doc_hash": "0" * 64, "doc": {"question": "Another?"}} if s["doc_id"] == 7 else s,
            None,
            "item 7 with doc_hash",
        ),
        (lambda s: s | {"target_hash": "x", "target": "2"}, None, "item 0: the target is '0' before, '2' after"),
        (lambda s: s, version, "text: its version is 1.0 before and 2.0 after"),
        (
            lambda s: s | {"arguments": json.loads(json.dumps(s["arguments"]).replace("Question 9", "Q 9"))},
            None,
            "choice_a, item 9: the prompts are not the same: 'Question 9:' before, 'Q 9:' after; --any_prompt",
        ),
        (lambda s: s | {"metrics": ["acc"]}, None, r"its metrics is \['acc', 'acc_norm'\] before and \['acc'\] after"),
        (lambda s: {"doc_id": 1}, None, "line 1: this is no sample as lm-eval writes them: there is no 'doc_hash'"),
        (lambda s: s | {"doc_id": 0, "doc_hash": "x"}, None, "line 2: item 0 is there a second time"),
    ],
    ids=["missing", "other", "target", "version", "prompt", "metrics", "damaged", "twice"],
)
def test_refused(base, tuned, tmp_path, capsys, edit, results, says):
    one = tmp_path / "base"
    shutil.copytree(base, one)
    other = changed(tuned, tmp_path / "tuned", "choice_a", edit, results)
    with pytest.raises(UserError, match=says):
        comparison.compare(one, other)
    with pytest.raises(SystemExit) as end:
        commands.main(["compare", str(one), str(other)])
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_other_folders(score, base, tuned, tmp_path):
    part = score(0.7, tasks=["text"])
    with pytest.raises(UserError, match=r"choice_a is in .* alone; --tasks text compares what both have"):
        comparison.compare(base, part)
    assert {row["task"] for row in comparison.compare(base, part, ["text"])["rows"]} == {"text"}
    with pytest.raises(UserError, match=r"--tasks both: both folders have text"):
        comparison.compare(base, part, ["both"])
    with pytest.raises(UserError, match=r"no task is in both: .* has text, .* has written; .*--tasks text --log"):
        comparison.compare(part, score(0.7, tasks=["written"]))
    with pytest.raises(UserError, match="are the same scores"):
        comparison.compare(base, base)
    with pytest.raises(UserError, match=r"holds no samples_TASK_DATE.jsonl; lm_eval run writes them with --log"):
        comparison.compare(tmp_path, base)
    with pytest.raises(UserError, match="there is no folder"):
        comparison.compare(tmp_path / "none", base)
    with pytest.raises(UserError, match=r"is in \S* alone \(60 items before, 10 after\)"):
        comparison.compare(base, score(0.7, limit=10))
    for name, folder in {"before": base, "after": tuned}.items():
        shutil.copytree(folder, tmp_path / "run" / name)
    with pytest.raises(UserError, match=r"holds several sets of scores, in .*after, .*before; name one"):
        comparison.compare(tmp_path / "run", base)
    shutil.copytree(base, tmp_path / "two")
    lonely = next((tmp_path / "two").rglob("results_*.json"))
    lonely.unlink()
    with pytest.raises(UserError, match="is missing; lm-eval writes it beside samples_"):
        comparison.compare(tmp_path / "two", tuned)


def test_the_newest_of_several_days_is_taken_and_that_is_said(base, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "tuned")
    for path in list((tmp_path / "tuned").rglob("*_20*")):
        old = path.with_name(re.sub(r"_\d{4}-", "_2001-", path.name))
        shutil.copy(path, old)
        old.write_text(old.read_text().replace('"acc_norm": 1.0', '"acc_norm": 0.0'))
    report = comparison.compare(base, tmp_path / "tuned")
    assert (
        rows_of(report)["choice_a", "acc_norm"]["after"]
        == rows_of(comparison.compare(base, tuned))["choice_a", "acc_norm"]["after"]
    )
    assert any("6 older files of samples ignored" in note for note in report["notes"])


def test_with_and_without_chat_template(score, base):
    other = score(0.4, template=True, tasks=["choice_a", "filtered"])
    with pytest.raises(
        UserError, match=r"'Question 0:' before, '<Question 0:>' after \(a chat template was applied after"
    ):
        comparison.compare(base, other, ["choice_a"])
    report = comparison.compare(base, other, ["choice_a"], any_prompt=True)
    assert "the prompts are not the same in choice_a: differences are of model and prompt" in report["notes"]
    assert not report["before"]["chat_template"] and report["after"]["chat_template"]
    assert "with chat template" in comparison_page.page(report)


def test_settings_that_move_scores_are_named(base, tuned, tmp_path):
    other = changed(tuned, tmp_path / "tuned", "text", lambda sample: sample, dtype)
    notes = comparison.compare(base, other)["notes"]
    assert notes == ["the number type of the weights: None before, torch.bfloat16 after; this alone moves scores"]


def test_the_command_and_its_files(base, tuned, tmp_path, capsys):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "markdown", "json")}
    flags = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    commands.main(["compare", str(base), str(tuned), *flags, "--metrics", "written=bleu"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("choice_a"))
    assert re.fullmatch(
        r"choice_a acc_norm, 60 items: [\d.]+ % → [\d.]+ %, \+[\d.]+ points \(\+[\d.]+ to \+[\d.]+\), \d+ won, 0 lost, "
        r"p \S+( \S+)?, \S+( \S+)? after Holm: better",
        line,
    )
    report = json.loads(files["json"].read_text())
    assert rows_of(report)["written", "bleu"]["headline"] and not rows_of(report)["written", "overlap"]["headline"]
    table = re.sub(" +", " ", files["markdown"].read_text()).splitlines()
    assert len({row.count("|") for row in table[:7]}) == 1 and "| written | bleu (0 to 100) |" in table[6]
    page = files["html"].read_text()
    assert page.count('<svg class="span better"') >= 1 and not re.search(r'(src|href)="(?!#|data:)', page)
    with pytest.raises(SystemExit) as end:
        commands.main(["compare", str(base)])
    assert end.value.code == 2 and "expected two folders" in capsys.readouterr().err
    for bad, says in {
        "written=rouge": "it has overlap, bleu",
        "tent=acc": "no such task",
        "written": "TASK=METRIC",
    }.items():
        with pytest.raises(SystemExit):
            commands.main(["compare", str(base), str(tuned), "--metrics", bad])
        assert says in capsys.readouterr().err


def test_nothing_that_can_be_tested(base, tuned, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["compare", str(base), str(tuned), "--tasks", "written", "--metrics", "written=chrf"])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert "written chrf" in said.out and "not tested" in said.out and "tested item by item" in said.err


def test_a_page_says_text_as_text(base, tuned, tmp_path):
    def hostile(sample):
        return sample | {"filtered_resps": ["<script>alert(1)</script>"]}

    other = changed(tuned, tmp_path / "tuned", "written", hostile)
    page = comparison_page.page(comparison.compare(base, other))
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page


@browser.needed
def test_the_page_in_a_browser(base, tuned, tmp_path):
    (tmp_path / "page.html").write_text(comparison_page.page(comparison.compare(base, tuned)), encoding="utf-8")
    browser.look(tmp_path / "page.html")


def test_what_no_formula_gives_is_not_guessed():
    assert aggregates.find([([1.0, 0.0, 1.0], 0.9)]) is None
    found, (rows,) = aggregates.find([([-1.0, -2.0], math.exp(1.5))])
    assert found.name == "exp(-mean)" and rows.shape == (2, 1)
    assert aggregates.find([([[-3.0, 4], [-1.0, 2]], 4 / 6 / math.log(2))])[0].name == "-sum / weight / ln 2"
    assert aggregates.find([([[-3.0, 4], [-1.0, 2]], 4 / 6)])[0].name == "-sum / weight"
    assert aggregates.find([(["x", "y"], 1.0)]) is None
