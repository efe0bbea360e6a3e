"""Where turns begin and end, and what a template leaves out: against apply_chat_template and TRL's templates."""

import re

import pytest
from turns import ASK, MORE, NO, TOOL, YES, call, made, sources

from tunebook.common import generation
from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, lengths, templates, tokenization

SYSTEM = {"role": "system", "content": "Be brief."}
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
TURNS = "{%- for m in messages %}" + TURN + "{% endfor -%}"
OPEN = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
ENDS = "messages[-1].role != 'assistant' and not add_generation_prompt"
# The system text goes into the last question, and is gone once that is answered.
MOVED = (
    "{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}{% for m in rest %}"
    "{%- if m.role == 'user' %}[INST] "
    "{% if loop.last and rest != messages %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor -%}"
)


@pytest.fixture(scope="module")
def pocket():
    return tokenization.load(str(FOLDER / "model"))[0]


def encode(tokenizer, turns, jinja=None, **named):
    if jinja:
        tokenizer.chat_template = jinja
    return encoding.encode([{"messages": turns}], tokenizer, templates.get("tokenizer", tokenizer), 4096, **named)[0][0]


def trained(example, tokenizer):
    return tokenizer.decode([token for token in example["labels"] if token != lengths.IGNORE_INDEX])


@pytest.mark.parametrize("condition", ["messages[0].role != 'system'", ENDS, f"messages[0].role != 'system' or {ENDS}"])
def test_a_template_with_a_condition_takes_rows_that_meet_it(pocket, condition):
    jinja = "{%- if " + condition + " %}{{ raise_exception('not so') }}{% endif -%}" + TURNS + OPEN
    turns = [SYSTEM, ASK, NO, MORE, YES]
    example = encode(pocket, turns, jinja)
    assert example["input_ids"] == pocket.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert trained(example, pocket) == "It is not.<|im_end|>It is, yes.<|im_end|>"
    ends = generation.stop_conditions(pocket, templates.get("tokenizer", pocket))
    assert pocket.convert_tokens_to_ids("<|im_end|>") in ends.ids
    if "system" in condition:
        with pytest.raises(UserError, match="row 1: the template refuses this conversation: not so"):
            encode(pocket, turns[1:])


def test_a_system_text_that_an_answer_drives_away_is_named(pocket):
    with pytest.raises(
        UserError, match="leaves out the system text once it is answered; put it into the first question"
    ):
        encode(pocket, [SYSTEM, ASK, NO], MOVED)
    assert trained(encode(pocket, [ASK, NO, MORE, YES], MOVED), pocket).count("<|endoftext|>") == 2


@pytest.mark.parametrize("name", ["cohere", "cohere2"])
@pytest.mark.parametrize("special", [True, False])
def test_a_turn_trains_to_its_last_token(name, special):
    """Whether or not the tokenizer calls its control tokens special; TRL's training template is the oracle."""
    from trl.chat_template_utils import get_training_chat_template

    tokenizer = made(sources()[name], special)
    tokenizer.eos_token = "<|END_OF_TURN_TOKEN|>"
    example = encode(tokenizer, [ASK, NO, MORE, YES])
    theirs = tokenizer.apply_chat_template(
        [ASK, NO, MORE, YES], chat_template=get_training_chat_template(tokenizer), return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert example["input_ids"] == theirs["input_ids"]
    assert [int(label != lengths.IGNORE_INDEX) for label in example["labels"]] == theirs["assistant_masks"]


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "lfm2"])
def test_a_call_beside_text_that_names_it_is_not_lost(name):
    said = {"role": "assistant", "content": "I will ask weather now.", "tool_calls": [call()]}
    for turns in ([ASK, said], [ASK, said, TOOL, YES]):
        with pytest.raises(UserError, match="row 1: the template leaves out a call of turn 2"):
            encode(made(sources()[name]), turns)


def test_arguments_that_a_template_leaves_out_are_a_lost_call(pocket):
    jinja = TURNS.replace("m.content", "m.content + (m.tool_calls[0].function.name if m.tool_calls else '')") + OPEN
    with pytest.raises(UserError, match="leaves out a call of turn 2"):
        encode(pocket, [ASK, {"role": "assistant", "content": "", "tool_calls": [call()]}, TOOL, YES], jinja)


@pytest.mark.parametrize("name", ["gptoss", "gemma4"])
def test_developers_instruct_where_the_template_knows_them(name):
    tokenizer = made(sources()[name])
    turns = [{**SYSTEM, "role": "developer"}, ASK, NO]
    example = encode(tokenizer, turns)
    assert example["input_ids"] == tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert "Be brief." in tokenizer.decode(example["input_ids"]) and "Be brief." not in trained(example, tokenizer)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_8"])
def test_developers_are_refused_where_it_does_not(name):
    with pytest.raises(UserError, match="system"):
        encode(made(sources()[name]), [{**SYSTEM, "role": "developer"}, ASK, NO])


def test_markers_that_miss_a_turn_are_not_believed(pocket):
    """transformers counts wrongly where the stretch is rendered inside a block that is kept for later."""
    kept = "{%- set said %}" + TURN.replace("+ m.content + '<|im_end|>\n' }}", "}}{% generation %}{{ m.content }}")
    jinja = "{%- for m in messages %}" + kept + "{{ '<|im_end|>' }}{% endgeneration %}{% endset %}{{ said + '\n' }}"
    example = encode(pocket, [ASK, NO, MORE, YES], jinja + "{% endfor -%}" + OPEN)
    assert trained(example, pocket) == "It is not.<|im_end|>It is, yes.<|im_end|>"


def test_texts_that_a_template_changes_are_refused(pocket):
    for change, says in (("| upper", "changes the text of turn 1"), ("[:4]", "leaves out text of turn 2")):
        with pytest.raises(UserError, match=re.escape(says) + "|leaves out"):
            encode(pocket, [ASK, NO], TURNS.replace("m.content", f"(m.content {change})") + OPEN)


def test_ends_of_letters_train(pocket):
    """A template whose end of a turn is no token of the tokenizer: the model must write it, and then its end token."""
    jinja = TURNS.replace("<|im_end|>", "###END###") + OPEN
    assert (
        trained(encode(pocket, [ASK, NO, MORE, YES], jinja), pocket)
        == "It is not.###END###It is, yes.###END###<|endoftext|>"
    )
