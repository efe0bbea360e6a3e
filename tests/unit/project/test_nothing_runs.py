"""Code in checkpoints, models, adapters, templates, settings and data. None of it runs, whatever stands on standard
input; with the protection off the same call runs it, so each is a trap."""

import contextlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import traps
from paths import ROOT

from tunebook.common.errors import UserError

ANSWERS = "y\nyes\ny\n" * 20  # to whatever asks


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that code which runs leaves."""
    from transformers import dynamic_module_utils

    # Code that is allowed to run is copied here first, and this becomes a place of modules.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO(ANSWERS))
    return tmp_path / "MARK"


def holds(mark, monkeypatch, call, proof=None):
    """Assert that `call` runs nothing, and that it does (or `proof`, for a file that it does not read) unprotected."""
    said = None
    try:
        call()
    except UserError as error:
        said = str(error)
    assert not mark.exists()
    with traps.unprotected(monkeypatch), contextlib.suppress(Exception):
        (proof or call)()
    assert mark.exists(), "this is no trap"
    return said


def unpickle(path):
    import torch

    torch.load(path, weights_only=False)


# --- checkpoints


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """(a checkpoint of the plain loop, what loads one)."""
    import torch
    from accelerate import Accelerator
    from transformers import get_scheduler

    from tunebook.common.training import checkpoints, metrics

    folder = tmp_path_factory.mktemp("loop")

    def saved():
        accelerator = Accelerator()
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = get_scheduler("cosine", optimizer, 1, 4)
        model, optimizer = accelerator.prepare(model, optimizer)
        found = metrics.TrainingMetrics(folder / "log.jsonl")
        found.peak.stop()
        return checkpoints.Checkpoints(accelerator, folder, schedule, found), model, schedule, optimizer

    first, model, schedule, optimizer = saved()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    first.save(model, 1, 0.5)

    def load(checkpoint):
        here, _, schedule, _ = saved()
        assert here.load(str(checkpoint)) == 1
        return schedule

    return folder / "checkpoint-1", load


def test_the_loop_resumes_without_pickles(loops):
    checkpoint, load = loops
    assert not list(checkpoint.glob("custom_checkpoint_*"))
    assert load(checkpoint).state_dict()["last_epoch"] == 1


LOOP = ("optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "scheduler.bin", "sampler.bin")


@pytest.mark.parametrize("write", [traps.as_torch, traps.as_pickle], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("name", LOOP)
def test_checkpoint_of_the_loop(loops, tmp_path, mark, monkeypatch, name, write):
    checkpoint, load = loops
    copy = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    write(copy / name, mark)
    read = name in ("optimizer.bin", "random_states_0.pkl")
    said = holds(mark, monkeypatch, lambda: load(copy), None if read else lambda: unpickle(copy / name))
    if name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        assert said and "--overwrite" in said and str(copy) in said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a checkpoint of transformers' Trainer, what resumes from one)."""
    import torch
    from transformers import Trainer, TrainingArguments

    from tunebook.common.training import resuming

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x, labels=None):
            return {"loss": ((self.layer(x) - labels) ** 2).mean()}

    folder = tmp_path_factory.mktemp("trainer")
    rows = [{"x": torch.ones(2), "labels": torch.zeros(1)}] * 4

    def trainer():
        options = dict(max_steps=3, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
        return Trainer(Model(), TrainingArguments(str(folder), **options, label_names=["labels"]), train_dataset=rows)

    trainer().train()
    return folder / "checkpoint-1", lambda checkpoint: resuming.train(trainer(), str(checkpoint))


TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")


@pytest.mark.parametrize("write", [traps.as_torch, traps.as_pickle], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("name", TRAINER)
def test_checkpoint_of_the_trainer(trained, tmp_path, mark, monkeypatch, name, write):
    checkpoint, resume = trained
    copy = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    write(copy / name, mark)
    read = name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    said = holds(mark, monkeypatch, lambda: resume(copy), None if read else lambda: unpickle(copy / name))
    assert not read or (said and "--overwrite" in said and str(copy) in said)


# --- models, tokenizers, adapters


def trap(auto=None, **config):
    return config | ({"auto_map": {kind: f"{file}_evil.Evil" for kind, file in auto.items()}} if auto else {})


MODELS = {
    "config": trap({"AutoConfig": "configuration"}),
    "config of an unknown type": trap({"AutoConfig": "configuration"}, model_type="evil"),
    "model": trap({"AutoModelForCausalLM": "modeling"}),
    "model of another folder": {"auto_map": {"AutoModelForCausalLM": "OTHER--modeling_evil.Evil"}},
}


@pytest.mark.parametrize("kind", MODELS)
def test_code_beside_a_model(tmp_path, mark, monkeypatch, kind):
    from tunebook.common.models import loading

    place = traps.model(tmp_path / "other", mark)
    config = json.loads(json.dumps(MODELS[kind]).replace("OTHER", str(place)))
    folder = traps.model(tmp_path / "model", mark, **config)
    said = holds(mark, monkeypatch, lambda: loading.load_plain(str(folder)))
    if "unknown" in kind:
        assert said and "never run" in said and "trust_remote_code" not in said


def test_code_that_a_model_answers_with(tmp_path, mark, monkeypatch):
    """A folder may bring a `generate` of its own."""
    from transformers import AutoModelForCausalLM

    from tunebook.common.models import loading

    folder = traps.model(tmp_path / "model", mark)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(traps.python(mark) + "def generate(model): pass\n")
    trusting = lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)  # noqa: E731
    assert holds(mark, monkeypatch, lambda: loading.load_plain(str(folder)), trusting) is None


@pytest.mark.parametrize("known", [True, False], ids=["of a known class", "of its own class"])
def test_code_beside_a_tokenizer(tmp_path, mark, monkeypatch, tunebook, known):
    kind = {} if known else {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    folder = traps.model(tmp_path / "model", mark, **kind)
    own = {} if known else {"tokenizer_class": "Evil"}
    traps.change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]}, **own)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    holds(mark, monkeypatch, lambda: tunebook("inspect", rows, "--tokenizer", folder, "--template", "chatml"))


def test_code_beside_a_model_that_is_chatted_with(tmp_path, mark, monkeypatch, tunebook):
    from tunebook.common.models import loading

    auto = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    folder = traps.model(tmp_path / "model", mark, model_type="evil", auto_map=auto)
    holds(mark, monkeypatch, lambda: tunebook("chat", "--model", folder), lambda: loading.load_plain(str(folder)))


@pytest.mark.parametrize("kind", ["planned", "scored", "compared by BERTScore"])
def test_code_beside_a_model_that_is(tmp_path, mark, monkeypatch, kind):
    import torch

    from tunebook.common.estimate import meta_model
    from tunebook.evals.harness import bertscore, scored_model

    folder = traps.model(tmp_path / "model", mark, **MODELS["config"])
    calls = {
        "planned": lambda: meta_model.meta_model(str(folder), torch.float32, False, False),
        "scored": lambda: scored_model.ScoredModel(str(folder), "").positions(),
        "compared by BERTScore": lambda: bertscore.BertScore(str(folder)),
    }
    holds(mark, monkeypatch, calls[kind])


@pytest.mark.parametrize("write", [traps.as_torch, traps.as_pickle], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "a shard"])
def test_weights_that_are_a_pickle(tmp_path, mark, monkeypatch, name, write):
    from tunebook.common.models import loading

    folder = traps.model(tmp_path / "model", mark)
    (folder / "model.safetensors").unlink()
    if name == "a shard":
        name = "pytorch_model-00001-of-00001.bin"
        index = {"metadata": {"total_size": 1}, "weight_map": {"model.embed_tokens.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    write(folder / name, mark)
    said = holds(mark, monkeypatch, lambda: loading.load_plain(str(folder)))
    assert said and str(folder) in said and "safetensors" in said


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, pocket):
    import copy

    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(pocket), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("write", [traps.as_torch, traps.as_pickle], ids=["torch.save", "pickle"])
def test_adapter_that_is_a_pickle(adapter, tmp_path, mark, monkeypatch, write):
    from tunebook.common.models import inference, loading

    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    write(folder / "adapter_model.bin", mark)
    said = holds(mark, monkeypatch, lambda: inference.load_adapter(loading.load_plain("pocket"), str(folder)))
    assert said and "nothing of it was run" in said


def test_adapter_that_names_a_module(adapter, tmp_path, mark, monkeypatch):
    from peft.tuners.lora import tp_layer

    from tunebook.common.models import inference, loading

    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("")
    (tmp_path / "evil" / "core.py").write_text(traps.python(mark))
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    traps.change(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil.core")

    def load():
        inference.load_adapter(loading.load_plain("pocket"), str(folder))

    def allowed():
        monkeypatch.setattr(tp_layer, "get_default_module_allowlist", lambda: ["evil"])
        load()

    assert holds(mark, monkeypatch, load, allowed)


# --- templates and settings


@pytest.mark.parametrize("name", traps.TEMPLATES)
@pytest.mark.parametrize("source", ["a file", "an adapter", "a tokenizer"])
def test_template(tmp_path, mark, monkeypatch, tokenizer, name, source):
    import jinja2

    from tunebook.common.tokens import templates
    from tunebook.common.tokens.jinja_templates import Unstable

    text = traps.jinja(name, mark)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]

    def render():
        with contextlib.suppress(Unstable):
            if source == "a file":
                (tmp_path / "t.jinja").write_text(text)
                found = templates.get(str(tmp_path / "t.jinja"), tokenizer)
            elif source == "an adapter":
                values = {"kind": "chat", "name": "x", "jinja": text, "tokens": {}}
                (tmp_path / templates.FILE).write_text(json.dumps(values))
                found = templates.load(tmp_path)
            else:
                monkeypatch.setattr(tokenizer, "chat_template", text)
                found = templates.get("tokenizer", tokenizer)
            found.render(turns, None)

    holds(mark, monkeypatch, render, lambda: jinja2.Environment().from_string(text).render(messages=turns))


TAGS = ("!!python/object/apply:os.system ['touch MARK']", "!!python/object/new:os.system ['touch MARK']")


@pytest.mark.parametrize("tag", TAGS, ids=["apply", "new"])
@pytest.mark.parametrize("place", ["--config", "--set", "a dataset card"])
def test_yaml(tmp_path, mark, monkeypatch, tag, place):
    import yaml
    from transformers import TrainingArguments

    from tunebook.common import cli
    from tunebook.common.run import RunOptions
    from tunebook.evals.harness import preflight

    tag = tag.replace("MARK", str(mark))
    file = tmp_path / "run.yaml"
    file.write_text(f"seed: {tag}\n")
    card = tmp_path / "README.md"
    card.write_text(f"---\nconfigs: {tag}\n---\n")

    def configs():
        with contextlib.suppress(yaml.YAMLError):
            preflight._configs(tmp_path, "")

    preflight._configs.cache_clear()
    calls = {
        "--config": lambda: cli.parse(RunOptions, ["--config", str(file)]),
        "--set": lambda: cli.values([f"warmup_steps={tag}"], TrainingArguments, set()),
        "a dataset card": configs,
    }
    holds(mark, monkeypatch, calls[place])


# --- data and folders


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows.json", "rows.pkl"])
def test_data_that_is_a_pickle(tmp_path, mark, monkeypatch, name):
    from tunebook.common import data

    traps.as_pickle(tmp_path / name, mark)
    said = holds(mark, monkeypatch, lambda: data.load([str(tmp_path / name)]), lambda: unpickle(tmp_path / name))
    assert said and name in said


def test_metric_in_a_folder_of_benchmarks(tmp_path, mark, monkeypatch):
    """lm-eval's squadv2 asks the `evaluate` library for a metric, which looks into the working directory first."""
    import evaluate

    from tunebook.evals.harness import catalog

    (tmp_path / "squad_v2").mkdir()
    (tmp_path / "squad_v2" / "squad_v2.py").write_text(traps.python(mark))
    monkeypatch.chdir(tmp_path)

    def ask():
        with catalog.no_local_metrics():
            evaluate.load("squad_v2")

    said = holds(mark, monkeypatch, ask)
    assert said and "squad_v2.py" in said


def test_repository_around_the_working_directory(tmp_path, mark, monkeypatch):
    """lm-eval's results name the commit of the working directory; git may be told there to run a program."""
    from tunebook.common import provenance
    from tunebook.evals.harness import scoring

    for words in (["init", "-q"], ["config", "core.fsmonitor", f"touch {mark}; false"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("a")
    monkeypatch.chdir(tmp_path)

    def commits():
        scoring._commit()
        provenance.commit()

    holds(mark, monkeypatch, commits, lambda: subprocess.run(["git", "status"], cwd=tmp_path, capture_output=True))


# --- every place at once


def calls_of_loaders():
    import ast

    for package in ("common", "evals", "recipes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield path, node


def test_every_loader_is_told_to_run_nothing():
    import ast

    found = 0
    for path, node in calls_of_loaders():
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if node.func.attr not in ("from_pretrained", "from_config") or not owner.startswith(("Auto", "FastLanguage")):
            continue
        found += 1
        given = {word.arg: word.value for word in node.keywords}
        value = given.get("trust_remote_code")
        assert isinstance(value, ast.Constant) and value.value is False, f"{path}:{node.lineno}"
    assert found > 12


def test_nothing_here_unpickles():
    import ast

    wrong = [
        f"{Path(path).name}:{node.lineno} {node.func.attr}"
        for path, node in calls_of_loaders()
        if node.func.attr in ("unsafe_load", "full_load", "read_pickle")
        or (
            node.func.attr in ("load", "loads")
            and getattr(node.func.value, "id", "") in ("pickle", "torch", "joblib")
            and not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
        )
    ]
    assert wrong == []
