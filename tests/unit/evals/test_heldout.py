"""Own rows through lm-eval: tokens, tied and resized embeddings, what a run has seen, and the base beside the tuned."""

import functools
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_files import ROWS
from lm_eval.api.instance import Instance
from peft import LoraConfig, PeftModel, get_peft_model
from scored_tokens import same_tokens, shared
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunebook.common import commands
from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, templates
from tunebook.common.tokens.templates import ALPACA
from tunebook.evals import harness
from tunebook.evals.commands import eval as command
from tunebook.evals.compare import runs
from tunebook.evals.harness import heldout, scored_model
from tunebook.evals.harness.lm import in_memory

POCKET = AutoTokenizer.from_pretrained(FOLDER / "model")
WORDS = len(POCKET)
SIZES = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=512,
)  # fmt: skip


def tiny(rows: int = WORDS, tied: bool = False):
    torch.manual_seed(0)
    settings = LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, initializer_range=0.3, **SIZES)
    return LlamaForCausalLM(settings).eval()


def with_lora(model, **more):
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False} | more
    found = get_peft_model(model, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def saved(model, folder: Path, tokenizer=POCKET) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    return str(file)


def run(folder: Path, **words) -> dict:
    return command.main(command.Args(output_dir=str(folder), max_gen_toks=4, **words))


def by_lm_eval(line: str, monkeypatch) -> Path:
    """Run a printed command by lm-eval's own command line, in this process."""
    from lm_eval import tasks
    from lm_eval.__main__ import cli_evaluate

    own = functools.partial(tasks.TaskManager, include_defaults=False)  # to index all of lm-eval's takes 20 seconds
    monkeypatch.setattr(tasks, "TaskManager", own)
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", str)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    cli_evaluate()
    return Path(shlex.split(line)[-1])


def said(folder: Path) -> dict:
    """What was answered to every item by task, in order."""
    found = {}
    for file in folder.rglob("samples_*.jsonl"):
        lines = sorted(map(json.loads, file.read_text().splitlines()), key=lambda line: line["doc_id"])
        found[file.name.rpartition("_")[0]] = [(line["resps"], line["prompt_hash"]) for line in lines]
    return found


def loss(model, rows, tokenizer=POCKET, template=ALPACA) -> float:
    """Nats a token that trains, by plain transformers in float64."""
    total = count = 0
    model = model.double()
    for row in rows:
        prompt = template.prompt(row)
        before, ids = (tokenizer(text).input_ids for text in (prompt, prompt + row["output"]))
        ids, start = torch.tensor([[*ids, tokenizer.eos_token_id]]), shared(before, ids)
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[start - 1 :]
        total, count = total - float(logs.sum()), count + len(logs)
    return total / count


@pytest.mark.parametrize("ends", [True, False])
def test_a_tokenizer_that_puts_more_around_a_text_than_training_has(ends, tmp_path, data):
    """One closes every text with its end token; for the other, the template has no beginning token and lm-eval does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    pieces = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (begin, end)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{begin} $A" + f" {end}" * ends, None, pieces)
    tokenizer.save_pretrained(tmp_path)
    jinja = tmp_path / "own.jinja"
    jinja.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}END{% endfor %}"
                     "{% if add_generation_prompt %}assistant: {% endif %}".replace("END", end))  # fmt: skip
    asked = (data,), "alpaca" if ends else str(jinja), str(tmp_path)
    assert heldout.bare(*asked)
    for row, doc in zip(ROWS[:3], heldout.docs(*asked, True), strict=True):
        question = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        prompt = begin + ALPACA.prompt(row) if ends else f"user: {question}{end}assistant: "
        before, ids = (
            tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, prompt + row["output"] + end)
        )
        assert doc["prompt"] == prompt
        same_tokens(tokenizer, doc, ids, shared(before, ids), bare=True)
    assert not heldout.bare((data,), "alpaca", str(FOLDER / "model"))


@pytest.mark.parametrize("kept", [["embed_tokens", "lm_head"], ["lm_head"], ["embed_tokens"], []])
def test_embeddings_and_head_that_an_adapter_has_trained_apart(kept, tmp_path):
    """lm-eval ties them again: it fails, or makes another model. Oracle: PEFT alone."""
    how = {"modules_to_save": kept} if kept else {"trainable_token_indices": [5]}
    model = with_lora(tiny(tied=True), **how)
    ids = torch.tensor([POCKET("A house is old.").input_ids])
    start = len(POCKET("A house").input_ids)
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    asked = [Instance("loglikelihood", {}, ("A house", " is old."), 0, ("t", 0, 1))]
    ((found, _),) = in_memory(model, POCKET, 2).loglikelihood(asked, disable_tqdm=True)
    assert found == pytest.approx(float(logs[start - 1 :].sum()), abs=1e-5)
    assert "tie_weights" not in vars(model)
    assert "trained apart" in scored_model.peft_tokenizer(model, POCKET, tmp_path)[1]


@pytest.mark.parametrize("kind", ["padded", "added", "full"])
def test_the_printed_command_gives_the_same_numbers_whatever_the_embeddings(kind, tmp_path, data, monkeypatch, capfd):
    """A padded vocabulary below an adapter; an adapter with embeddings of added tokens, padded too; no adapter."""
    monkeypatch.chdir(tmp_path)  # no git tree
    base = saved(tiny(WORDS + (0 if kind == "added" else 40)), tmp_path / "base")
    words, model = {"model": base}, AutoModelForCausalLM.from_pretrained(base)
    if kind == "padded":
        saved(with_lora(model), tmp_path / "adapter")
    elif kind == "added":
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["<one>", "<two>"], special_tokens=True)
        model.resize_token_embeddings(WORDS + 30, mean_resizing=False)
        saved(with_lora(model), tmp_path / "adapter", tokenizer)
    if kind != "full":
        words = {"adapter": str(tmp_path / "adapter")}
        model = AutoModelForCausalLM.from_pretrained(base)
        if kind == "added":
            model.resize_token_embeddings(WORDS + 30, mean_resizing=False)
        model = PeftModel.from_pretrained(model, tmp_path / "adapter")
    report = run(tmp_path / "out", dataset=[data], template="alpaca", **words)
    assert report["metrics"]["heldout_loss"]["loss"] == pytest.approx(loss(model, ROWS[:3]), rel=1e-5)
    assert report["metrics"]["heldout_loss"]["tokens_as_in_training"] == 1.0
    assert "fatal" not in capfd.readouterr().err
    theirs = by_lm_eval(report["command"], monkeypatch)
    assert said(tmp_path / "out") == said(theirs) and len(said(theirs)) == 2


def test_tokens_that_the_model_has_no_embedding_of(tmp_path, data):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    tokenizer.add_tokens(["<user>"], special_tokens=True)
    base = saved(tiny(), tmp_path / "base", tokenizer)
    saved(with_lora(tiny()), tmp_path / "adapter", tokenizer)
    words = {"model": base, "adapter": str(tmp_path / "adapter"), "dataset": [data]}
    report = run(tmp_path / "out", template="alpaca", **words)  # whose tokens the model has
    assert report["command"] is None and report["metrics"]["heldout_loss"]["tokens_as_in_training"] == 1.0
    (tmp_path / "own.jinja").write_text("{% for m in messages %}<user>{{ m.content }}{{ eos_token }}{% endfor %}")
    with pytest.raises(UserError, match=rf"item 0: .*token {WORDS} \('<user>'\).* {WORDS} embeddings"):
        run(tmp_path / "two", template=str(tmp_path / "own.jinja"), **words)


def test_an_answer_that_is_longer_than_the_model(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Say it.", "output": "a house " * 600}) + "\n")
    with pytest.raises(UserError, match=r"item 0: its answer has .* tokens and the model takes 512"):
        run(tmp_path / "out", model="pocket", dataset=[str(file)], template="alpaca")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What a run leaves: an adapter with its template, the tokens of two rows, and a report of a base in 4 bits."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    base = saved(tiny(), folder.parent / "base")
    saved(with_lora(AutoModelForCausalLM.from_pretrained(base)), folder / "adapter")
    ALPACA.save(folder / "adapter")
    _, counts = encoding.encode(ROWS[:2], POCKET, ALPACA, 512, folder=folder / "tokens")
    report = {"data": counts.as_dict(), "train": {"parameters": [{"kind": "attention", "bits": [4, 32]}]}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def scores(trained, tmp_path_factory):
    """Folders of scores of the adapter, of its base asked alike, and of its base in the template of its own choice."""
    out = tmp_path_factory.mktemp("scores")
    file = out / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    words = {"dataset": [str(file)], "adapter": str(trained)}
    reports = {
        "tuned": run(out / "tuned", **words),
        "base": run(out / "base", base=True, **words),
        "own": run(out / "own", dataset=[str(file)], model=str(trained.parent / "base"), template="chatml"),
    }
    return out, reports


def test_rows_that_the_run_was_trained_on_are_counted(scores, trained):
    _, reports = scores
    assert reports["tuned"]["trained_on"]["rows"] == 2 and reports["tuned"]["trained_on"]["of"] == 3
    assert any(note.startswith("2 of the 3 rows are among those that the model was trained on") for note in
               reports["tuned"]["notes"])  # fmt: skip
    assert reports["base"]["trained_on"] is None
    other = [{**ROWS[0], "output": ROWS[0]["output"] + "!"}]
    assert runs.seen(str(trained / "adapter"), other, POCKET)[0] == 0


def test_a_base_in_other_bits_than_in_training_is_said(scores, trained):
    _, reports = scores
    (note,) = [note for note in reports["tuned"]["notes"] if "4 bits" in note]
    assert "is scored on one in 16 or 32" in note and "--four_bit" in note
    assert runs.precision(str(trained / "adapter"), True) == ""
    assert not any("4 bits" in note for note in reports["base"]["notes"])


def test_the_base_is_asked_as_its_adapter(scores, trained):
    _, reports = scores
    base = AutoModelForCausalLM.from_pretrained(trained.parent / "base")
    assert reports["base"]["metrics"]["heldout_loss"]["loss"] == pytest.approx(loss(base, ROWS[:3]), rel=1e-5)
    assert reports["base"]["template"] == reports["tuned"]["template"] == str(trained / "adapter")
    line = reports["base"]["command"]
    assert "peft=" not in line and f"tokenizer={trained / 'adapter'}" in line
    with pytest.raises(UserError, match="--base scores the base of --adapter"):
        run(trained / "none", model="pocket", base=True, dataset=["pocket"])


def compared(*words) -> int:
    try:
        commands.main(["compare", *map(str, words)])
    except SystemExit as ended:
        return ended.code
    return 0


def test_compare_puts_loss_and_rouge_first_and_names_the_template(scores, trained, capsys):
    out, _ = scores
    assert compared(out / "base", out / "tuned") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("heldout_answers rougeL")
    assert lines[1].startswith("heldout_loss loss (nats a token, lower is better)")
    assert compared(out / "own", out / "tuned") == 2
    problem = capsys.readouterr().err
    assert f"the template is chatml before and alpaca ({trained / 'adapter'}) after" in problem
    assert f"tunebook eval --adapter {trained / 'adapter'} --base --dataset {out / 'rows.jsonl'}" in problem
    assert compared(out / "own", out / "tuned", "--any_prompt") == 0
    assert "prompts are not the same in heldout_answers, heldout_loss" in capsys.readouterr().out


def test_compare_of_runs(scores, trained, tmp_path, capsys):
    out, _ = scores
    assert compared(trained, out / "tuned") == 2
    assert f"tunebook eval --adapter {trained} --dataset MY_TEST.jsonl --output_dir" in capsys.readouterr().err
    for name in ("base", "tuned"):
        (tmp_path / name / "eval").mkdir(parents=True)
        (tmp_path / name / "report.json").write_text("{}")
        (tmp_path / name / "eval" / "after").symlink_to(out / name)
        (tmp_path / name / "eval" / "before").symlink_to(out / "base")
    assert compared(tmp_path / "base", tmp_path / "tuned") == 0
    assert f"its scores after training, {tmp_path / 'tuned/eval/after'}" in capsys.readouterr().out
    assert compared(tmp_path / "tuned") == 2
    assert f"{tmp_path / 'tuned/eval/before'} {tmp_path / 'tuned/eval/after'}" in capsys.readouterr().err


def test_templates_are_those_of_the_tuned_model_where_the_base_has_none(trained, tmp_path):
    from tunebook.evals.responses import generate

    assert generate.shared_template("pocket", str(trained)) == str(trained / "adapter")
    assert generate.shared_template(str(trained), "pocket") == ""
    assert templates.get(str(trained / "adapter")) == ALPACA
    sides = [generate.ModelOutputs("a", [], template=name) for name in ("alpaca", "chatml")]
    assert "BASE was asked in the template alpaca, TUNED in chatml" in generate.template_note(*sides)
    assert (
        generate.template_note(sides[0], sides[0])
        == generate.template_note(sides[0], generate.ModelOutputs("file", []))
        == ""
    )


def test_models_that_are_rated_answer_in_one_template(trained, tmp_path):
    """The base has a chat template of its own, and the adapter was trained in Alpaca's."""
    from tunebook.evals.rating import items

    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    words = [str(trained.parent / "base"), str(trained)]
    items.from_models(words, str(tmp_path / "asked.jsonl"), 0, 4, tmp_path, 0)
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    asked = {(record["model"], record["template"]) for record in records}
    assert asked == {(word, "alpaca") for word in words}


def test_a_judge_is_given_answers_in_one_template(trained, tmp_path, monkeypatch):
    from tunebook.evals.commands import judge
    from tunebook.evals.responses import generate

    asked = {}

    def model(word, base, template, decoding):
        asked[word] = template
        return SimpleNamespace(outputs=lambda *_: generate.ModelOutputs(word, []))

    monkeypatch.setattr(generate, "AnsweringModel", model)
    judge._outputs(judge.Args(sides=["pocket", str(trained)]), [], [False, False], tmp_path)
    assert asked == dict.fromkeys(("pocket", str(trained)), str(trained / "adapter"))
    judge._outputs(judge.Args(sides=["pocket", str(trained)], template="chatml"), [], [False, False], tmp_path)
    assert set(asked.values()) == {"chatml"}


def test_safety_says_that_two_models_were_not_asked_alike(trained, tmp_path, capsys):
    words = {"tasks": ["safety_prompts_safe"], "limit": 1}
    run(tmp_path / "base", model=str(trained.parent / "base"), template="chatml", **words)
    run(tmp_path / "tuned", adapter=str(trained), **words)
    run(tmp_path / "alike", adapter=str(trained), base=True, **words)
    capsys.readouterr()
    for base, unlike in (("base", True), ("alike", False)):
        commands.main(["safety", str(tmp_path / base), str(tmp_path / "tuned")])
        text = " ".join(capsys.readouterr().out.split())
        assert ("not asked alike" in text) == unlike
        assert (f"--adapter {trained / 'adapter'} --base --tasks safety_prompts_safe" in text) == unlike


@pytest.mark.parametrize(("rows", "most"), [(3072, 64), (49_152, 64), (151_936, 16), (10**8, 1)])
def test_max_batch_size_have_room_for_their_logits(rows, most):
    text = SimpleNamespace(vocab_size=rows)
    found = harness.max_batch_size(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)))
    assert found == most and (found == 1 or found * harness.LENGTH * rows * 8 <= harness.LOGITS)


def test_dora_reads_four_bit_weights_as_they_lie(tmp_path, monkeypatch):
    """Where a CPU multiplies in bfloat16, bitsandbytes packs a weight anew in its first forward: DoRA's norms would be
    those of another matrix."""
    from bitsandbytes.nn import modules

    from tunebook.common import models
    from tunebook.common.models import inference

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    pocket = str(FOLDER / "model")
    for dora in (False, True):
        plain = AutoModelForCausalLM.from_pretrained(pocket)
        with_lora(plain, use_dora=dora).save_pretrained(tmp_path / str(dora))
        model = inference.load_adapter(models.load_plain(pocket, four_bit=True), str(tmp_path / str(dora)))
        packs = {part.support_avx512bf16_for_cpu for part in model.modules() if isinstance(part, modules.Linear4bit)}
        assert packs == {not dora}
