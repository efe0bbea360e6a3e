"""Every command of README, docs/*.md and docstrings works, examples in Python run, and links lead somewhere.

Commands run in a folder whose files have the names that the documents use: rows, a model under path/to/model and under
the names of the Hub, a run. What is truly run: of the pages, `tunebook` commands that end by themselves within seconds,
the copy of a recipe (one step) and docs/journey.py. What is parsed by the command's own parser instead: recipes, which
differ from each other by flags alone here and are run by test_recipes.py; docstrings' commands but for `inspect`;
PARSED; and what a comment before its block marks as not run.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import documents
import few
import forked
import pytest
import yaml
from paths import ROOT

from tunebook.common import cli, commands, data
from tunebook.common.pocket import FOLDER
from tunebook.common.preference import pairs

TUNEBOOK = ("-c", "from tunebook.common.commands import main; main()")
SMALL = ("--max_steps", "1", "--eval_suite", "none", "--per_device_train_batch_size", "2")
PARSED = {  # beginnings of commands that are not run, each with its reason
    "tunebook table": "minutes: every recipe in a process of its own",
    "tunebook judge": "a judge or two models are needed, test_judge.py has them",
    "tunebook rate": "serves a page until it is stopped",
    "tunebook safety": "scores of the safety suite, test_safety.py has them",
    "tunebook compare": "scores; those in evaluate.md are run",
    "tunebook eval": "data of benchmarks, test_eval_command.py has them; --dataset is run",
    "tunebook chat --model": "a page, or several adapters; one chat is run",
    "tunebook chat --adapter runs/qlora_alpaca '<'": "a shell's redirection",
    "tunebook plan": "test_plan.py runs it",
    "tunebook new my_rows.csv --output": "it plans with SmolLM2; the one with --model is run",
    "tunebook export": "a trained run, and llama.cpp; tests/unit/export has them",
    "tunebook verify": "the same",
    "tunebook augment my_split/train.jsonl --output more.jsonl --methods paraphrase": "an endpoint",
}
TRUE = (  # run although they begin so
    "tunebook eval --adapter runs/lora_alpaca",
    "tunebook compare scores/base scores/tuned --html",
)
NOT_OURS = (  # what runs write
    "runs/", "adapter/", "model/", "checkpoint", "eval/", "base/", "tests/assets/golden/", "evals/tasks/NAME",
    "tensorboard/", "wandb/", "trackio/",
)  # fmt: skip
ANYWHERE = {"--config", "--debug", "--help", "--version", "--sft", "--shm-size"}
LAUNCHERS = {"--config_file", "--num_processes", "--num_cpu_threads_per_process", "--cpu", "--signal"}
LAUNCHERS |= {"--enable-lora", "--lora-modules", "--max-lora-rank", "--tokenizer", "--generation-config"}  # of vLLM
LAUNCHERS |= {"--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--master_port"}


def test_links_and_anchors_exist():
    for page in [*documents.PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for file, anchor in documents.links(page):
            assert file.exists(), f"{page.name}: {file}"
            assert not anchor or anchor in documents.anchors(file), f"{page.name}: {file.name}#{anchor}"


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(page for entry in config["nav"] for page in entry.values()) == [
        page.name for page in documents.PAGES[1:]
    ]


def test_excerpts_are_lines_of_their_files_in_order():
    found = [block for block in documents.blocks() if block.mark.startswith("excerpt: ")]
    assert found
    for block in found:
        text = (ROOT / block.mark.removeprefix("excerpt: ")).read_text()
        lines = iter([line.partition("  # ")[0] for line in text.splitlines()])
        for line in block.text.splitlines():
            assert line.strip() in ("", "...") or line in lines, f"{block.place}: {line!r} is not there, or not here"


def test_messages_of_troubleshooting_are_those_of_the_code():
    texts = list(documents.constants())
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    quoted = [re.findall(r"`([^`]+)`", row) for row in rows]
    assert not [parts for parts in quoted if not any(all(part in text for part in parts) for text in texts)]


def test_files_that_pages_name_exist():
    roots = [ROOT, ROOT / "common", ROOT / "docs"]
    for page in [*documents.PAGES, ROOT / "CONTRIBUTING.md"]:
        for name in re.findall(r"`((?:[\w.]+/)+(?:[\w*.]+\.(?:py|yaml|json|md|toml))?)`", page.read_text()):
            if not name.startswith(NOT_OURS):
                assert any([*root.glob(name)] for root in roots), f"{page.name}: there is no {name}"


def args_of(words):
    """The dataclass of flags, and the flags, of a command of tunebook or a recipe; None for other commands."""
    words = list(words)
    if words[0] == "tunebook":
        assert words[1] in commands.COMMANDS, words
        return importlib.import_module(commands.COMMANDS[words[1]][0]).Args, words[2:]
    place = next((at for at, word in enumerate(words) if word.endswith(".py")), None)
    if place is None or not words[place].startswith(("recipes/", "my_recipe")):
        return None
    name = words[place].replace("my_recipe", "recipes/qlora_alpaca")
    spec = importlib.util.spec_from_file_location("recipe_of_a_document", ROOT / name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Args, words[place + 1 :]


def extras_of():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].values()


def other(words):
    """Commands of other programs: make, pip and the shell."""
    if words[0] == "make":
        return re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[:3] == ("pip", "install", "-e"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return words[3].strip(".[]") in extras
    if words[:3] == ("pip", "install", "--no-deps"):  # without what it asks for, in the bounds of an extra
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        return all(word in pins or any(word in extra for extra in extras_of()) for word in words[3:])
    trackers = {("tensorboard", "--logdir"), ("wandb", "sync"), ("trackio", "show")}
    named = [word for word in words if not word.startswith("TRACKIO_DIR=")]
    return tuple(named[:2]) in trackers or words in {
        ("source", ".venv/bin/activate"),
        ("python", "docs/journey.py"),
    }


@pytest.mark.parametrize("command", documents.commands(), ids=lambda command: command.line[:90])
def test_command_is_parsed(command, monkeypatch, workplace):
    monkeypatch.chdir(workplace)
    found = args_of(command.words)
    if found is None:
        assert other(command.words), f"{command.place}: who knows {command.line}?"
        return
    args, words = found
    assert cli.parse(args, list(words)) is not None


def flags():
    """Every flag of recipes and commands."""
    heads = [("python", f"recipes/{path.name}") for path in (ROOT / "recipes").glob("*.py")]
    heads += [("tunebook", name) for name in commands.COMMANDS]
    return {f"--{name}" for head in heads for name in args_of(head)[0].__dataclass_fields__}


def test_flags_that_texts_name_exist():
    known = flags() | ANYWHERE | LAUNCHERS
    for page in documents.PAGES:
        for span in re.findall(r"`([^`\n]*--[^`\n]*)`", page.read_text()):
            for flag in re.findall(r"--[a-z]\w+(?:-\w+)*", span):
                assert flag.removeprefix("--no-") in known or flag in known, f"{page.name}: {flag} in `{span}`"


def rows_of(folder, name, rows):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    with (folder / name).open("w", encoding="utf-8") as file:
        if name.endswith(".json"):
            json.dump(rows, file)
        elif name.endswith(".csv"):
            columns = list(rows[0])
            values = [[row[column] for column in columns] for row in rows]
            file.writelines(",".join(f'"{value}"' for value in line) + "\n" for line in [columns, *values])
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that documents name."""
    folder = tmp_path_factory.mktemp("documents")
    rows = [json.loads(line) for line in (FOLDER / "train.jsonl").read_text().splitlines()[:100]]
    other = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text().splitlines()[:40]]
    chats = [json.loads(line) for line in (FOLDER / "chat_train.jsonl").read_text().splitlines()[:40]]
    asked = [{"question": f"{row['instruction']} {row['input']}", "answer": row["output"]} for row in rows]
    for name in ("my_rows.jsonl", "my_rows.json", "mine.jsonl", "rows.jsonl"):
        rows_of(folder, name, rows)
    for name in ("general.json", "my_questions.jsonl", "tatsu-lab/alpaca/train.jsonl"):
        rows_of(folder, name, other)
    rows_of(folder, "my_test.jsonl", other[:6])
    for name in ("my.csv", "my_rows.csv"):
        rows_of(folder, name, asked)
    for name in ("my_chats.jsonl", "my_conversations.json"):
        rows_of(folder, name, chats)
    for name in ("path/to/model", "my_model", "unsloth/Llama-3.2-1B"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copytree(FOLDER / "model", folder / name)
    turns = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    (folder / "mine.jinja").write_text(turns + "{% if add_generation_prompt %}<assistant>{% endif %}")
    (folder / "my_run.yaml").write_text("seed: 1\n")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "runs").mkdir()
    (folder / "runs" / "qlora_alpaca").symlink_to(folder / "runs" / "lora_alpaca")  # test_commands_run makes it
    return folder


@pytest.mark.recipe
def test_commands_run(workplace):
    """In the order of the pages, so that what one writes is there for the next."""
    small = few.rows(workplace / "few", train=40, others=10)
    trained = ("--dataset", small, "--output_dir", "runs/lora_alpaca", *SMALL)
    forked.run(workplace / "recipes" / "lora_alpaca.py", *trained, cwd=workplace).check_returncode()
    ran = 0
    for command in documents.commands():
        words = list(command.words)
        if command.reason or not runs(command):
            continue
        if words[0] == "tunebook":
            words = [*TUNEBOOK, *words[1:]]
        elif words[1] == "my_recipe.py":
            words = [*words[1:], *SMALL, "--output_dir", "runs/mine"]
        else:
            continue
        done = forked.run(*words, cwd=workplace)
        ran += 1
        allowed = (0, 1) if command.words[1] in ("doctor", "inspect") else (0,)  # 1: it ran, and something is wrong
        assert done.returncode in allowed, (command.place, command.line, done.stdout[-500:], done.stderr[-1500:])
        assert "Traceback" not in done.stderr, (command.line, done.stderr)
    assert ran > 15


def runs(command):
    shown = command.place.endswith(".md") or command.words[1] == "inspect"
    return shown and (command.line.startswith(TRUE) or not command.line.startswith(tuple(PARSED)))


@pytest.mark.recipe
@pytest.mark.parametrize("block", [block for block in documents.blocks() if block.language == "python"
                                   and not block.mark], ids=lambda block: block.place)  # fmt: skip
def test_python_example_runs(block, workplace):
    if "runs/lora_alpaca" in block.text and not (workplace / "runs" / "lora_alpaca" / "report.json").exists():
        pytest.skip("test_commands_run makes the report")
    done = forked.run("-c", block.text, cwd=workplace)
    assert done.returncode == 0, done.stderr


@pytest.mark.recipe
def test_the_journey_prints_what_is_shown():
    """But for numbers and words that floating point may change on another processor."""
    (block,) = [block for block in documents.blocks() if block.mark == "output: docs/journey.py"]
    done = forked.run(ROOT / "docs" / "journey.py")
    assert done.returncode == 0, done.stderr
    said, shown = (re.sub(r"loss \d+\.\d+|(before|after): .*", "~", text) for text in (done.stdout, block.text))
    assert said == shown


@pytest.mark.parametrize("block", [block for block in documents.blocks() if block.mark in ("rows", "preferences")],
                         ids=lambda block: block.text[2:12])  # fmt: skip
def test_rows_of_the_data_page_are_read(block, tmp_path):
    for side in ("train", "validation", "test"):
        (tmp_path / f"{side}.jsonl").write_text(block.text)
    load = pairs.load if block.mark == "preferences" else data.load
    assert len(load([str(tmp_path)])["train"]) == len(block.text.splitlines())


def test_the_site_builds():
    """Strictly: without links that lead nowhere."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (make docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = "".join(path.read_text() for path in (ROOT / "build" / "site").rglob("*.html"))
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?://", pages), "the site asks the network"
