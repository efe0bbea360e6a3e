"""Flags, config files and overrides: unknown names are refused with the nearest real one."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from tunebook.common import cli, errors
from tunebook.common.run_folder import output_dir


@dataclass
class Args:
    model: str = "pocket"
    learning_rate: float | None = None
    max_steps: int = -1
    overwrite: bool = False
    set: list[str] = field(default_factory=list)


@dataclass
class Config:
    warmup_steps: float = 0
    neftune_noise_alpha: float | None = None
    optim: str = "adamw"
    learning_rate: float = 0.1


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning-rate: 2e-4\nmax_steps: 7\nsft: [a=b]\noverwrite: true\n")
    args = cli.parse(Args, ["--config", str(path), "--max-steps", "9"])
    assert (args.learning_rate, args.max_steps, args.set, args.overwrite) == (2e-4, 9, ["a=b"], True)
    assert cli.parse(Args, [f"--config={path}"]).max_steps == 7
    assert (
        cli.parse(Args, ["--set", "a=--sft", "b=1"]).set
        == cli.parse(Args, ["--sft", "a=--sft", "b=1"]).set
        == ["a=--sft", "b=1"]
    )
    path.write_text("set: [a=b]\n")
    assert cli.parse(Args, ["--config", str(path)]).set == ["a=b"]


@dataclass
class Distilled:
    load_in_4bit: bool = False
    teacher_load_in_4bit: bool = False


@dataclass
class Tuned:
    adapter: str | None = None
    load_in_4bit: bool = False


@pytest.mark.parametrize(
    ("word", "bits"),
    [("none", (False, False)), ("student", (True, False)), ("teacher", (False, True)), ("both", (True, True))],
)
def test_whose_weights_are_in_four_bits_by_its_older_word(word, bits, tmp_path):
    (tmp_path / "run.yaml").write_text(f"four_bit: {word}\n")
    for words in (["--four_bit", word], [f"--four-bit={word}"], ["--config", str(tmp_path / "run.yaml")]):
        args = cli.parse(Distilled, words)
        assert (args.load_in_4bit, args.teacher_load_in_4bit) == bits


def test_older_spellings_of_other_flags(tmp_path):
    assert cli.parse(Tuned, ["--four_bit", "--adapter", "none"]) == Tuned(None, True)
    assert cli.parse(Tuned, ["--four-bit", "--no-four_bit", "--adapter", ""]) == Tuned(None, False)
    (tmp_path / "run.yaml").write_text("four_bit: true\nadapter: runs/x\n")
    assert cli.parse(Tuned, ["--config", str(tmp_path / "run.yaml")]) == Tuned("runs/x", True)
    with pytest.raises(cli.UserError, match="--four_bit all: it is none, teacher, student or both"):
        cli.parse(Distilled, ["--four_bit", "all"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1", "nearest is learning_rate"),
        ("learning_rate: fast", r"learning_rate: 'fast' is not of type float \| None"),
        ("max_steps: many", "max_steps: 'many' is not of type int"),
        ("max_steps: 1.5", "not of type int"),
        ("overwrite: 3", "not of type bool"),
        ("- a", "expected lines of"),
        ("a: [", "not YAML"),
    ],
)
def test_bad_config_files(tmp_path, text, says):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(errors.UserError, match=says):
        cli.parse(Args, ["--config", str(path)])


def test_help_says_flags_as_they_are_written_and_no_empty_default(capsys):
    @dataclass
    class Some:
        words: list[str] = field(default_factory=list)  # some words
        some_text: str | None = None  # default: none
        name: str = ""  # a name
        count: int | None = None  # how many
        kinds: list[str] = field(default_factory=lambda: ["a", "b"])  # which

    with pytest.raises(SystemExit) as ended:
        cli.run(print, Some, ["--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "--some_text STR" in out and "--count INT" in out and "--words STR ..." in out
    assert "(default: a b)" in out and "default: )" not in out and "default: None" not in out and "''" not in out
    assert "\n\n\n" not in out
    parsed = cli.parse(Some, ["--some-text", "x", "--count", "3", "--words", "a", "b", "--kinds"])
    assert parsed == Some(["a", "b"], "x", "", 3, [])
    assert cli.parse(Some, ["--some_text", "None", "--count", "None"]) == Some()
    with pytest.raises(SystemExit):
        cli.parse(Some, ["--count", "many"])


def test_what_a_recipe_has_in_its_text_is_named(capsys):
    @dataclass
    class Recipe:
        SEVERAL_PROCESSES: ClassVar[bool] = True  # as all options of recipes say
        eval_suite: str = ""

    with pytest.raises(SystemExit) as ended:
        cli.run(print, Recipe, ["--template", "chatml"])
    assert ended.value.code == 2 and "tunebook cp" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.run(print, Args, ["--templat", "chatml"])
    assert "tunebook cp" not in capsys.readouterr().err


def test_unknown_flag_ends_with_2(capsys):
    with pytest.raises(SystemExit) as error:
        cli.run(print, Args, ["--learning_rte", "1"])
    assert error.value.code == 2
    assert "learning" in capsys.readouterr().err


def test_overrides():
    pairs = ["warmup_steps=20", "neftune_noise_alpha=5e0", "optim=no"]  # a word that YAML reads as false
    assert cli.values(pairs, Config, {"learning_rate"}) == {
        "warmup_steps": 20,
        "neftune_noise_alpha": 5.0,
        "optim": "no",
    }


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("warmup_step=2", "nearest is warmup_steps"),
        ("warmup_steps", "expected NAME=VALUE"),
        ("learning_rate=1", "has a flag for it, --learning_rate 1"),
        ("warmup_steps=soon", "is not a number"),
    ],
)
def test_bad_overrides(pair, says):
    with pytest.raises(errors.UserError, match=says):
        cli.values([pair], Config, {"learning_rate"})


@pytest.mark.parametrize("name", ["eos_token", "chat_template_path"])
def test_what_would_save_another_template_than_trains_is_refused(name, capsys):
    with pytest.raises(SystemExit) as error:
        cli.run(lambda args: pytest.fail("it began"), Args, ["--sft", "optim=no", f"{name}=x"])
    assert error.value.code == 2 and f"--set {name}: it would change what is saved" in capsys.readouterr().err


def test_a_finished_run_is_not_written_over(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(errors.UserError, match="finished run"):
        output_dir.prepare(str(tmp_path), overwrite=False, marker="report.json")
    assert (tmp_path / "report.json").exists()
    assert output_dir.prepare(str(tmp_path), overwrite=True, marker="report.json") == tmp_path


@pytest.mark.parametrize(
    ("error", "code", "prefix"),
    [(errors.UserError("x"), 2, "error: x"), (errors.CheckFailed("y"), 1, "check failed: y")],
)
def test_exit_codes(error, code, prefix, capsys):
    def main(args):
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(main, Args, [])
    assert stopped.value.code == code and capsys.readouterr().err.strip() == prefix
