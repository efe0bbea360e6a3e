"""Problems of a row: each found where it is planted, none found in ordinary rows, among them ones that look odd."""

import pytest

from tunebook.common.data import quality
from tunebook.common.errors import UserError


def _row(instruction="Name a fruit that is red.", output="An apple is red.", text=""):
    return {"instruction": instruction, "input": text, "output": output, "row": 1, "source": "x"}


def _chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = [
    _row(),
    _row("What is 3 + 4?", "7"),
    _row("Écris «MAÇÃ» et «CAFÉ».", "«MAÇÃ», «CAFÉ» voilà\u00a0» âge, Ñandú, français"),
    _row("Как дела?", "Хорошо, спасибо. Ñ Ð"),
    _row("请介绍一下你自己。", "我是一个助手。"),
    _row("Xin chào, bạn khỏe không?", "Tôi khỏe, cảm ơn. Ồ, ÂM NHẠC"),
    _row("Write a smile.", "🙂👍🏽 👩‍👩‍👧"),
    _row("Write code.", "```python\nprint(1)\n```\n\tdone\r\n"),
    _row("Is there none left?", "There is none left."),
    _row("Write it in capitals.", "THE SUN SHONE.", "the sun shone."),
    {"prompt": "2 + 2 =", "completion": " 4"},
    _chat(("system", ""), ("user", "Hi"), ("assistant", "Hello!")),
    {"messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
]


@pytest.mark.parametrize("row", GOOD)
def test_good_rows(row):
    assert quality.examine(row) == []


BAD = [
    (_row(output=" \n"), ["empty_output"]),
    (_row(" ", "An apple."), ["empty_instruction"]),
    ({"prompt": "", "completion": "a"}, ["empty_instruction"]),
    ({"prompt": "Say it.", "completion": ""}, ["empty_output"]),
    (_chat(("user", ""), ("assistant", "Hello!")), ["empty_instruction"]),
    (_chat(("user", "Hi"), ("assistant", ""), ("user", "Hello?"), ("assistant", "Yes?")), ["empty_output"]),
    (_row(output="null"), ["null_text"]),
    (_row(text="<noinput>"), ["null_text"]),
    (_row(output="NaN"), ["null_text"]),
    (_row("Name\x00 a fruit."), ["control_characters"]),
    (_row(output="An apple\x9d."), ["control_characters"]),
    (_row(output="A cafÃ© in Paris."), ["encoding_damage"]),
    (_row(output="Itâ€™s red."), ["encoding_damage"]),
    (_row(output="The costÂ\u00a0is 5."), ["encoding_damage"]),
    (_row(output="a smile ðŸ™‚"), ["encoding_damage"]),
    (_row(output="Ð¿Ñ€Ð¸Ð²ÐµÑ‚"), ["encoding_damage"]),
    (_row(output="ä½ å¥½ä¸–ç•Œ".replace(" ", "\u00a0")), ["encoding_damage"]),
    (_row(output="An \ufffdpple."), ["encoding_damage"]),
    (_row(output="An \ud83d apple."), ["encoding_damage"]),
    (_row("?", "An apple."), ["too_short"]),
    (_row(output="An apple. " + "abcdefghij klmnop " * 5 + "".join(map(str, range(9000)))), ["too_long"]),
    (_row(output="I like red apples. " * 60), ["repeated_text"]),
    (_row(output="```python\nprint(1)\n"), ["open_code_fence"]),
    (_row("Say that it is red.", "Say that it is red."), ["echo"]),
    (_row("Repeat.", "the river", "the river"), ["echo"]),
    (_chat(("user", "\x01Hi"), ("assistant", "  ")), ["control_characters", "empty_output"]),
]


@pytest.mark.parametrize(("row", "problems"), BAD)
def test_bad_rows(row, problems):
    assert quality.examine(row) == problems


@pytest.mark.parametrize(
    "text", ["café naïve", "It’s “5 €” – or…", "你好世界", "Привет", "ÃÂ", "日本語のテキスト", "🙂 ok"]
)
def test_damage_is_found_in_every_text_that_was_read_as_windows_1252(text):
    damaged = "".join(bytes([byte]).decode("cp1252", "replace").replace("\ufffd", chr(byte)) for byte in text.encode())
    assert "encoding_damage" in quality.examine(_row(output=damaged))


def test_limits():
    assert quality.examine(_row("Go on.", "Yes."), shortest=7) == ["too_short"]
    assert quality.examine(_row("Go on.", "Yes."), longest=9) == ["too_long"]
    assert quality.examine(_row("Go on.", "Yes."), shortest=6, longest=10) == []


def test_every_problem_is_explained():
    assert {name for _, names in BAD for name in names} <= quality.EXPLAIN.keys()


def test_language():
    assert quality.language("The weather was fine, and we walked along the river until the evening came.")[0] == "en"
    code, probability = quality.language("Das Wetter war schön, und wir gingen am Fluss entlang, bis es Abend wurde.")
    assert code == "de" and 0.9 < probability <= 1


def test_rows_in_another_language():
    german = "Nenne bitte eine rote Frucht, die im Herbst in unserem Garten wächst."
    rows = [
        _row(),
        _row(german, "Der Apfel."),
        _row("Ja?", "Oui."),
        _row(output="Ceci est une pomme rouge qui vient de notre jardin."),
    ]
    rows = [{**row, "row": place, "source": "a"} for place, row in enumerate(rows, 1)]
    found, _ = quality.search(rows, language="en")
    assert [place["row"] for place in found["not_en"]["first"]] == [2, 4]
    with pytest.raises(UserError, match="'english' is not known; these are: "):
        quality.speaks(_row(), "english")
