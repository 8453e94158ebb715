"""What `pip install` of a wheel gives: the package, the recipes, the licence, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from qcli.recipe import preset_names

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling builds the wheel"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def names(wheel: Path) -> Iterator[set[str]]:
    with ZipFile(wheel) as archive:
        yield set(archive.namelist())


def test_wheel_holds_every_module(names: set[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "qcli").rglob("*.py")}
    assert modules <= names
    assert "qcli/py.typed" in names


def test_wheel_holds_every_preset(names: set[str]) -> None:
    assert {f"qcli/recipes/{name}.yaml" for name in preset_names()} <= names


def test_wheel_holds_the_licence(names: set[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"qcli"}
    assert not [name for name in names if "__pycache__" in name]


def test_presets_are_found_inside_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "from qcli.recipe import load_recipe, preset_names; print(*preset_names()); load_recipe('int8')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == preset_names()


def test_the_package_index_may_hold_what_we_ask_for() -> None:
    """Lower bounds are stated for everything, upper ones only where a major version is known to break."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all(">=" in requirement for requirement in project["dependencies"])
    assert [requirement for requirement in project["dependencies"] if "<2" in requirement] == ["onnx-ir>=1.1,<2"]
    assert project["requires-python"] == ">=3.11"
