"""Chat templates are programs of strangers: whatever one does is one plain message, within seconds and gigabytes."""

import ast
import json
import resource
import signal
import time

import pytest
from paths import ROOT

from tunebook.common.errors import UserError
from tunebook.common.tokens import sandbox
from tunebook.common.tokens.jinja_templates import JINJA, JinjaTemplate, Unstable, tokens_of

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "writes": "{% for i in range(99999) %}{% for j in range(99999) %}yyyyyyyyyyyyyyyyyyyy{% endfor %}{% endfor %}",
    "repeats": "{{ 'x' * 10**10 }}",
    "doubles": "{% set n=namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "squares": "{% set n=namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "fills %": "{{ '%9999999999d' % 1 }}",
    "fills format": "{{ '{:>9999999999}'.format(1) }}",
    "centers": "{{ 'x'|center(10000000000) }}",
    "justifies": "{{ 'x'.ljust(10 ** 9) }}",
    "indents": "{{ ('x\n' * 100000)|indent(1000000) }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "lipsum": "{{ lipsum(n=10000000) }}",
}
WRONG = {
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "division": "{{ 1 / 0 }}",
    "undefined": "{{ nothing.at.all }}",
    "types": "{{ 'abc'|int + 'abc' }}",
    "raises": "{{ raise_exception('no') }}",
    "reads": "{% include '/etc/passwd' %}",
    "imports": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "changes": "{{ messages.append(1) }}",
    "json": "{{ self|tojson }}",
}


def limits():
    return resource.getrlimit(resource.RLIMIT_AS), signal.getitimer(signal.ITIMER_VIRTUAL)


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_refused_in_seconds(name, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    before, start = limits(), time.process_time()
    with pytest.raises(UserError, match=r"the template mine cannot be used: it .*choose another"):
        JinjaTemplate("mine", ENDLESS[name]).render(TURNS, None)
    assert time.process_time() - start < 30 and limits() == before  # of what would never end


@pytest.mark.parametrize("name", WRONG)
def test_what_fails_is_told(name):
    with pytest.raises(Unstable, match="the template refuses this conversation: "):
        JinjaTemplate("mine", WRONG[name]).render(TURNS, None)


@pytest.mark.parametrize("text", ["{% for %}", "(" * 3 + "{{ " + "(" * 3000, "{% for a in b %}" * 40, "{% nothing %}"])
def test_what_is_no_template_is_told(text, tokenizer):
    with pytest.raises(UserError, match="--template mine is not a Jinja template"):
        tokens_of(tokenizer, text, "mine")


def test_a_long_conversation_has_more_time_and_is_refused_by_its_row(monkeypatch):
    turns = [{"role": "user", "content": "q" * sandbox.PART * 2}, TURNS[1]]
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    slow = "{% for i in range(3000) %}{% for j in range(SIZE) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError):
        JinjaTemplate("mine", slow.replace("SIZE", "3000")).render(TURNS, None)
    with pytest.raises(Unstable, match="cannot write so long a conversation"):
        JinjaTemplate("mine", slow.replace("SIZE", "99999")).render(turns, None)


def test_the_text_and_its_marks_are_those_of_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    breaks = "{% for m in messages %}\n  {{ m.content }}{% if loop.first %}{% continue %}{% endif %}!{% endfor %}"
    for jinja in (*JINJA.values(), breaks):
        tokens = {"bos_token": "<s>", "end_of_turn": "</s>"}
        more = dict(tools=[{"name": "é", "parameters": {"<b>": 1}}], add_generation_prompt=True)
        mine = JinjaTemplate("mine", jinja, tokens)
        turns = [*TURNS, *TURNS]
        theirs = render_jinja_template([turns], chat_template=jinja, **tokens, **more)[0][0]
        assert mine.render(turns, more["tools"], open_turn=True) == theirs
        if "endgeneration" in jinja:
            texts, marks = render_jinja_template(
                [turns], chat_template=jinja, return_assistant_tokens_mask=True, **tokens
            )
            text, spans = mine.generated(turns, None, {})
            assert (text, spans) == (texts[0], [tuple(pair) for pair in marks[0]])


def test_templates_that_transformers_renders_are_bounded(tokenizer, monkeypatch):
    words = dict(tools=[{"name": "é"}], add_generation_prompt=True, return_dict=False, bos_token="<s>")
    for jinja in JINJA.values():
        words |= {"chat_template": jinja, "end_of_turn": "</s>"}
        theirs = tokenizer.apply_chat_template(TURNS[:1], **words)
        assert sandbox.apply_chat_template(tokenizer, TURNS[:1], **words) == theirs
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    before = limits()
    for jinja in (ENDLESS[name] for name in ("loops", "writes", "repeats", "power", "fills format")):
        with pytest.raises(sandbox.OutOfBounds):
            sandbox.apply_chat_template(tokenizer, TURNS, chat_template=jinja)
    assert limits() == before


def test_no_template_is_rendered_in_another_way():
    files = [path for folder in ("common", "evals", "recipes") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="sandbox"), attr="apply_chat_template")):
                    continue
                case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")))):
                    continue  # of lm-eval, within the bounds
                case ast.Call(func=ast.Attribute(attr="apply_chat_template" | "render_jinja_template")):
                    assert path.name == "sandbox.py", f"{path}:{node.lineno}"


def test_a_template_that_never_ends_is_one_message(tunebook, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    (tmp_path / "mine.jinja").write_text(ENDLESS["loops"] + JINJA["chatml"])
    code, _, err = tunebook("inspect", tmp_path / "rows.jsonl", "--template", tmp_path / "mine.jinja")
    assert code == 2 and err.startswith("error: the template") and "does not come to an end" in err, err
