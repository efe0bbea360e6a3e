"""Pins, bounds and make targets agree with each other."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WANTED = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pins():
    found = {}
    for requirement in map(Requirement, lines(CONSTRAINTS)):
        found.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier))
    return found


@pytest.mark.parametrize("line", WANTED, ids=lambda line: Requirement(line).name)
def test_each_dependency_is_bounded_and_pinned_within_its_bounds(line):
    wanted = Requirement(line)
    assert any(part.operator in {"==", "<", "<=", "~="} for part in wanted.specifier), f"{line}: no upper bound"
    pinned = pins().get(canonicalize_name(wanted.name))
    assert pinned, f"{wanted.name} has no pin in constraints.txt"
    assert all(wanted.specifier.contains(pin.removeprefix("==")) for pin in pinned), f"{line}: constraints say {pinned}"


def test_constraints_hold_exact_versions_and_nothing_of_one_machine():
    assert not [line for line in lines(CONSTRAINTS) if not re.match(r"[\w.-]+==[\w.!+]+( ;.*)?$", line)]
    for text in (CONSTRAINTS, (ROOT / "requirements-unsloth.txt").read_text(encoding="utf-8")):
        assert not re.search(r"://|^\s*-|@|\+cpu|\+cu|file:", text, re.MULTILINE)


def test_unsloth_is_pinned_exactly_and_stays_out_of_the_requirements():
    unsloth = [Requirement(line) for line in lines((ROOT / "requirements-unsloth.txt").read_text(encoding="utf-8"))]
    assert {item.name for item in unsloth} == {"unsloth", "unsloth_zoo"}
    assert all(str(item.specifier).startswith("==") for item in unsloth)
    assert not {Requirement(line).name for line in WANTED} & {"unsloth", "unsloth_zoo"}
    assert re.search(r"--no-deps -r requirements-unsloth\.txt", MAKEFILE)


@pytest.mark.parametrize("target", ["demo", "test", "unit", "lint", "clean", "install"])
def test_make_has_the_target(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_the_gpu_is_tried_before_the_rest_is_installed():
    """Where torch cannot use it, Unsloth cannot be imported, and minutes of installing would end in nothing."""
    rule = re.search(r"^\.venv/installed:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE).group(1)
    torch, tried, rest = (rule.index(part) for part in ("torch==", "machine.require_gpu()", '-e ".'))
    assert torch < tried < rest
    pinned = re.search(r"torch==([\d.]+)", rule).group(1)
    assert f"torch==={pinned}" in (ROOT / "common" / "commands" / "doctor" / "machine.py").read_text(encoding="utf-8")
    assert [f"=={pinned}"] == pins()["torch"]


def test_what_the_pinned_cuda_torch_needs_is_pinned_for_the_same_cuda():
    """xformers 0.0.35, for one, links libcudart.so.12 and cannot load beside a torch for CUDA 13."""
    kinds = {name for name in pins() if re.search(r"-cu\d+$", name)}
    assert kinds and all(name.endswith("-cu13") for name in kinds)
    for name in ("cuda-toolkit", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cublas"):
        assert all(pin.startswith("==13.") for pin in pins()[name]), name
    assert "xformers" not in pins() and not [line for line in WANTED if "xformers" in line]


def test_make_clean_keeps_what_was_trained():
    assert "runs" not in re.search(r"^clean:\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE).group(1)
