"""Suites, the tasks behind their names, what is found before scoring, and a user's own rows as items."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from benchmark_files import ROWS, arc, encoder
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, lengths, templates
from tunebook.evals import sandbox
from tunebook.evals.harness import catalog, heldout, preflight, scoring, suites

TOKENIZER = AutoTokenizer.from_pretrained(FOLDER / "model", padding_side="left")
TASKS = Path(catalog.TASKS)


def utils(folder: str):
    spec = importlib.util.spec_from_file_location(f"{folder}_utils", TASKS / folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_of_suites_and_tasks():
    assert suites.tasks_of("code", [], False) == (["humaneval_contained"], False)
    assert suites.tasks_of("code", [], True) == (["humaneval_contained_chat"], True)
    assert suites.tasks_of("chat", [], False)[1]
    assert suites.tasks_of("", ["a,b", "c", "a"], False) == (["a", "b", "c"], False)
    for suite, tasks, says in (("", [], "one of"), ("quick", ["a"], "one of"), ("quik", [], "nearest is quick")):
        with pytest.raises(UserError, match=says):
            suites.tasks_of(suite, tasks, False)
    assert all(name in suites.described() for name in suites.SUITES)


@pytest.mark.parametrize(
    ("suite", "leaves"), [("quick", 7), ("core", 57 + 1 + 3 + 1 + 27), ("code", 1), ("chat", 4 + 27), ("safety", 6)]
)
def test_every_task_of_a_suite_is_found_without_reading_all_of_them(suite, leaves, capsys):
    found = catalog.Benchmarks(list(suites.SUITES[suite].tasks))
    assert len(found.leaves) == leaves
    assert len(found.manager.all_tasks) < 1200  # lm-eval has more than ten times as many
    assert "looking through" not in capsys.readouterr().out
    for name in suites.SUITES[suite].tasks:
        assert found.summary(_leaves(found, name)).startswith(name)


def _leaves(found, name):
    return catalog._leaves(found.manager, [name])


def test_many_tasks_are_named_in_few_words():
    found = catalog.Benchmarks(["bbh", "mmlu_anatomy", "truthfulqa_mc1"])
    assert found.summary(found.leaves) == "bbh (27 tasks), mmlu_anatomy, truthfulqa_mc1"
    some = [name for name in found.leaves if name.startswith("bbh")][:10]
    assert found.summary(some) == ", ".join(some[:8]) + " and 2 more"
    assert found.in_groups() == {name for name in found.leaves if name.startswith("bbh")}


def test_an_unknown_task_is_told_with_the_nearest(monkeypatch):
    monkeypatch.setattr(catalog, "_folders", lambda names: [])  # not all of lm-eval's: that takes seconds
    manager = SimpleNamespace(task_index={}, all_tasks=["gsm8k", "mmlu"])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: manager)
    with pytest.raises(UserError, match="gsm9k; the nearest is gsm8k"):
        catalog.Benchmarks(["gsm9k"])


def test_data_comes_from_the_folder_and_what_is_not_there_is_told(tmp_path):
    folder = arc(tmp_path)
    found = catalog.Benchmarks(["arc_challenge", "arc_easy", "gsm8k", "bbh", "pocket_facts"])
    problems = preflight.problems(found, folder, TOKENIZER, 4096, False, False, 0)
    assert sorted(line.split(":")[0] for line in problems) == ["arc_easy", "bbh (27 tasks)", "gsm8k"]
    assert "no configuration ARC-Easy" in " ".join(problems) and "no folder openai/gsm8k/" in " ".join(problems)
    found = catalog.Benchmarks(["arc_challenge"])
    assert preflight.problems(found, folder, TOKENIZER, 512, False, False, 0) == []
    (task,), problems = found.build(folder)
    assert problems == [] and len(task.eval_docs) == 3
    (note,) = preflight.incomplete([task])
    assert "3 of the 1172 items" in note


def test_damaged_data_is_told_not_thrown(tmp_path):
    folder = arc(tmp_path)
    (folder / "allenai/ai2_arc/rows.jsonl").write_text("{")
    tasks, problems = catalog.Benchmarks(["arc_challenge"]).build(folder)
    assert tasks == [] and len(problems) == 1 and problems[0].startswith("arc_challenge cannot be loaded: ")


def test_what_would_spoil_hours_is_told_before(monkeypatch):
    found = catalog.Benchmarks(["humaneval_contained", "humaneval", "ifeval", "pocket_seen"])

    def problems(positions=4096, chat=False, allow=False, answer=0):
        tokenizer = SimpleNamespace(chat_template=None)
        return "\n".join(preflight.problems(found, None, tokenizer, positions, chat, allow, answer))

    monkeypatch.setattr("nltk.data.find", lambda _: 1)
    assert "\nhumaneval_contained: runs the model's programs" in problems() and "--allow_code" in problems()
    assert problems().startswith("humaneval: lm-eval would run") and "humaneval: lm-eval" in problems(allow=True)
    assert "humaneval_contained:" not in problems(allow=True)
    assert "no chat template" in problems(chat=True) and "chat template" not in problems()
    assert "1280 tokens, and the model takes 512" in problems(positions=512)
    assert "--max_gen_toks 128" in problems(positions=512)
    assert "the model takes" not in problems(positions=512, answer=128)
    assert "punkt_tab" not in problems()

    def missing(_):
        raise LookupError

    monkeypatch.setattr("nltk.data.find", missing)
    assert "ifeval: it needs NLTK's punkt_tab" in problems()
    monkeypatch.setattr(preflight, "IFEVAL", ("nltk", "no_such_package"))
    assert "ifeval: pip install no_such_package" in problems()

    def refuse():
        raise UserError("cannot be contained")

    monkeypatch.setattr(sandbox, "check", refuse)
    assert "humaneval_contained: cannot be contained" in problems(allow=True)


def test_prompts_that_do_not_fit_are_counted(tmp_path):
    (task,), _ = catalog.Benchmarks(["arc_challenge"]).build(arc(tmp_path, 12))
    found = catalog.Benchmarks(["arc_challenge"])
    lengths = [len(TOKENIZER(f"Question: Which is number {n}?\nAnswer: the second").input_ids) for n in range(12)]
    assert preflight.cut(found, [task], TOKENIZER, max(lengths) - 1, False, None, 0) == []  # one more token fits
    (note,) = preflight.cut(found, [task], TOKENIZER, min(lengths) - 2, False, None, 0)
    assert "all of arc_challenge" in note
    task.eval_docs[0]  # built once more by lm-eval itself, with the same prompts
    shorter = arc(tmp_path / "other", 12)
    rows = [json.loads(line) for line in (shorter / "allenai/ai2_arc/rows.jsonl").read_text().splitlines()]
    rows[1]["question"] *= 9
    (shorter / "allenai/ai2_arc/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,), _ = found.build(shorter)
    (note,) = preflight.cut(found, [task], TOKENIZER, max(lengths) + 4, False, None, 0)
    assert "1 of 8 of arc_challenge" in note


@pytest.mark.parametrize("name", ["alpaca", "chatml"])
def test_items_are_the_tokens_that_train(name):
    template = templates.get(name, TOKENIZER)
    items = heldout.items(ROWS, TOKENIZER, template)
    encoded, _ = encoding.encode(ROWS, TOKENIZER, template, 4096)
    for item, labels in zip(items, encoded["labels"], strict=True):
        assert item["as_trained"] == 1.0 and item["tokens"] == sum(label != lengths.IGNORE_INDEX for label in labels)
        end = [label for label in labels if label != lengths.IGNORE_INDEX][-1]
        assert item["context"] + item["scored"][0] == item["prompt"] + item["answer"] + TOKENIZER.decode([end])
        assert [item["context"] + lead for lead in item["scored"][1:]] in ([], [item["prompt"]])


def test_a_row_of_other_tokens_than_in_training_says_so():
    rows = [
        {"instruction": "Say it.", "input": "", "output": "it <|endoftext|> is"},
        {"instruction": "A", "output": "b"},
    ]
    items = heldout.items(rows, TOKENIZER, templates.ALPACA)
    assert [item["as_trained"] for item in items] == [0.0, 1.0]
    (joined,) = heldout.items([{"instruction": "Name a fru", "output": "it"}], TOKENIZER, templates.TEXT["plain"])
    assert joined["as_trained"] == 1.0 and joined["context"] == "Name a"  # a token spans prompt and answer


def test_the_loss_is_that_of_training(tmp_path):
    """The task through lm-eval against the labels of training in plain transformers."""
    from tunebook.evals import harness

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    metadata = {"dataset": [str(data)], "template": "alpaca", "tokenizer": str(FOLDER / "model")}
    tasks, problems = catalog.Benchmarks(["heldout"], metadata).build(None)
    assert problems == []
    torch.manual_seed(0)  # pocket itself is so sure of the line break before an answer that counting it changes nothing
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER / "model"), dtype=torch.float32).eval()
    stops = heldout.stops(TOKENIZER, templates.ALPACA) | {"max_gen_toks": 16}
    found = harness.score(model, TOKENIZER, tasks, tmp_path / "eval", settings=harness.Settings(gen_kwargs=stops))
    total = weight = size = 0
    encoded, _ = encoding.encode(ROWS, TOKENIZER, templates.ALPACA, 4096)
    for row in encoded:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            trained = int((labels != lengths.IGNORE_INDEX).sum())
            total += float(model(ids, labels=labels).loss) * trained
            weight += trained
    size = sum(len(row["output"].encode()) for row in ROWS)
    scores = found["metrics"]["heldout_loss"]
    assert scores["loss"] == pytest.approx(total / weight, rel=1e-5)
    assert list(scores) == ["loss", "bits_per_byte_of_answer", "tokens_as_in_training"]
    assert scores["bits_per_byte_of_answer"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert scores["tokens_as_in_training"] == 1.0
    assert found["counts"]["heldout_loss"] == {"items": len(ROWS), "of": len(ROWS), "cut": 0}


def test_likeness_is_sacrebleus_and_googles():
    import sacrebleu
    from rouge_score import rouge_scorer

    functions = utils("heldout")
    pairs = [("The cat sat on the mat.", "the cat sat on a mat"), ("It's 42, no?", "42 it's"), ("a b c d", "a b c d")]
    found = [functions.likeness({"answer": reference}, [answer]) for reference, answer in pairs]
    theirs = rouge_scorer.RougeScorer(["rougeL"])
    for (reference, answer), values in zip(pairs, found, strict=True):
        assert values["rougeL"] == theirs.score(reference, answer)["rougeL"].fmeasure
        assert values["exact_match"] == float(reference == answer)
    references, answers = zip(*pairs, strict=True)
    expected = sacrebleu.corpus_bleu(list(answers), [list(references)]).score
    assert functions.bleu([values["bleu"] for values in found]) == expected
    assert functions.likeness({"answer": "Über die Brücke"}, ["über die Brücke"])["rougeL"] == 1.0


def test_which_rows_and_which_template(tmp_path, capsys):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": " "}]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["instruction"] for row in heldout.read((str(tmp_path),))] == ["a"]
    assert "1 of 2 rows have no answer" in capsys.readouterr().err
    (tmp_path / "test.jsonl").rename(tmp_path / "validation.jsonl")
    heldout.read.cache_clear()
    with pytest.raises(UserError, match="no test split"):
        heldout.read((str(tmp_path),))
    assert len(heldout.read(("pocket",))) == len((FOLDER / "test.jsonl").read_text().splitlines())
    assert heldout.choose("", [str(tmp_path)], TOKENIZER)[0] == "tokenizer"
    templates.ALPACA.save(tmp_path)
    assert heldout.choose("", ["", str(tmp_path)], TOKENIZER) == (str(tmp_path), "")
    assert heldout.choose("", [], SimpleNamespace(chat_template=None))[0] == "alpaca"
    with pytest.raises(UserError, match="nearest is alpaca"):
        heldout.choose("alpaka", [], TOKENIZER)


def test_metrics_of_several_filters_and_lists_are_kept():

    results = {
        "results": {
            "a": {"alias": "a", "x,none": 0.5, "x_stderr,none": 0.1, "sample_len": 2},
            "b": {"x,strict": 0.0, "x,loose": 1.0, "x_stderr,strict": "N/A", "x_stderr,loose": 0.2},
        },
        "higher_is_better": {"a": {"x": True}, "b": {"x": True}},
        "n-samples": {"a": {"effective": 2, "original": 9}, "b": {"effective": 1, "original": 1}},
    }
    samples = {
        "a": [{"doc_id": 0, "doc": {}, "metrics": ["x"], "filter": "none", "x": [True, False]}],
        "b": [
            {"doc_id": 0, "doc": {}, "metrics": ["x"], "filter": name, "x": value}
            for name, value in (("strict", 0.0), ("loose", 1.0))
        ],
    }
    found = scoring._scores(results, samples, {"a": {0}})
    assert found["metrics"] == {"a": {"x": 0.5}, "b": {"x,strict": 0.0, "x,loose": 1.0}}
    assert found["errors"] == {"a": {"x": 0.1}, "b": {"x,loose": 0.2}}
    assert found["items"]["b"][0] == {"skill": None, "x,strict": 0.0, "x,loose": 1.0}
    assert found["items"]["a"][0]["x"] == [True, False]
    assert found["counts"]["a"] == {"items": 2, "of": 9, "cut": 1}


def test_items_reach_lm_eval_as_a_data_set(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"question": "a", "reply": "b"}) + "\n")
    words = [str(data), "instruction=question", "output=reply"]
    found = utils("heldout").load(dataset=words, template="plain", tokenizer="pocket", version=1.0)
    assert isinstance(found["test"], datasets.Dataset) and found["test"][0]["answer"] == "b"
    with pytest.raises(UserError, match="--metadata"):
        utils("heldout").load(version=1.0)


def test_bertscore_is_the_papers(tmp_path):
    """Against loops over the definition. By hand: within 2e-7 of bert-score 0.3.13 on such an encoder, two layers."""
    from transformers import AutoModel

    from tunebook.evals.harness.bertscore import BertScore

    folder = encoder(tmp_path)
    reference, answer = "a cat sat on a mat.", "the cat is on it"
    model = AutoModel.from_pretrained(folder).eval()
    for layer in (2, 3):
        found = BertScore(folder, layer)
        rows = []
        for text in (reference, answer):
            ids = found.tokenizer(text).input_ids
            with torch.no_grad():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].numpy()
            rows.append([state / (state**2).sum() ** 0.5 for state in states])
        wanted, said = rows
        precision = [max(float(one @ other) for other in wanted) for one in said[1:-1]]
        recall = [max(float(one @ other) for other in said) for one in wanted[1:-1]]
        p, r = sum(precision) / len(precision), sum(recall) / len(recall)
        assert found.score(reference, answer) == pytest.approx(2 * p * r / (p + r), abs=1e-6)
        assert found.score(reference, reference) == pytest.approx(1.0, abs=1e-6)
    assert found.score(reference, " ") == 0.0 and 0 < found.score(reference, "z" * 500) < 1
    with pytest.raises(UserError, match="has 3 layers"):
        BertScore(folder, 4)
    with pytest.raises(UserError, match="cannot be loaded"):
        BertScore(str(tmp_path / "nothing"))


def test_answers_have_a_bertscore_where_an_encoder_is_named(tmp_path):
    folder = encoder(tmp_path / "encoder")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "a", "output": "a cat"}) + "\n")
    functions = utils("heldout")
    for words, there in (({}, False), ({"bert_model": folder, "bert_layer": 2}, True)):
        docs = functions.load(dataset=[str(data)], template="alpaca", tokenizer="pocket", **words)["test"]
        assert ("bertscore" in functions.likeness(docs[0], ["a cat"])) == there
    assert functions.likeness(docs[0], ["a cat"])["bertscore"] == pytest.approx(1.0, abs=1e-6)
