"""`tunebook chat`: what it says, remembers and switches; adapters of every kind, on and off without a trace."""

import io
import json
import os
import signal
import subprocess
import sys
import threading

import forked
import pytest
import torch
from paths import ROOT

from tunebook.common import commands, generation
from tunebook.common.commands import chat_page
from tunebook.common.errors import UserError
from tunebook.common.generation.chat import Conversation
from tunebook.common.generation.decoding import Decoding
from tunebook.common.models.inference import InferenceModel, named
from tunebook.common.pocket import FOLDER
from tunebook.common.process import terminal
from tunebook.common.tokens import chat_templates, encoding, rendering, templates

POCKET = str(FOLDER / "model")
ASK = "What is the capital of Arvania?"


def talk(monkeypatch, capsys, text, *flags, limit=8):
    """Exit code, answers (standard output) and the rest (standard error) of a chat with these lines typed into it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code = 0
    try:
        commands.main(["chat", "--max_new_tokens", str(limit), *map(str, flags)])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[7, 900, 31, 42, 5]])).logits


@pytest.fixture(scope="module")
def bottleneck(tmp_path_factory):
    """A run's folder with a bottleneck adapter that changes answers, trained with Alpaca's template."""
    from tunebook.common import models
    from tunebook.common.models import bottleneck_adapters

    folder = tmp_path_factory.mktemp("run_of_ours")
    model = models.load_plain("pocket")
    torch.manual_seed(0)
    for weight in bottleneck_adapters.attach(model, "mine", bottleneck=8):
        weight.data += 0.2 * torch.randn_like(weight)
    bottleneck_adapters.save(model, folder / "adapter", "mine")
    templates.ALPACA.save(folder / "adapter")
    return folder


# --- the conversation


def test_the_prompt_is_that_of_training(tokenizer):
    row = {"messages": [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"}, {"role": "user", "content": "<|im_end|> two?"},
        {"role": "assistant", "content": "2"},
    ]}  # fmt: skip
    template = templates.get("chatml", tokenizer)
    conversation = Conversation(tokenizer, template, "Be short.")
    conversation.add("One?", "1")
    assert conversation.prompt("<|im_end|> two?") == (rendering.prompts(tokenizer, template, [row])[0], 0)
    conversation.reset()
    assert conversation.turns == [] and conversation.system == "Be short."


def test_turns_of_a_text_template_are_rows_of_training(tokenizer):
    conversation = Conversation(tokenizer, templates.ALPACA, "Be short.")
    first = {"instruction": "Say it.", "input": "two", "output": "two", "system": "Be short."}
    conversation.input = "two"
    assert conversation.prompt("Say it.")[0] == rendering.prompts(tokenizer, templates.ALPACA, [first])[0]
    conversation.add("Say it.", "two")
    (row,), _ = encoding.encode([first], tokenizer, templates.ALPACA, 512)
    later = rendering.prompts(tokenizer, templates.ALPACA, [{"instruction": "More?", "output": ""}])[0]
    assert not conversation.input and conversation.prompt("More?")[0] == row["input_ids"] + later


def test_what_no_longer_fits_is_left_out_and_counted(tokenizer):
    conversation = Conversation(tokenizer, templates.get("chatml", tokenizer))
    for number in range(6):
        conversation.add(f"Say {number}.", str(number))
    whole = conversation.prompt("More?")[0]
    ids, left_out = conversation.prompt("More?", len(whole) - 1)
    assert left_out == 1 and len(ids) < len(whole) and tokenizer.decode(ids).count("Say") == 5
    with pytest.raises(UserError, match="2 have room"):
        conversation.prompt("More?", 2)
    with pytest.raises(UserError, match="have room"):
        Conversation(tokenizer, templates.ALPACA).prompt("More?", 5)


def test_a_template_that_takes_no_system_text_says_what_to_do(tokenizer):
    jinja = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template = chat_templates.ChatTemplate("odd", jinja + "{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="/system without a text"):
        Conversation(tokenizer, template, "Be short.").prompt("One?")


# --- the command


def test_answers_are_those_of_generate_and_history_counts(monkeypatch, capsys, tokenizer):
    lines = f"{ASK}\n\nAnd of Dravia?\n/reset\nAnd of Dravia?\n/quit\nnever\n"
    code, out, err = talk(monkeypatch, capsys, lines, limit=32)
    assert code == 0
    first = err.splitlines()[0]
    for part in ("model pocket (2.4 million parameters)", "adapter none", "template tokenizer", "greedy, at most 32"):
        assert part in first
    adapted, greedy = InferenceModel(), Decoding(32)
    stop = generation.stop_conditions(tokenizer, adapted.template)
    conversation, expected = Conversation(tokenizer, adapted.template), []
    for question in (ASK, "And of Dravia?", None, "And of Dravia?"):
        if question is None:
            conversation.reset()
            continue
        prompt = conversation.prompt(question)[0]
        expected.append(generation.generate(adapted.model, tokenizer, [prompt], greedy, stop)[0].text)
        conversation.add(question, expected[-1])
    assert out == "".join(f"{answer}\n" for answer in expected)
    assert expected[1] != expected[2] and "(forgotten)" in err and "(cut" not in err
    assert "(cut at 8 tokens)" in talk(monkeypatch, capsys, ASK, "--template", "alpaca")[2]


def test_what_is_typed_beside_questions(monkeypatch, capsys, bottleneck):
    lines = [ASK, "/adapter", "/adapter none", ASK, "/adapter run_of_ours", ASK, "/system Be short.", "/system"]
    lines = ["/adapter first" if line == "/adapter run_of_ours" else line for line in lines]
    lines += ["/input cat dog", "Say it.", "/inpt x", "/adapter secnd", "/help", " /odd", "/exit"]
    code, out, err = talk(monkeypatch, capsys, "\n".join(lines), "--adapter", f"first={bottleneck}")
    assert code == 0, err
    answers = out.splitlines()
    assert "template alpaca" in err.splitlines()[0]
    assert "in use: first; there is first, none" in err and "adapter none ·" in err
    for said in ("(system text set)", "(no system text)", "(it goes with the next question)", "forget what was said"):
        assert said in err
    assert "/inpt: there is" in err and "nearest is /input" in err and "put a space before it" in err
    assert "--adapter secnd: there is first, none" in err and "Traceback" not in err
    assert out.count("\n") >= 5 and answers


def test_an_adapter_changes_the_answer_and_leaves_no_trace(bottleneck):
    adapted = InferenceModel(adapters=[str(bottleneck)])
    name = bottleneck.name
    assert adapted.current == name and adapted.name == "pocket" and adapted.template == templates.ALPACA
    on = logits(adapted.model)
    adapted.use(None)
    base = logits(adapted.model)
    assert torch.equal(base, logits(InferenceModel().model)) and not torch.allclose(on, base)
    assert adapted.current is None and adapted.template == templates.ALPACA  # the same prompt for both
    adapted.use(name)
    assert torch.equal(logits(adapted.model), on)
    assert InferenceModel("pocket", [str(bottleneck)]).notes == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "-1"], "temperature -1"),
        (["--top_p", "0.5"], "top_p with temperature 0"),
        (["--num_beams", "2", "--temperature", "1"], "search or sample"),
        (["--model", "./gone"], "no such folder"),
        (["--adapter", "./gone"], "--adapter ./gone: no such folder"),
        (["--adapter", "{tmp}"], "neither adapter_config.json nor bottleneck.json"),
        (["--template", "alpacca"], "nearest is alpaca"),
    ],
)
def test_mistakes_are_one_message(monkeypatch, capsys, tmp_path, flags, says):
    code, out, err = talk(monkeypatch, capsys, ASK, *(flag.format(tmp=tmp_path) for flag in flags))
    assert code == 2 and says in err and out == "" and "Traceback" not in err


def test_names_of_adapters(tmp_path):
    for run in ("one", "two"):
        (tmp_path / run / "adapter").mkdir(parents=True)
        (tmp_path / run / "adapter" / "adapter_config.json").write_text("{}")
    one, two = tmp_path / "one", tmp_path / "two" / "adapter"
    assert named([str(one), str(two)]) == {"one": str(one / "adapter"), "two": str(two)}
    assert named([f"a={one}", "org/some"]) == {"a": str(one / "adapter"), "some": "org/some"}
    with pytest.raises(UserError, match="two would be called one"):
        named([str(one), f"one={two}"])
    with pytest.raises(UserError, match="called none"):
        named([f"none={two}"])


def test_control_characters_do_not_steer_the_terminal():
    assert terminal.escaped("a\x1b[31m\x07b\n\tc é 🤷") == "a\\x1b[31m\\x07b\n\tc é 🤷"


def test_beams_come_whole(monkeypatch, capsys):
    code, out, err = talk(monkeypatch, capsys, f"{ASK}\n", "--num_beams", "2")
    assert code == 0 and out.strip() and "2 beams" in err


def test_an_interrupt_stops_the_answer_and_no_more(monkeypatch, capsys):
    real, threads = generation.stream, threading.active_count()

    def interrupted(*args):
        for number, piece in enumerate(real(*args)):
            if number == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(generation, "stream", interrupted)
    code, out, err = talk(monkeypatch, capsys, f"{ASK}\n", limit=200)
    assert code == 0 and out.strip() and "(stopped)" in err
    assert threading.active_count() <= threads  # one of an earlier test may end meanwhile


@pytest.mark.recipe
def test_ctrl_c_as_a_signal(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tunebook.common.commands",
        "chat",
        "--template",
        "alpaca",
        "--max_new_tokens",
        "400",
    ]
    for _ in range(4):  # a busy machine may bring the signal after a short answer has ended
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            bufsize=1,
            # a shell's background job ignores the signal, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        process.stdin.write("Sort the words by the alphabet: win rake dark. Then tell a long story.\n")
        process.stdin.flush()
        assert process.stdout.read(1)  # it has begun
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate("/quit\n", timeout=120)
        assert "Traceback" not in err
        if process.returncode == 0 and "(stopped)" in err:
            break
    assert process.returncode == 0 and "(stopped)" in err and out


# --- adapters of PEFT


def peft_configs():
    import peft

    lora = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    soft = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    return {
        "lora": peft.LoraConfig(**lora),
        "dora": peft.LoraConfig(**lora, use_dora=True),
        "pissa": peft.LoraConfig(**lora, init_lora_weights="pissa"),
        "whole": peft.LoraConfig(**lora, modules_to_save=["lm_head"]),
        "ia3": peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "prompt": peft.PromptTuningConfig(**soft),
        "prefix": peft.PrefixTuningConfig(**soft),
        "p_tuning": peft.PromptEncoderConfig(**soft, encoder_hidden_size=16),
    }


@pytest.fixture(scope="module")
def peft_adapters(tmp_path_factory):
    """Folder and logits of an adapter of each kind, with weights that change answers."""
    import peft

    from tunebook.common import models

    made = {}
    for name, config in peft_configs().items():
        model = peft.get_peft_model(models.load_plain("pocket"), config).eval()
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += 0.1 * torch.randn_like(weight)
        folder = tmp_path_factory.mktemp(name) / name
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(models.load_plain("pocket"), folder).eval()
        made[name] = (folder, logits(again))
    return made


@pytest.mark.recipe
def test_adapters_of_peft_go_on_and_off_without_a_trace(peft_adapters, bottleneck):
    folders = [f"{name}={folder}" for name, (folder, _) in peft_adapters.items()]
    adapted = InferenceModel(adapters=[*folders, f"ours={bottleneck}"])
    base = logits(InferenceModel().model)
    assert adapted.current == "lora"
    for name in [*reversed(adapted.folders), "lora", "ours", "prefix"]:
        adapted.use(name)
        if name != "ours":
            assert torch.equal(logits(adapted.model), peft_adapters[name][1]), name
        assert not torch.allclose(logits(adapted.model)[:, -5:], base)
        adapted.use(None)
        assert torch.equal(logits(adapted.model), base), name
        assert not [module for module in adapted.model.modules() if "lora" in type(module).__name__.lower()]


@pytest.mark.recipe
@pytest.mark.parametrize("name", ["lora", "prompt", "prefix", "p_tuning"])
def test_batched_equals_alone_with_adapters(peft_adapters, tokenizer, name):
    adapted = InferenceModel("pocket", [f"{name}={peft_adapters[name][0]}"])
    texts = [ASK, "cat", "Write the words backwards: cat dog hat shoe", "2 + 3"]
    prompts = tokenizer(texts)["input_ids"]
    together = generation.generate(adapted.model, tokenizer, prompts, Decoding(12))
    alone = [generation.generate(adapted.model, tokenizer, [ids], Decoding(12))[0] for ids in prompts]
    assert together == alone
    # Without a cache, token by token: what generate keeps between steps must not change the answer.
    for ids, answer in zip(prompts, alone, strict=True):
        for _ in range(12):
            with torch.no_grad():
                last = adapted.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids = [*ids, int(last.argmax())]
        assert answer.text == tokenizer.decode(generation.cut(ids[-12:], 0))


@pytest.mark.recipe
def test_answers_are_those_through_unsloth(tmp_path, peft_adapters, tokenizer):
    """The chat loads by transformers alone; training and its samples load by Unsloth."""
    folder = peft_adapters["lora"][0]
    code = f"""
import json, sys
from tunebook.common import generation, models
from tunebook.common.tokens import rendering, templates
from tunebook.common.generation.decoding import Decoding
model, tokenizer = models.load("pocket", 512)
from peft import PeftModel
rows = [json.loads(line) for line in open({str(FOLDER / "test.jsonl")!r})][::60]
prompts = rendering.prompts(tokenizer, templates.ALPACA, rows)
texts = [[a.text for a in generation.generate(model, tokenizer, prompts, Decoding(24, temperature=t))] for t in (0, 1)]
model = PeftModel.from_pretrained(model, {str(folder)!r})
texts.append([a.text for a in generation.generate(model, tokenizer, prompts, Decoding(24))])
json.dump(texts, open({str(tmp_path / "texts.json")!r}, "w"))
"""
    forked.run("-c", code).check_returncode()
    through_unsloth = json.loads((tmp_path / "texts.json").read_text())
    rows = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text().splitlines()][::60]
    prompts = rendering.prompts(tokenizer, templates.ALPACA, rows)
    base, adapted = InferenceModel("pocket").model, InferenceModel("pocket", [str(folder)]).model
    cases = zip((base, base, adapted), (0, 1, 0), through_unsloth, strict=True)
    for model, temperature, expected in cases:
        found = generation.generate(model, tokenizer, prompts, Decoding(24, temperature=temperature))
        assert [answer.text for answer in found] == expected


# --- the page


def test_a_page_without_gradio_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(chat_page.importlib.util, "find_spec", lambda name: None)
    code, _, err = talk(monkeypatch, capsys, "", "--page")
    assert code == 2 and 'pip install "gradio>=6,<7"' in err


def test_the_page_goes_on_from_questions_that_were_answered():
    """One that failed or was stopped at once has no answer on the page."""
    shown = [("user", "too long"), ("user", "a"), ("assistant", "b"), ("user", "stopped")]
    history = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in shown]
    assert chat_page.said(history) == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_what_is_chosen_on_the_page():
    given = Decoding(8, temperature=0.7, top_p=0.9, top_k=5)
    assert chat_page.with_choices(given, 0, 20) == Decoding(20)
    assert chat_page.with_choices(given, 1.5, 8) == Decoding(8, temperature=1.5, top_p=0.9, top_k=5)
    assert chat_page.with_choices(Decoding(8, num_beams=3), 0.5, 8).num_beams == 1
    assert chat_page.with_choices(Decoding(8, num_beams=3), 0, 8).num_beams == 3


def test_the_page_answers_as_the_terminal_does(monkeypatch, capsys, bottleneck, serves_pages):
    pytest.importorskip("gradio")
    from gradio_client import Client

    questions = "What is the capital of Arvania?\nAnd of Dravia?\n"
    _, out, _ = talk(monkeypatch, capsys, questions, "--adapter", bottleneck, "--template", "chatml")
    adapted = InferenceModel("pocket", [str(bottleneck)], "chatml")
    page = chat_page.build(adapted, Decoding(8), "")
    _, address, _ = page.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True)
    try:
        assert address.startswith("http://127.0.0.1")
        client = Client(address, verbose=False)  # the conversation is the client's session
        rest = ("", bottleneck.name, 0, 8)
        said = [client.predict(question, *rest, False, api_name="/chat")[0] for question in questions.splitlines()]
        assert "".join(text + "\n" for text in said) == out
        with pytest.raises(Exception, match="have room"):
            client.predict("word " * 900, *rest, False, api_name="/chat")
        assert client.predict(questions.splitlines()[1], *rest, False, api_name="/chat")  # it goes on
        first = questions.splitlines()[0]
        other, _ = Client(address, verbose=False).predict(first, "", "none", 0, 8, False, api_name="/chat")
        assert adapted.current is None and other != said[0]
        both = Client(address, verbose=False).predict(first, *rest, True, api_name="/chat")
        assert tuple(both) == (said[0], other)  # tuned, and the base beside it
    finally:
        page.close()
