"""tunebook new: what it finds, what it proposes, and that what it writes trains."""

import ast
import json
import types

import forked
import pytest
from called import ROWS, call, write

from tunebook.common import catalog
from tunebook.common.commands import recipe_copy, trained
from tunebook.common.commands.new import proposal, survey
from tunebook.common.errors import CheckFailed

QUESTIONS = [row["instruction"] for row in ROWS]
CHATS = [
    {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": f"It is {number}."}]}
    for number, text in enumerate(QUESTIONS)
]
PAIRS = [{"prompt": text, "chosen": f"Gladly, {text}", "rejected": "No."} for text in QUESTIONS]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"type": "function", "function": {"name": "look", "arguments": {}}}
CALLS = [
    {
        "messages": [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "", "tool_calls": [ASKED]},
            {"role": "tool", "content": "seen"},
            {"role": "assistant", "content": "It is there."},
        ],
        "tools": [TOOL],
    }
    for text in QUESTIONS
]


def csv(path, columns, rows):
    path.write_text("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in [columns, *rows]))
    return path


def new(tmp_path, *words):
    """(exit code, the recipe's default arguments, what was found and proposed); None for what was not written."""
    output, report = tmp_path / "mine.py", tmp_path / "mine.json"
    code = call("new", *words, "--model", "pocket", "--output", output, "--json", report)
    args = catalog.load(output).Args() if output.exists() else None
    return code, args, json.loads(report.read_text()) if report.exists() else None


def test_questions_and_answers_in_a_table(tmp_path, capsys):
    data = csv(tmp_path / "tickets.csv", ["id", "question", "answer"],
               [[n, text, f"Answer {n}"] for n, text in enumerate(QUESTIONS)])  # fmt: skip
    code, args, report = new(tmp_path, data, "--no-plan")
    assert code == 0 and report["proposed"]["recipe"] == "lora_alpaca" and report["found"]["kind"] == "pair"
    assert (args.model, args.dataset, args.output_dir) == ("pocket", [str(data)], "runs/mine")
    assert (args.learning_rate, args.num_train_epochs, args.max_length) == (2e-3, 5, 128)
    assert args.per_device_train_batch_size == 4 and args.bad_rows == "refuse"
    out = capsys.readouterr().out
    assert "prompt=question, completion=answer; not used: id" in out
    assert f"tunebook inspect {data} --tokenizer pocket --recipe {tmp_path / 'mine.py'}" in out
    assert f"python {tmp_path / 'mine.py'}" in out and "tunebook chat --adapter runs/mine" in out
    text = (tmp_path / "mine.py").read_text()
    assert "144 questions and answers" in ast.get_docstring(ast.parse(text)) and "Measured" not in text
    assert "# the usual rate of LoRA below 50 M parameters" in text


@pytest.mark.parametrize("rows, recipe, template", [
    (ROWS, "lora_alpaca", "alpaca"),
    (CHATS, "chat_sharegpt", "tokenizer"),
    (CALLS, "chat_sharegpt", "chatml"),
])  # fmt: skip
def test_recipe_and_template_follow_the_rows(tmp_path, rows, recipe, template):
    data = write(tmp_path / "d.jsonl", rows)
    code, _, report = new(tmp_path, data, "--no-plan")
    assert code == 0 and report["proposed"]["recipe"] == recipe and report["proposed"]["template"]["value"] == template
    assert trained.by(str(tmp_path / "mine.py")).template == template
    assert call("inspect", data, "--recipe", tmp_path / "mine.py") == 0  # the first command that is printed


def test_preference_pairs_make_a_dpo_run(tmp_path, capsys):
    code, args, report = new(tmp_path, write(tmp_path / "d.jsonl", PAIRS), "--no-plan")
    assert code == 0 and report["proposed"]["recipe"] == "dpo_pairs" and args.template == "alpaca"
    assert args.learning_rate == 1e-4 and "--adapter" in capsys.readouterr().out


def test_pairs_beside_an_answer_are_pairs_unless_columns_are_named(tmp_path):
    data = write(tmp_path / "d.jsonl", [{**row, "chosen": "a b c", "rejected": "d"} for row in ROWS])
    assert new(tmp_path, data, "--no-plan")[2]["found"]["kind"] == "preference"
    (tmp_path / "mine.py").unlink()
    code, _, report = new(tmp_path, data, "instruction=instruction", "output=output", "--no-plan")
    assert code == 0 and report["found"]["kind"] == "instruction"


def test_wrong_rows_are_dropped_where_they_are_few(tmp_path, capsys):
    odd = [*CHATS[:40], {"conversations": [{"from": "human", "value": "alone"}]}]
    code, args, report = new(tmp_path, write(tmp_path / "d.jsonl", odd), "--no-plan")
    assert code == 0 and args.bad_rows == "drop" and report["found"]["lost_rows"] == 1
    assert "--bad_rows drop" in capsys.readouterr().out
    assert report["found"]["statistics"]["rows"] == 40


def test_a_model_that_takes_fewer_tokens_bounds_the_length(tmp_path, capsys):
    long = [{**row, "output": row["output"] * 200} for row in ROWS[:20]]
    code, args, _ = new(tmp_path, write(tmp_path / "d.jsonl", [*ROWS[20:], *long]), "--no-plan")
    assert code == 0 and args.max_length == 512
    assert "the model takes no more" in capsys.readouterr().out.replace("\n", " ").replace("  ", "")


REFUSED = [
    ("d.jsonl", [{"text": "Once upon a time."}] * 20, 2, "data for pretraining"),
    ("d.txt", [{"text": "Once upon a time."}], 2, "plain text has no prompt and answer"),
    ("d.jsonl", [{**row, "images": ["a.png"]} for row in ROWS], 2, "what a text model does not see"),
    ("d.jsonl", [{**row, "output": None} for row in ROWS], 2, "is null"),
    ("d.jsonl", [{"Frage": "a", "Antwort": "b"}] * 20, 2, "instruction=COLUMN output=COLUMN"),
    (
        "d.jsonl",
        [*ROWS[:20], *({**row, "output": None} for row in ROWS[:25])],
        2,
        "--bad_rows drop leaves such rows out",
    ),
    ("d.jsonl", [], 2, "no rows"),
    ("d.jsonl", ROWS[:3], 1, "3 rows; to train and to hold some out takes 10"),
    ("d.jsonl", [{**row, "output": ""} for row in ROWS], 1, "nothing"),
]


@pytest.mark.parametrize("name, rows, code, says", REFUSED, ids=[one[3] for one in REFUSED])
def test_what_cannot_be_trained_on_is_refused_with_the_remedy(tmp_path, capsys, name, rows, code, says):
    data = write(tmp_path / name, rows)
    assert new(tmp_path, data, "--no-plan")[0] == code
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said and not (tmp_path / "mine.py").exists()


def test_mistakes(tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "d.jsonl", ROWS[:20])
    (tmp_path / "there.py").write_text("mine")
    for words, says in [
        ([], "name a file, a folder"),
        ([data, "--output", "x.txt"], "does not end in .py"),
        ([data, "--output", tmp_path / "there.py"], "is left as it is"),
        ([data, "--gpu", "many"], "expected the memory of the GPU"),
        ([data, "--model", "nowhere"], "no such folder"),
    ]:
        assert call("new", *words, "--no-plan") == 2 and says in capsys.readouterr().err
    assert (tmp_path / "there.py").read_text() == "mine"
    monkeypatch.chdir(tmp_path)
    assert call("new", data, "--no-plan", "--model", "pocket") == 0 and (tmp_path / "train_d.py").exists()


def chosen(tmp_path, kind="pair"):
    rows = PAIRS if kind == "preference" else ROWS
    found = survey.look([str(write(tmp_path / "d.jsonl", rows))], "pocket")
    return found, proposal.propose(found, "16 GB", tmp_path / "x.py")


def table(lora=(0, 0), qlora=(0, 0)):
    """A plan whose ways fit so many rows, with activations kept and recomputed."""
    ways = [
        {"method": name, "checkpointing": again, "own": name == "LoRA" and not again, "rows": rows[again],
         "peak_bytes": 2**33, "fits": rows[again] > 0}
        for name, rows in (("LoRA", lora), ("QLoRA", qlora)) for again in (False, True)
    ]  # fmt: skip
    plan = {"method": "LoRA", "device": "a GPU of 16 GiB", "gpu": True, "limit_bytes": 2**34, "joined": 1}
    return {**plan, "longest": {"width": 512}, "table": ways}


@pytest.mark.parametrize("ways, recipe, batch, accumulation, recomputed", [
    ({"lora": (100, 200)}, "lora_alpaca", 4, 1, False),
    ({"lora": (3, 9)}, "lora_alpaca", 2, 2, False),
    ({"lora": (0, 2)}, "lora_alpaca", 1, 4, True),
    ({"qlora": (5, 9)}, "qlora_alpaca", 4, 1, False),
    ({"qlora": (0, 1)}, "qlora_alpaca", 1, 4, True),
])  # fmt: skip
def test_the_way_that_fits(tmp_path, monkeypatch, ways, recipe, batch, accumulation, recomputed):
    found, what = chosen(tmp_path)
    monkeypatch.setattr("tunebook.common.estimate.planning.plan", lambda *_: table(**ways))
    proposal.fit(found, what, "16 GB")
    sizes = [what.choices[f"{name}"].value for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    assert what.recipe == recipe and sizes == [batch, accumulation]
    assert ("set" in what.choices) == recomputed


def test_what_does_not_fit_is_no_recipe(tmp_path, monkeypatch):
    found, what = chosen(tmp_path)
    monkeypatch.setattr("tunebook.common.estimate.planning.plan", lambda *_: table())
    with pytest.raises(CheckFailed, match=r"nothing fits into a GPU of 16 GiB.*smaller --model"):
        proposal.fit(found, what, "16 GB")


def test_pairs_that_fit_in_four_bits_alone(tmp_path, monkeypatch):
    found, what = chosen(tmp_path, "preference")
    monkeypatch.setattr("tunebook.common.estimate.planning.plan", lambda *_: table(qlora=(9, 9)))
    proposal.fit(found, what, "16 GB")
    assert what.recipe == "dpo_pairs" and what.choices["load_in_4bit"].value is True


@pytest.mark.parametrize("name", ["lora_alpaca", "qlora_alpaca", "chat_sharegpt"])
def test_a_template_is_written_into_the_text(name):
    text = catalog.recipes()[name].read_text()
    for template in ("chatml", "tokenizer"):
        tree = ast.parse(recipe_copy.with_template(text, template))
        (call_,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
                    and ast.unparse(node.func) == "templates.get"]  # fmt: skip
        assert [ast.unparse(one) for one in call_.args] == [repr(template), "tokenizer"]


def test_values_are_written_where_they_stand_and_others_are_added():
    from tunebook.common.run import TrainerOptions

    text = catalog.recipes()["lora_alpaca"].read_text()
    values = {"lora_r": (8, ""), "dataset": (["a b.csv"], "mine"), "set": (["x=1"], "why"), "seed": (3, "")}
    new_text = recipe_copy.with_values(text, values, TrainerOptions)
    module = types.ModuleType("made")
    exec(compile(new_text.partition("def main")[0], "made", "exec"), vars(module))
    args = module.Args()
    assert (args.lora_r, args.dataset, args.set, args.seed) == (8, ["a b.csv"], ["x=1"], 3)
    assert "lora_r: int = 8  # rank of the adapters" in new_text and "# mine" in new_text
    assert recipe_copy.by_size(text) == {"rate": (2e-3, 2e-4), "epochs": (5, 3)}


def test_a_value_over_several_lines_is_replaced_whole():
    from tunebook.common.run import TrainerOptions

    text = "class Args:\n    a: list[str] = field(\n        default_factory=list\n    )\n    b: int = 1\n"
    found = recipe_copy.with_values(text, {"a": (["x"], "why")}, TrainerOptions)
    assert found == 'class Args:\n    a: list[str] = field(default_factory=lambda: ["x"])  # why\n    b: int = 1\n'


@pytest.mark.recipe
@pytest.mark.parametrize("rows, words", [
    (CHATS, ("--gpu", "16 GB")),
    (CALLS, ("--no-plan",)),
    pytest.param(PAIRS, ("--no-plan",), marks=pytest.mark.slow),
], ids=["chats", "calls", "pairs"])  # fmt: skip
def test_the_recipe_trains(tmp_path, rows, words):
    write(tmp_path / "d.jsonl", rows)
    code = "from tunebook.common.commands import main; main()"
    done = forked.run("-c", code, "new", "d.jsonl", "--model", "pocket", "--output", "r.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--gpu" not in words or "a GPU of 16 GiB" in done.stdout.replace("\n", " ")
    ran = forked.run("r.py", "--max_steps", "2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    report = json.loads((tmp_path / "runs" / "r" / "report.json").read_text())
    assert report["train"]["steps"] == 2 and report["args"]["learning_rate"] in (2e-3, 1e-4)


def test_a_file_whose_name_has_quotes_is_written_into_the_recipe_as_it_is(tmp_path):
    data = csv(tmp_path / """it's "mine".csv""", ["question", "answer"],
               [[text, f"Answer {n}"] for n, text in enumerate(QUESTIONS)])  # fmt: skip
    code, args, _ = new(tmp_path, data, "--no-plan")
    assert code == 0 and args.dataset == [str(data)]
