"""A Modelfile's TEMPLATE is read off the chat template, and compared with it; what it cannot say is refused."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from tunebook.common.errors import UserError
from tunebook.common.export import conversations, ollama
from tunebook.common.tokens import templates
from tunebook.common.training import served_tokenizer

SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def reference(tokenizer, template, rows, jinja=None):
    """As much of a Reference as a Modelfile is made of."""
    copied = served_tokenizer.copy.copy(tokenizer)
    copied.chat_template = jinja or served_tokenizer.jinja(template, tokenizer)
    found = [conversations.HeldOut(messages, None, {}, "x", [1, 2], 1) for messages in rows]
    return SimpleNamespace(tokenizer=copied, template=template, conversations=found, ends=[3, 0])


USER = [[{"role": "user", "content": "What is {{ this }}?"}]]


def test_chatml_is_written_in_the_language_of_go(tokenizer):
    text = ollama.modelfile(reference(tokenizer, templates.get("chatml", tokenizer), USER), "model-f16.gguf")
    assert text.splitlines()[0] == "FROM ./model-f16.gguf"
    assert '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}' in text
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}' in text
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"' in text
    assert text.rstrip().splitlines()[-1] == "PARAMETER repeat_penalty 1.0"


def test_a_system_text_of_the_template_itself_stands_where_there_is_none(tokenizer):
    chatml = templates.get("chatml", tokenizer)
    text = ollama.modelfile(reference(tokenizer, chatml, USER, SYSTEM), "model.gguf")
    assert (
        '<|im_start|>system\n{{ if ne (index .Messages 0).Role "system" }}Be kind.{{ end }}{{ range .Messages }}'
        in text
    )


@pytest.mark.parametrize("system", [False, True])
def test_what_go_writes_is_what_jinja_writes(tokenizer, system):
    made = reference(tokenizer, templates.get("chatml", tokenizer), USER, SYSTEM)
    render = lambda turns: made.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)  # noqa: E731
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    turns = [{"role": "system", "content": "s"}, *turns] if system else turns
    assert ollama.read_off(render).render(turns) == render(turns)


def test_a_question_with_an_input_and_a_changing_history_are_refused(tokenizer):
    row = [[{"role": "user", "content": templates.ALPACA.turn({"instruction": "a", "input": "b", "output": ""})}]]
    with pytest.raises(UserError, match="template alpaca cannot be written for Ollama: of held-out conversation 1"):
        ollama.modelfile(reference(tokenizer, templates.ALPACA, row), "model.gguf")
    chatml = templates.get("chatml", tokenizer)
    last = SYSTEM.replace("message['content'] +", "(message['content'] if loop.last else '...') +")
    with pytest.raises(UserError, match="does not write every text once"):
        ollama.modelfile(reference(tokenizer, chatml, USER, last), "model.gguf")
    counted = SYSTEM.replace("message['role'] +", "message['role'] + loop.index|string +")
    with pytest.raises(UserError, match="cannot be written for Ollama"):
        ollama.modelfile(reference(tokenizer, chatml, USER, counted), "model.gguf")


def test_tools_are_refused(tokenizer):
    row = [[*USER[0], {"role": "tool", "content": "{}"}]]
    with pytest.raises(UserError, match="held-out conversation 1 has tools"):
        ollama.modelfile(reference(tokenizer, templates.get("chatml", tokenizer), row), "model.gguf")


def test_alpaca_without_inputs_can_be_written(tokenizer):
    text = ollama.modelfile(reference(tokenizer, templates.ALPACA, USER), "model.gguf")
    assert "### Instruction:\n{{ .Content }}" in text


GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var asked struct {
		Template      string
		Conversations [][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	made := template.Must(template.New("").Parse(asked.Template))
	for _, messages := range asked.Conversations {
		if err := made.Execute(os.Stdout, map[string]any{"Messages": messages}); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("\\x00")
	}
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="the language Go is not installed")
def test_the_template_in_go_itself(tokenizer, tmp_path):
    """What Go writes by the TEMPLATE of a Modelfile is what transformers writes by the chat template."""
    (tmp_path / "write.go").write_text(GO)
    built = subprocess.run(["go", "build", "-o", "write", "write.go"], cwd=tmp_path, capture_output=True, text=True,
                           env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, check=False)  # fmt: skip
    assert built.returncode == 0, built.stderr
    hello = {"role": "user", "content": "  Say {{ this }} or `that`.\n"}
    turns = [hello, {"role": "assistant", "content": '"b" \\ {{ .Content }}'}, {"role": "user", "content": "é 中"}]
    conversations = [turns[:1], turns, [{"role": "system", "content": "Be brief."}, *turns]]
    chatml = templates.get("chatml", tokenizer)
    braces = SYSTEM.replace("Be kind.", "Be {{ kind }}.")
    for template, jinja in ((chatml, None), (chatml, SYSTEM), (chatml, braces), (templates.ALPACA, None)):
        made = reference(tokenizer, template, USER, jinja)
        kept = conversations[:2] if template is templates.ALPACA else conversations
        wanted = [made.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in kept]
        (_, written, _) = ollama.modelfile(made, "model.gguf").split('"""')
        asked = json.dumps({"Template": written, "Conversations": kept})
        done = subprocess.run([tmp_path / "write"], input=asked, capture_output=True, text=True, check=True)
        assert done.stdout.split("\x00")[:-1] == wanted
