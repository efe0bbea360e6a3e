"""The template travels with the weights: what transformers and PEFT read of a saved folder is what was trained."""

import copy
import json

import plain
import pytest
import real
import torch
from paths import needs_data
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tunebook.common import generation
from tunebook.common.errors import UserError
from tunebook.common.generation.chat import Conversation
from tunebook.common.generation.decoding import Decoding
from tunebook.common.models import generation_config
from tunebook.common.models.inference import InferenceModel
from tunebook.common.pocket import FOLDER
from tunebook.common.preference import dpo
from tunebook.common.tokens import encoding, rendering, templates, tokenization
from tunebook.common.tokens.templates import Template
from tunebook.common.training import served_tokenizer

POCKET = str(FOLDER / "model")
NAMES = ["alpaca", "plain", "chatml", "llama2", "llama3", "tokenizer"]
QUOTED = Template("quoted", 'Of "{input}":\n{instruction}\n>', "{instruction}\n>")  # its input comes first
TALK = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "An apple."},
    {"role": "user", "content": "Sort\n\nthese \\ 'and' \"those\" {{ x }}: b a"},
    {"role": "assistant", "content": "a b"},
    {"role": "user", "content": "And now?"},
]


class Model:
    """As much of a model as decides what is saved beside a tokenizer."""

    def __init__(self, ends):
        self.generation_config, self.config = GenerationConfig(eos_token_id=ends), LlamaConfig()


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A function from a template (or its name) to a folder that its dressed tokenizer was saved in."""
    folders = {}

    def save(template):
        template = templates.get(template, tokenizer) if isinstance(template, str) else template
        if template.name not in folders:
            folders[template.name] = tmp_path_factory.mktemp(template.name)
            served_tokenizer.with_template(tokenizer, template, Model(0)).save_pretrained(folders[template.name])
        return folders[template.name]

    return save


def asked(tokenizer, template, system, turns):
    """Ids of a conversation as tunebook has them."""
    conversation = Conversation(tokenizer, template, system)
    conversation.turns = turns[:-1]
    return conversation.prompt(turns[-1]["content"])[0]


def in_turns(system, turns):
    return [{"role": "system", "content": system}, *turns] if system else turns


# --- ids


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("name", [*NAMES, QUOTED], ids=[*NAMES, "quoted"])
def test_the_saved_chat_template_gives_the_ids_of_training(tokenizer, saved, name, system):
    folder = saved(name)
    template = templates.load(folder)
    for count in (1, 3, 5):
        turns = TALK[:count]
        wanted = asked(tokenizer, template, system, turns)
        assert plain.ids(folder, in_turns(system, turns)) == wanted
        assert asked(AutoTokenizer.from_pretrained(folder), template, system, turns) == wanted  # read again


@pytest.mark.parametrize("name", NAMES)
def test_an_answered_question_is_the_row_of_training(tokenizer, saved, name):
    row = {"instruction": TALK[0]["content"], "input": "", "output": TALK[1]["content"], "system": "Be brief."}
    (trained,), _ = encoding.encode([row], tokenizer, templates.get(name, tokenizer), 512)
    loaded = AutoTokenizer.from_pretrained(saved(name))
    found = loaded.apply_chat_template(
        in_turns("Be brief.", TALK[:2]), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = found["input_ids"], found["assistant_masks"]
    count = len(trained["input_ids"])  # ChatML writes a line break after the end of the turn
    assert ids[:count] == trained["input_ids"] and loaded.decode(ids[count:]).strip() == ""
    assert [i for i, here in zip(ids, mask, strict=True) if here] == [i for i in trained["labels"] if i != -100]


def test_a_question_with_an_input_is_the_row_with_one(tokenizer, saved):
    row = {"instruction": "Sort these.", "input": "b a\n\nc", "output": ""}
    for name in ("alpaca", "plain"):
        template = templates.TEXT[name]
        turn = {"role": "user", "content": template.turn(row)}
        ids = plain.ids(saved(name), [turn])
        assert tokenizer.decode(ids) == template.prompt(row) and template.prompt(template.row(turn["content"]))
    assert "### Input:\nb a" in tokenizer.decode(plain.ids(saved("alpaca"), [
        {"role": "user", "content": templates.ALPACA.turn(row)}
    ]))  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "more", "says"),
    [
        ([TALK[0], TALK[0]], {}, "no place for a turn of user here"),
        ([TALK[1]], {}, "a turn of assistant here"),
        ([TALK[0], TALK[1], {"role": "system", "content": "x"}], {}, "a turn of system here"),
        ([TALK[0], {"role": "tool", "content": "x"}], {}, "a turn of tool here"),
        ([TALK[0], {**TALK[1], "tool_calls": [{"name": "add"}]}], {}, "a turn of assistant here"),
        (TALK[:1], {"tools": [{"name": "add"}]}, "no place for tools"),
    ],
)
def test_what_an_instruction_template_has_no_place_for_is_refused(saved, turns, more, says):
    import jinja2

    loaded = AutoTokenizer.from_pretrained(saved("alpaca"))
    with pytest.raises(jinja2.TemplateError, match=says):
        loaded.apply_chat_template(turns, add_generation_prompt=True, **more)


def test_what_a_template_calls_its_tokens_stays_what_it_was(tokenizer, tmp_path):
    """The end token of the tokenizer changes; a template that names it goes on writing what it wrote."""
    text = "\n{% macro end() %}{{ eos_token }}{% endmacro %}{{ bos_token }}{% for m in messages %}"
    text += "{{ m['role'] + ': ' + m['content'] + ('<|im_end|>' if m['role'] == 'assistant' else end()) }}{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "own.jinja").write_text(text)
    template = templates.get(str(tmp_path / "own.jinja"), tokenizer)
    served_tokenizer.with_template(tokenizer, template, Model([0])).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|im_end|>"
    assert plain.ids(tmp_path, TALK[:3]) == asked(tokenizer, template, "", TALK[:3])
    assert tokenizer.decode(plain.ids(tmp_path, TALK[:1])).count("<|endoftext|>") == 1


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("name", ["llama2", "phi-3-mini", "llama3"])
def test_the_same_on_real_tokenizers(tmp_path, name):
    tokenizer = real.tokenizer(name)
    for kind in ("alpaca", "plain", "llama2", "tokenizer"):
        if kind == "tokenizer" and not tokenizer.chat_template:
            continue
        template = templates.get(kind, tokenizer)
        served = served_tokenizer.with_template(tokenizer, template, Model(tokenizer.eos_token_id))
        for system in ("", "Be brief."):
            wanted = asked(tokenizer, template, system, TALK)
            turns = in_turns(system, TALK)
            assert served.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == wanted, kind
    served.save_pretrained(tmp_path)
    assert plain.ids(tmp_path, turns) == wanted


# --- ends


def test_the_end_of_a_turn_is_the_saved_end_token(tokenizer, tmp_path, capsys):
    model = Model([0, 7])
    served_tokenizer.with_template(tokenizer, templates.get("chatml", tokenizer), model).save_pretrained(tmp_path)
    assert "answers end with <|im_end|>, the base's texts with <|endoftext|>" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|im_end|>" and tokenizer.eos_token == "<|endoftext|>"
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [3, 0, 7] and model.config.eos_token_id == 3
    served_tokenizer.with_template(tokenizer, templates.ALPACA, Model(0)).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == 0 and not capsys.readouterr().out


@pytest.fixture(scope="module")
def adapters(tokenizer, saved):
    """A function from a template's name to the folder of an adapter that changes answers and was saved with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02)

    def save(name):
        model.save_pretrained(saved(name))
        return saved(name)

    return save


@pytest.mark.parametrize("name", NAMES)
def test_transformers_and_peft_alone_answer_as_tunebook_chat(adapters, name):
    folder = adapters(name)
    mine = InferenceModel(adapters=[str(folder)])
    ends = generation.stop_conditions(mine.tokenizer, mine.template, mine.model)
    assert mine.template.name == name and (3 in ends.ids) == (name in ("chatml", "tokenizer"))
    talks = [TALK[:1], [{"role": "user", "content": "What is the capital of Arvania?"}], TALK[:3]]
    prompts = [asked(mine.tokenizer, mine.template, "", turns) for turns in talks]
    answers = generation.generate(mine.model, mine.tokenizer, prompts, Decoding(16), ends)
    for answer, said in zip(answers, plain.answers(folder, talks), strict=True):
        assert {plain.bare(text) for text in said} == {plain.bare(answer.text)}
    # At <|im_end|>, with which the base's own texts do not end:
    assert any(answer.limit is None for answer in answers) or name not in ("chatml", "tokenizer")


def test_an_evaluation_begins_and_ends_texts_as_for_the_base(adapters, tokenizer, tmp_path):
    """lm-eval puts the end token before a text where there is no beginning token, and the end token is another here."""
    from tunebook.evals.harness.heldout import stops
    from tunebook.evals.harness.lm import in_memory
    from tunebook.evals.harness.scored_model import ScoredModel

    folder = adapters("chatml")
    loaded = ScoredModel("", str(folder))
    assert loaded.tokenizer.eos_token_id == 3 and loaded.prefix == 0
    assert in_memory(loaded.load(), loaded.tokenizer, 1, prefix=loaded.prefix).prefix_token_id == 0
    assert ",prefix_token_id=0" in loaded.model_args(tmp_path)
    assert stops(loaded.tokenizer, templates.load(folder), loaded.end) == stops(tokenizer, templates.load(folder))
    other = ScoredModel("", str(adapters("alpaca")))
    assert other.load() and "prefix_token_id" not in other.model_args(tmp_path)


# --- what would part them


def base(folder, tokenizer, **ends):
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3072, eos_token_id=0, pad_token_id=1, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **ends}))
    return model


@pytest.mark.parametrize(
    ("given", "kept", "says"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}, "temperature 0.9"),
        ({"min_p": 0.1, "do_sample": False}, {"min_p": 0.1, "do_sample": True}, "min_p 0.1"),
        ({"early_stopping": True, "length_penalty": 2.0}, {}, "early_stopping True, length_penalty 2.0"),
        ({"num_return_sequences": 2}, {}, "num_return_sequences 2"),
        ({"temperature": 0.9, "do_sample": True, "pad_token_id": -1}, {"temperature": 0.9}, "pad_token_id -1"),
    ],
)
def test_a_generation_config_that_transformers_cannot_save_is_mended(tmp_path, capsys, given, kept, says):
    class Base:
        generation_config = GenerationConfig(eos_token_id=0)

    for name, value in given.items():
        setattr(Base.generation_config, name, value)
    with pytest.raises(ValueError, match=r"GenerationConfig|Greedy"):
        Base.generation_config.save_pretrained(tmp_path)
    generation_config.make_savable(Base, "vicuna")
    said = capsys.readouterr().out
    assert said.startswith("generation_config.json of vicuna") and says in said and said.count("\n") == 1
    Base.generation_config.save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read.eos_token_id == 0 and {name: getattr(read, name) for name in kept} == kept
    generation_config.make_savable(Base, "vicuna")
    assert not capsys.readouterr().out


def test_tokens_past_the_model_are_one_message(tmp_path, capsys):
    """An index out of range to transformers, and on a GPU the end of the process."""
    longer = AutoTokenizer.from_pretrained(POCKET)
    longer.add_tokens(["<user>", "<bot>"], special_tokens=True)
    longer.add_tokens(["wug"])
    longer.chat_template = "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}"
    longer.chat_template += (
        "{{ m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    model = base(tmp_path, longer)
    template = templates.get("tokenizer", longer)
    rows = [{"instruction": text, "input": "", "output": "apple"} for text in ("Name a fruit.", "Name a wug.")]
    with pytest.raises(IndexError):
        model(torch.tensor([encoding.encode(rows[:1], longer, template, 64)[0][0]["input_ids"]]))
    (said,) = tokenization.bind(longer, model)
    assert "3 of its tokens, such as <user>, lie past the model's 3072 rows" in said
    with pytest.raises(UserError, match=r"row 1: it holds <bot> \(token 3073\), and the model has 3072 rows"):
        encoding.encode(rows, longer, template, 64)
    with pytest.raises(UserError, match=r"row 2: it holds wug \(token 3074\)"):
        encoding.encode(rows, longer, templates.ALPACA, 256)
    assert encoding.encode(rows[:1], longer, templates.ALPACA, 256)[1].kept == 1  # rows without them train
    found = InferenceModel(str(tmp_path))
    assert any("lie past the model's 3072 rows" in note for note in found.notes)
    with pytest.raises(UserError, match="a prompt cannot be asked: it holds <bot>"):
        Conversation(found.tokenizer, found.template).prompt("Hello?")
    from tunebook.evals.harness.lm import in_memory

    with pytest.raises(UserError, match=r"a text to score: the tokenizer makes token 3074 \('wug'\)"):
        in_memory(found.model, found.tokenizer, 1)._loglikelihood_tokens([(None, [5], [6, 3074])])


# --- an adapter to go on from


def test_preferences_start_from_a_run_and_its_own_base(tmp_path, tokenizer, capsys, monkeypatch):
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    base(tmp_path / "base", tokenizer)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert dpo.starting_point(None, None) == ("pocket_teacher", None)
    for name in (adapter, tmp_path / "run"):
        assert dpo.starting_point(None, str(name)) == (str(tmp_path / "base"), str(adapter))
    assert dpo.starting_point(str(tmp_path / "base"), str(adapter)) and not capsys.readouterr().out
    assert dpo.starting_point("pocket", str(adapter)) == ("pocket", str(adapter))
    assert f"was trained on {tmp_path / 'base'}; here it is on pocket" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    config["base_model_name_or_path"] = "./gone"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="name its base by --model"):
        dpo.starting_point(None, str(adapter))


def test_an_adapter_for_another_width_is_one_message(tmp_path, tokenizer, adapters):
    base(tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"trained on \S*pocket/model, cannot be put on this model: size mis.* more$"):
        InferenceModel(str(tmp_path), [str(adapters("alpaca"))])


def test_variables_and_the_template_for_tools_travel(tokenizer, tmp_path):
    """What a recipe sets holds unless a caller says otherwise; conversations with tools take their own template."""
    text = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    text += "{% if add_generation_prompt %}{{ 'thinking: ' if enable_thinking else 'assistant: ' }}{% endif %}"
    own = {"default": text, "tool_use": "{{ (tools | tojson) }}" + text}
    given = copy.copy(tokenizer)
    given.chat_template = own
    template = templates.get("tokenizer", given, options={"enable_thinking": True})
    served_tokenizer.with_template(tokenizer, template, Model([0])).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    told = dict(add_generation_prompt=True, tokenize=False)
    assert loaded.apply_chat_template(TALK[:1], **told).endswith("thinking: ")
    assert loaded.apply_chat_template(TALK[:1], enable_thinking=False, **told).endswith("assistant: ")
    assert loaded.apply_chat_template(TALK[:1], tools=[{"name": "add"}], **told).startswith('[{"name": "add"}]')
    again = templates.get("tokenizer", loaded)
    assert again.tool_use and rendering.prompts(loaded, again, [{"messages": TALK[:2]}]) == rendering.prompts(
        tokenizer, template, [{"messages": TALK[:2]}]
    )
