"""Files of --config: whatever is in one is taken as the flag's type, or refused in one message with its name."""

from dataclasses import dataclass, field

import pytest

from tunebook.common import cli
from tunebook.common.errors import UserError


@dataclass
class Args:
    model: str = "pocket"
    output_dir: str | None = None
    learning_rate: float | None = None
    max_steps: int = -1
    resume: bool = True
    dataset: list[str] = field(default_factory=lambda: ["pocket"])


def parsed(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return cli.parse(Args, ["--config", str(path)])


@pytest.mark.parametrize(("text", "says"), [
    ("model: [a]", r"model: \"\['a'\]\" is not of type"), ("model: null", "model: 'None' is not of type"),
    ("model: {a: 1}", "model: .* is not of type"), ("max_steps: true", "max_steps: 'True' is not of type int"),
    ("max_steps: 1e400", "max_steps"), ("max_steps: .nan", "max_steps"), ("max_steps: null", "max_steps"),
    ("learning_rate: true", "learning_rate"), ("learning_rate: [1]", "learning_rate"), ("resume: 1", "resume"),
    ("dataset: {a: 1}", "dataset"), ("dataset: [[a]]", "dataset"), ("dataset: [null]", "dataset"),
    ("dataset: null", "dataset"), ("output_dir: [a]", "output_dir"), ("1: 2", "1: there is no such flag"),
    ("seed: 1\n---\nseed: 2", "is not YAML"), ("model: !!python/name:os.system", "is not YAML"),
    ("model: " + "[" * 3000, "is not YAML"), (b"model: \xff", "is not UTF-8 text: .* at byte 7"),
    ("model: 1".encode("utf-16"), "is not UTF-8 text"), ("hello", "expected lines of"),
])  # fmt: skip
def test_values_of_another_type(text, says, tmp_path):
    with pytest.raises(UserError, match=f"(?s)--config .*run.yaml.*{says}") as error:
        parsed(tmp_path, text)
    assert len(str(error.value)) < 600


def test_values_that_are_meant(tmp_path):
    args = parsed(tmp_path, "dataset: 5\nlearning_rate: 2e-4\nmax_steps: 7\noutput_dir: null\nmodel: 5\n")
    assert args == Args("5", None, 2e-4, 7, True, ["5"])
    assert parsed(tmp_path, "dataset: [a, 2]\n").dataset == ["a", "2"]
    assert parsed(tmp_path, b"\xef\xbb\xbfmax_steps: 3").max_steps == 3
