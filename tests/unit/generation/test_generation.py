"""Answers: batched equals alone, streamed equals whole, every decoding against transformers' own, ends that end."""

import json
import threading

import pytest
import torch
from paths import LACKING, TOKENIZERS
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunebook.common import generation
from tunebook.common.errors import UserError
from tunebook.common.generation import Answer, StopConditions, generate, stop_conditions, stream
from tunebook.common.generation.decoding import Decoding, GumbelSampler
from tunebook.common.generation.streaming import IncrementalDecoder, before_stop
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import rendering, templates
from tunebook.common.tokens.templates import ALPACA, PLAIN, Template

SAMPLED = Decoding(max_new_tokens=16, temperature=0.9, top_p=0.95, top_k=40, seed=3)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Of 6 to 60 tokens, in no order of length."""
    rows = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text().splitlines()][::28]
    alpaca, plain = (rendering.prompts(tokenizer, template, rows) for template in (ALPACA, PLAIN))
    return [ids for pair in zip(alpaca, plain, strict=True) for ids in pair]


@pytest.mark.parametrize(
    "decoding", [Decoding(max_new_tokens=16), SAMPLED, Decoding(max_new_tokens=12, num_beams=3)], ids=lambda d: d.line()
)
def test_batched_equals_alone(model, tokenizer, prompts, decoding):
    assert len({len(ids) for ids in prompts}) > 10 and len(prompts) > 40
    together = generate(model, tokenizer, prompts, decoding, batch_size=len(prompts))
    backwards = generate(model, tokenizer, prompts[::-1], decoding, batch_size=7)[::-1]
    alone = [generate(model, tokenizer, [ids], decoding)[0] for ids in prompts[:16]]
    assert together == backwards and together[:16] == alone


@pytest.mark.parametrize("beams", [1, 4])
def test_greedy_and_beams_are_transformers_own(model, tokenizer, prompts, beams):
    for ids in prompts[:6]:
        found = generate(model, tokenizer, [ids], Decoding(max_new_tokens=12, num_beams=beams))[0].text
        out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, num_beams=beams)[0, len(ids) :]
        assert found == tokenizer.decode(generation.cut(out.tolist(), 0))


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0])
    rows, steps = 2000, 10
    noise = GumbelSampler(0, [[row] for row in range(rows)], width=1)
    drawn = torch.stack(
        [noise(torch.zeros(rows, 1 + step), logits.expand(rows, -1)).argmax(-1) for step in range(steps)]
    )
    expected = torch.softmax(logits.double(), -1)
    sigma = (expected * (1 - expected) / (rows * steps)).sqrt()
    found = torch.bincount(drawn.flatten(), minlength=5) / (rows * steps)
    assert ((found - expected).abs() < 4 * sigma).all(), (found, expected)
    first, second = drawn[0], drawn[1]  # one step tells nothing of the next
    together = ((first == 0) & (second == 0)).double().mean()
    assert abs(together - expected[0] ** 2) < 4 * (expected[0] ** 2 / rows).sqrt()


def test_seed_temperature_and_what_is_sampled_from(model, tokenizer, prompts):
    def texts(**values):
        return [answer.text for answer in generate(model, tokenizer, prompts[:12], Decoding(16, **values))]

    greedy = texts()
    assert texts(temperature=1.0, seed=1) == texts(temperature=1.0, seed=1) != texts(temperature=1.0, seed=2)
    assert texts(temperature=1.0) != greedy == texts(temperature=1.0, top_k=1) == texts(temperature=0.7, top_p=1e-6)
    assert texts(temperature=1e-4) == greedy
    assert texts(temperature=1.0, top_k=3) != texts(temperature=1.0)  # the same noise, on fewer tokens


def test_what_the_models_own_config_asks_for_is_left_out(model, tokenizer, prompts):
    """A repetition penalty or a temperature in generation_config.json would change greedy answers silently."""
    before = generate(model, tokenizer, prompts[:8], Decoding(12))
    own = model.generation_config
    model.generation_config = type(own)(**{**own.to_dict(), "repetition_penalty": 3.0, "suppress_tokens": [0, 5, 9]})
    try:
        changed = model.generation_config
        assert generate(model, tokenizer, prompts[:8], Decoding(12)) == before
        assert model.generation_config is changed
    finally:
        model.generation_config = own


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"temperature": -1}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": 1, "top_p": 1.2}, "top_p 1.2"),
        ({"temperature": 1, "top_p": 0}, "top_p 0"),
        ({"temperature": 1, "top_k": -1}, "top_k -1"),
        ({"top_p": 0.9}, "top_p with temperature 0"),
        ({"top_k": 5, "top_p": 0.9}, "top_p and top_k with temperature 0"),
        ({"temperature": 1, "num_beams": 2}, "search or sample"),
        ({"num_beams": 0}, "num_beams 0"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
    ],
)
def test_what_does_not_go_together_is_refused(values, says):
    with pytest.raises(UserError, match=says):
        Decoding(**values)


def test_streamed_equals_whole(model, tokenizer, prompts):
    for decoding in (Decoding(24), SAMPLED):
        for ids in prompts[:5]:
            *pieces, answer = stream(model, tokenizer, ids, decoding)
            assert [answer] == generate(model, tokenizer, [ids], decoding)
            assert "".join(pieces) == answer.text and all(pieces) and len(pieces) > 1
    with pytest.raises(UserError, match="beams cannot be streamed"):
        next(stream(model, tokenizer, prompts[0], Decoding(num_beams=2)))


def test_a_stream_that_is_left_stops_working(model, tokenizer, prompts):
    before, steps = set(threading.enumerate()), []
    counter = model.register_forward_hook(lambda *_: steps.append(1))
    pieces = stream(model, tokenizer, prompts[0], Decoding(400))
    assert next(pieces)
    (thread,) = set(threading.enumerate()) - before
    pieces.close()
    counter.remove()
    assert not thread.is_alive() and len(steps) < 100


def test_an_error_of_the_model_is_raised_where_the_stream_is_read(model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(stream(model, tokenizer, prompts[0]))


def test_ends_of_templates(tokenizer):
    assert stop_conditions(tokenizer) == StopConditions(frozenset({0}))
    assert stop_conditions(tokenizer, PLAIN) == StopConditions(frozenset({0}))
    assert stop_conditions(tokenizer, ALPACA) == StopConditions(frozenset({0}), ("\n### Instruction:",))
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for name in ("chatml", "tokenizer"):
        assert stop_conditions(tokenizer, templates.get(name, tokenizer)) == StopConditions(frozenset({0, turn}))
    assert stop_conditions(tokenizer, templates.get("llama3", tokenizer)) == StopConditions(
        frozenset({0})
    )  # it lacks <|eot_id|>


def test_an_answer_ends_before_the_next_question(model, tokenizer, prompts):
    """The untuned base never ends; it is stopped where it writes the heading, in a batch and in a stream."""
    heading = Template("t", without_input="\nThe {instruction}:", with_input="\nThe {instruction}:{input}")
    stop = stop_conditions(tokenizer, heading)
    assert stop.texts == ("\nThe",)
    whole = generate(model, tokenizer, prompts[:24], Decoding(48))
    found = generate(model, tokenizer, prompts[:24], Decoding(48), stop)
    ended = [answer for answer in found if answer.limit is None]
    assert len(ended) > 5
    for ids, answer, full in zip(prompts, found, whole, strict=False):
        assert answer.text == before_stop(full.text, stop.texts) and "\nThe" not in answer.text
        assert (answer.limit is None) == ("\nThe" in full.text or full.limit is None)
        if answer in ended[:3]:
            *pieces, streamed = stream(model, tokenizer, ids, Decoding(48), stop)
            assert "".join(pieces) == answer.text and streamed == answer


def test_an_answer_that_was_cut_says_so(model, tokenizer, prompts):
    assert generate(model, tokenizer, prompts[:1], Decoding(3))[0].note == "(cut at 3 tokens)"
    assert Answer("whole").note == ""
    long = (prompts[0] * 20)[:500]
    short, cut = generate(model, tokenizer, [prompts[1], long], Decoding(40))
    assert cut.limit == 12  # positions of the model: 512
    assert short == generate(model, tokenizer, prompts[1:2], Decoding(40))[0]
    with pytest.raises(UserError, match="512"):
        generate(model, tokenizer, [(prompts[0] * 20)[:512]])


def test_the_model_is_left_as_it_was(model, tokenizer, prompts):
    model.train()
    generate(model, tokenizer, prompts[:2], Decoding(2))
    assert model.training
    model.eval()
    list(stream(model, tokenizer, prompts[0], Decoding(2)))
    assert not model.training
    assert generate(model, tokenizer, []) == [] == generation.answers(model, tokenizer, [])


def test_samples_of_a_recipe(model, tokenizer):
    rows = [{"instruction": f"Add {n} and 1.", "input": "", "output": str(n + 1)} for n in range(10)]
    samples = generation.Samples(tokenizer, ALPACA, rows, count=3)
    samples.take("before", model)
    assert [row["reference"] for row in samples.rows] == ["1", "4", "7"]
    assert all(row["before"] and row["after"] is None for row in samples.rows)
    assert samples.answers(model, 1)[0] == samples.rows[0]["before"]
    assert samples.rows[0]["before"].endswith("(cut at 64 tokens)")  # the untuned base does not end
    assert len(generation.answers(model, tokenizer, [[5, 6], [7]], max_new_tokens=4)) == 2


HOSTILE = "Zoë sagt: «naïve» 🤷🏽‍♀️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 中文字符 हिन्दी עברית\n\n\tx  y   z \ufffd end"


def pieces_of(tokenizer, ids, stops=()):
    pieces = IncrementalDecoder(tokenizer, stops)
    return [*(pieces.add(token) for token in ids), pieces.end()]


def test_pieces_are_whole_characters(tokenizer):
    ids = tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
    found = pieces_of(tokenizer, ids)
    assert "".join(found) == HOSTILE and len([piece for piece in found if piece]) > 20
    assert sum(piece.count("\ufffd") for piece in found) == 1  # the one of the text itself
    cut = tokenizer("🤷", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(pieces_of(tokenizer, cut)) == tokenizer.decode(cut)  # half a character at the end is not lost


def test_nothing_of_a_stop_text_is_shown(tokenizer):
    stops = ("\n### Instruction:",)
    for text in ("one\n### two\n##", "one\n### Instruction: two", "\n### Instruction:", "a\n### Instruction"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = pieces_of(tokenizer, ids, stops)
        assert "".join(found) == before_stop(text, stops)
    assert before_stop("a b c", ("c", "b")) == "a "


@pytest.mark.real_data
def test_pieces_and_ends_on_real_tokenizers():

    folder = TOKENIZERS
    if not folder.exists():
        pytest.skip(LACKING)
    names = [path for path in sorted(folder.iterdir()) if (path / "tokenizer.json").exists()]
    seen = 0
    for path in names:
        if "broken" in path.name or "deepseek" in path.name:  # they do not load as they should
            continue
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
        found = pieces_of(tokenizer, ids)
        assert "".join(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False), path.name
        assert len([piece for piece in found if piece]) > 15, path.name
        if isinstance(tokenizer.chat_template, str):
            turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
            text = tokenizer.apply_chat_template(turn, tokenize=False)
            stop = stop_conditions(tokenizer, templates.get("tokenizer", tokenizer))
            after = text[text.rindex("y") + 1 :].lstrip()
            assert any(after.startswith(tokenizer.convert_ids_to_tokens(token)) for token in stop.ids), path.name
        seen += 1
    assert seen >= 7


def test_samples_are_rows_whose_prompt_has_room(tokenizer):
    long = {"instruction": "word " * 600, "input": "", "output": "x"}
    rows = [long, *({"instruction": f"Name {n}.", "input": "", "output": "x"} for n in range(3)), long, long]
    samples = generation.Samples(tokenizer, ALPACA, rows, count=2, positions=512)
    assert [row["prompt"] for row in samples.rows] == [ALPACA.prompt(row) for row in rows[1:3]]
    assert len(generation.Samples(tokenizer, ALPACA, rows, count=2).rows) == 2  # no limit is known
    assert generation.Samples(tokenizer, ALPACA, [long], count=2, positions=512).rows == []
