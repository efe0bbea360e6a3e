"""Code planted where only data belong. It leaves a file, MARK, in the test's folder when it runs."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from unittest.mock import patch

from tunebook.common.pocket import FOLDER

SYSTEM = "os.system('touch MARK')"
# Past a sandbox that is off. MARK becomes the path of the file.
TEMPLATES = {
    "lipsum": "{{ lipsum.__globals__['os'].system('touch MARK') }}",
    "cycler": "{{ cycler.__init__.__globals__." + SYSTEM + " }}",
    "joiner": "{{ joiner.__init__.__globals__.os.popen('touch MARK').read() }}",
    "namespace": "{{ namespace.__init__.__globals__.__builtins__.__import__('os').system('touch MARK') }}",
    "the attr filter": "{{ ((lipsum|attr('__globals__')).get('os')|attr('system'))('touch MARK') }}",
    "a variable": "{% set os = cycler.__init__.__globals__.os %}{{ os.system('touch MARK') }}",
    "a condition": "{% if cycler.__init__.__globals__." + SYSTEM + " == 0 %}{% endif %}",
    "a macro": "{% macro m() %}{{ cycler.__init__.__globals__." + SYSTEM + " }}{% endmacro %}{{ m() }}",
}
CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>\n{% endfor %}"


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def as_torch(path: Path, mark: Path) -> None:
    import torch

    torch.save({"state": Evil(mark)}, path)


def as_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"state": Evil(mark)}, protocol=2))


def python(mark: Path) -> str:
    return f"import os\nos.system('touch {mark}')\n"


def jinja(name: str, mark: Path) -> str:
    """A chat template with one of TEMPLATES."""
    return TEMPLATES[name].replace("MARK", str(mark)) + CHAT


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def model(folder: Path, mark: Path, **config: object) -> Path:
    """The bundled model with code of its own beside it; `config` is what its config names of that."""
    shutil.copytree(FOLDER / "model", folder)
    classes = {
        "configuration": "from transformers import LlamaConfig as Evil\n",
        "modeling": "from transformers import LlamaForCausalLM as Evil\n",
        "tokenization": "from transformers import PreTrainedTokenizerFast as Evil\n",
    }
    for name, text in classes.items():
        (folder / f"{name}_evil.py").write_text(python(mark) + text)
    change(folder / "config.json", **config)
    return folder


@contextlib.contextmanager
def unprotected(monkeypatch):
    """Inside, what holds code back is off, so that a trap which is one runs."""
    import torch
    import yaml
    from transformers.models.auto import auto_factory, configuration_auto, tokenization_auto

    from tunebook.evals.harness import catalog

    load = torch.load
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with contextlib.ExitStack() as off:
        for module in (auto_factory, configuration_auto, tokenization_auto):
            off.enter_context(patch.object(module, "resolve_trust_remote_code", lambda *_, **__: True))
        anything = lambda *args, **how: load(*args, **{**how, "weights_only": False})  # noqa: E731
        off.enter_context(patch.object(torch, "load", anything))
        off.enter_context(patch.object(yaml, "safe_load", yaml.unsafe_load))
        off.enter_context(patch.object(catalog, "no_local_metrics", contextlib.nullcontext))
        yield
