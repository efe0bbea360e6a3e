"""What is installed: a wheel that has all it needs, and the names that it takes in other people's projects."""

import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from paths import ROOT

SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def tracked(*folders):
    """The files of the repository as git has them, without those that are removed."""
    command = ["git", "ls-files", "-z", *folders]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes beside its sources
    for name in tracked():
        if not name.startswith(("tests/", "docs/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_list_of_packages_is_complete():
    found = {
        ".".join(["tunebook", *path.parent.relative_to(ROOT).parts])
        for base in ("common", "evals")
        for path in (ROOT / base).rglob("*.py")
        if "tasks" not in path.parts
    }
    assert set(SETUP["packages"]) == found | {"tunebook.recipes"}


def test_the_wheel_holds_every_file_and_no_name_but_tunebook(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"tunebook"}
    for name in tracked("common", "evals", "recipes"):
        assert f"tunebook/{name}" in held or name.endswith(".md")


@pytest.mark.recipe
def test_a_wheel_and_a_copied_recipe_in_a_project_with_a_common_of_its_own(wheel, tmp_path):
    place, project = tmp_path / "installed", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(place)
    for name in ("common", "evals"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("raise SystemExit('this is somebody else')\n")
    env = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*words):
        done = subprocess.run([sys.executable, *words], cwd=project, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    listed = run("-m", "tunebook.common.commands", "ls")
    assert "qlora_alpaca" in listed and str(place / "tunebook" / "recipes") in listed
    run("-m", "tunebook.common.commands", "cp", "qlora_alpaca", "mine.py")
    said = run("mine.py", "--max_steps", "2", "--eval_suite", "none", "--output_dir", "out")
    assert "report:" in said and (project / "out" / "report.html").exists()
