"""What does not leave this machine with a file that is shared: secrets, and where things lie on it."""

import os
import re
from pathlib import Path
from typing import Any

HIDDEN = "***"
# Names of secrets: hub_token, api_key, HF_TOKEN. Tokens of a tokenizer are none.
_NAMES = r"[\w-]*(?:token|api[_-]?key|access[_-]?key|private[_-]?key|secret|password|passwd|credentials?|authorization)"
_NAME = re.compile(_NAMES, re.I)
_TEXTS = re.compile(r"(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|stop)[_-]token", re.I)
# In a text: hub_token=..., and hub_token: ... as in JSON and YAML; "the end token: </s>" is a sentence.
_GIVEN = re.compile(
    rf"(?<![\w-])({_NAMES})(=|(?:(?<=[_-]token)|(?<=[_-]key)|(?<=_secret))['\"]?:\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;&}\])]+?(?=:?(?:[\s,;&}\])]|$)))",
    re.I,
)
# Secrets that their form gives away, whatever they are called.
_FORMS = re.compile(
    r"\b(?:hf_\w{8,}|sk-[\w-]{8,}|gh[oprsu]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|xox[abprs]-[\w-]{8,}|AKIA\w{12,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|(?<=Bearer )[\w.~+/-]{8,}=*"
)
_LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")  # http://user:password@host


def without_secrets(value: Any) -> Any:
    """A value as JSON holds them, or a text, with each secret replaced by ***. What has a secret's name and is no text
    stays: num_virtual_tokens, use_token."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if isinstance(inner, str) and inner and _secret(str(name)) else without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(inner) for inner in value]
    if not isinstance(value, str):
        return value
    value = _GIVEN.sub(lambda found: found[1] + found[2] + HIDDEN if _secret(found[1]) else found[0], value)
    return _LOGIN.sub(HIDDEN, _FORMS.sub(HIDDEN, value))


def _secret(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not _TEXTS.search(name)


def without_paths(value: Any, folder: Path | None = None) -> Any:
    """A value as JSON holds them, or a text, in which names are relative to the working directory, to the folder that a
    run's `folder` lies in, or to the home folder ($HOME, which a shell knows inside a word, too).

    The packages of tunebook, wherever they are installed, are below tunebook/.
    """
    if isinstance(value, dict):
        return {without_paths(name, folder): without_paths(inner, folder) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(inner, folder) for inner in value]
    if not isinstance(value, str):
        return value
    for place, name in _places(folder):
        value = re.sub(rf"(?<![\w.~/-]){re.escape(place)}/", name, value)
        value = re.sub(rf"(?<![\w.~/-]){re.escape(place)}(?![\w.-])", name.rstrip("/") or ".", value)
    return value


def _places(folder: Path | None) -> list[tuple[str, str]]:
    """Folders of this machine and what stands for each, the innermost first."""
    packages = [file.parents[2] for file in (Path(__file__), Path(__file__).resolve())]  # it may be a link
    named = {Path(os.path.expanduser("~")): "$HOME/", **dict.fromkeys(packages, "tunebook/"), Path.cwd(): ""}
    if folder is not None:
        named[folder.absolute().parent] = named[folder.resolve().parent] = ""
    places = {str(form): name for place, name in named.items() for form in (place, place.resolve())}
    known = [pair for pair in places.items() if pair[0] != os.sep and os.path.isabs(pair[0])]
    return sorted(known, key=lambda pair: -len(pair[0]))
