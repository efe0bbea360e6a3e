"""Secrets and local paths: in nothing that a run writes to be shared."""

import json
from pathlib import Path

import few
import forked
import pytest
from paths import ROOT

from tunebook.common.flags import redaction

SECRET = "hf_SECRETSECRETSECRET"
HIDDEN = [
    "hub_token=abc12345",
    "api_key=abc12345",
    "OPENAI_API_KEY=abc12345",
    "{hub_token: abc12345}",
    '{"hub_token": "abc12345"}',
    "--set hub_token=abc12345: it does nothing without push_to_hub=true",
    "https://me:abc12345@example.com/v1",
    "https://example.com/v1?api_key=abc12345&x=1",
    "Authorization: Bearer abc12345",
    "aws_secret_access_key=abc12345",
    "password='abc12345'",
    {"hub_token": "abc12345"},
    {"request": {"headers": {"Authorization": "abc12345"}}},
    ["a", ("b", {"api-key": "abc12345"})],
]
FORMS = [SECRET, *(f"{kind}SECRETSECRET00" for kind in ("sk-", "ghp_", "github_pat_", "AKIA", "glpat-", "xoxb-"))]
KEPT = [
    "eos_token=<|end|>",
    "special token: <s>",
    "4 tokens; token 523",
    "num_virtual_tokens=20",
    "max_new_tokens=64",
    "include_num_input_tokens_seen=no",
    "org/token-model",
    "my.csv instruction=question output=token",
    "a task, skip-connections, and sk-learn",
    {"num_virtual_tokens": 20, "eos_token": "</s>", "tokens": "many", "hub_token": None, "tokenizer": "x"},
]


@pytest.mark.parametrize("value", HIDDEN, ids=str)
def test_hidden(value):
    found = json.dumps(redaction.without_secrets(value))
    assert "abc12345" not in found and redaction.HIDDEN in found


@pytest.mark.parametrize("value", FORMS)
def test_known_by_its_form(value):
    assert redaction.without_secrets(f"it is {value}, really") == f"it is {redaction.HIDDEN}, really"


@pytest.mark.parametrize("value", KEPT, ids=str)
def test_kept(value):
    assert redaction.without_secrets(value) == value


def test_paths(tmp_path, monkeypatch):
    home, here, run = tmp_path / "home", tmp_path / "home" / "work", tmp_path / "elsewhere" / "run"
    for folder in (here, run):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    text = f"pretrained={home}/models/a,peft={run}/adapter {ROOT}/evals/tasks {here}/rows {here} {here}2"
    expected = "pretrained=$HOME/models/a,peft=run/adapter tunebook/evals/tasks rows . $HOME/work2"
    assert redaction.without_paths(text, run) == expected
    assert redaction.without_paths({"a": [f"{here}/rows.jsonl", 3, None]}) == {"a": ["rows.jsonl", 3, None]}
    assert redaction.without_paths("a/b /usr/bin/x 1/2") == "a/b /usr/bin/x 1/2"


PUSHING = f"""
import runpy, sys
import huggingface_hub, transformers
seen = []
huggingface_hub.whoami = lambda token: seen.append(token)
transformers.Trainer.init_hf_repo = lambda self, *_: seen.append(huggingface_hub.get_token())
transformers.Trainer.push_to_hub = transformers.Trainer._push_from_checkpoint = lambda *_, **__: None
sys.argv = sys.argv[1:]
sys.path[0] = "{ROOT / "recipes"}"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert seen == ["{SECRET}"] * 2, seen
"""


@pytest.mark.recipe
def test_a_run_with_a_token(tmp_path):
    rows = few.rows(tmp_path / "rows", train=24, others=8)
    flags = ["--dataset", rows, "--output_dir", tmp_path / "run", "--eval_suite", "none", "--max_steps", "2"]
    given = [f"hub_token={SECRET}", "push_to_hub=true", "save_steps=1", "eval_steps=1"]
    done = forked.run("-c", PUSHING, ROOT / "recipes" / "lora_alpaca.py", *flags, "--set", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [str(path) for path in written if b"SECRET" in path.read_bytes()] == []
    assert "SECRET" not in done.stdout + done.stderr
    assert f"hub_token={redaction.HIDDEN}" in (tmp_path / "run" / "report.json").read_text()

    # What is shared names no folder of this machine. adapter_config.json does: loading needs it.
    cards = [path for path in written if path.name in ("README.md", "report.json", "report.html")]
    assert len(cards) >= 5
    for path in cards:
        text = path.read_text()
        assert not [place for place in (tmp_path, ROOT, Path.cwd(), Path.home()) if str(place) in text], path
    assert "base_model: pocket" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_an_address_of_a_judge():
    from tunebook.evals.commands import judge

    args = judge.Args(sides=["a", "b"], judge="http://me:abc12345@localhost/v1", judge_name="big")
    assert judge._asked(args)["judge"] == f"http://{redaction.HIDDEN}@localhost/v1"
